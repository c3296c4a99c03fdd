//! Where debugging information lies: `debuginfo/<build id>`, an index over all NARs that debuggers ask by the id in a program.
//!
//! Files count by their name, `lib/debug/.build-id/<2 digits>/<38 digits>.debug`, as with Nix. Nobody signs the index: what it leads to is
//! an archive whose narinfo is signed.

use bytes::Bytes;
use kiln_nix::narinfo::blob_key;
use kiln_wire::Sha256Hash;

use crate::error::StoreError;
use crate::key;
use crate::store::Store;

/// A file with the debugging information of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BuildIdOf {
    /// 40 digits of base 16.
    id: String,
}

/// Where such files lie.
const PLACE: [&[u8]; 3] = [b"lib", b"debug", b".build-id"];
/// How their names end.
const SUFFIX: &[u8] = b".debug";
/// Bytes of an entry of the index at most.
const ENTRY_BYTES_MAX: u64 = 1024;

impl BuildIdOf {
    /// Returns the build id of the file with this path, if it has one.
    pub(crate) fn file(path: &[Vec<u8>]) -> Option<Self> {
        let [lib, debug, place, first, rest] = path else { return None };
        let rest = rest.strip_suffix(SUFFIX)?;
        let is_place = [lib, debug, place].into_iter().map(Vec::as_slice).eq(PLACE);
        let id = [first, rest].concat();
        (is_place && first.len() == 2 && is_build_id(&id)).then(|| Self { id: String::from_utf8_lossy(&id).into_owned() })
    }

    fn member(&self) -> String {
        format!("lib/debug/.build-id/{}/{}.debug", &self.id[..2], &self.id[2..])
    }
}

/// Returns the file name of the blob that an entry leads to.
fn blob_file_of(entry: &[u8]) -> Option<&str> {
    let (_, rest) = std::str::from_utf8(entry).ok()?.split_once("\"../nar/")?;
    rest.split_once('"').map(|(file, _)| file)
}

fn is_build_id(id: &[u8]) -> bool {
    id.len() == 40 && id.iter().all(|byte| b"0123456789abcdef".contains(byte))
}

impl Store {
    /// Notes where debugging information lies. What leads to a blob that is there stays: who came first is believed.
    pub(crate) async fn index_debug(&self, blob: &Sha256Hash, build_ids: &[BuildIdOf]) -> Result<(), StoreError> {
        for found in build_ids {
            if let Some(entry) = self.debuginfo(&found.id).await?
                && let Some(file) = blob_file_of(&entry)
                && self.nar_file_size(file).await?.is_some()
            {
                continue;
            }
            // All parts are plain text.
            let json = format!("{{\"archive\":\"../{}\",\"member\":\"{}\"}}", blob_key(blob), found.member());
            self.inner.objects.put(&key::debuginfo(&found.id), json.into()).await?;
        }
        Ok(())
    }

    /// Returns where the debugging information with this build id is, as JSON. `None`: nowhere here, or the text is no build id.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn debuginfo(&self, build_id: &str) -> Result<Option<Bytes>, StoreError> {
        match is_build_id(build_id.as_bytes()) {
            true => self.inner.objects.get_small(&key::debuginfo(build_id), ENTRY_BYTES_MAX).await,
            false => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_place_and_name() {
        let rest = "0".repeat(38);
        let file = |path: String| BuildIdOf::file(&path.split('/').map(|part| part.as_bytes().to_vec()).collect::<Vec<_>>());
        let found = file(format!("lib/debug/.build-id/ab/{rest}.debug")).expect("a file with debugging information");
        assert_eq!((found.id.as_str(), found.member()), (&*format!("ab{rest}"), format!("lib/debug/.build-id/ab/{rest}.debug")));
        for path in [
            format!("lib/debug/.build-id/ab/{rest}"),
            format!("lib/debug/.build-id/abc/{}.debug", &rest[1..]),
            format!("lib/debug/.build-id/AB/{rest}.debug"),
            format!("lib/debug/.build-id/ab/0{rest}.debug"),
            format!("lib/debug/.build-id/ab/c/{rest}.debug"),
            format!("x/lib/debug/.build-id/ab/{rest}.debug"),
            format!("lib/debug/build-id/ab/{rest}.debug"),
        ] {
            assert_eq!(file(path.clone()), None, "{path}");
        }
    }
}
