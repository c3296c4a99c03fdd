//! Where debugging information lies: `debuginfo/<build id>`, an index over all NARs that debuggers ask by the id in a program.
//!
//! Files count by their name, `lib/debug/.build-id/<2 digits>/<38 digits>.debug`, as with Nix. Nobody signs the index: what it leads to is
//! an archive whose narinfo is signed.

use std::sync::PoisonError;

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

/// Blobs that are stored and not published, whose debugging information is remembered.
const UNINDEXED_MAX: usize = 1024;

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
pub(crate) fn blob_file_of(entry: &[u8]) -> Option<&str> {
    let (_, rest) = std::str::from_utf8(entry).ok()?.split_once("\"../nar/")?;
    rest.split_once('"').map(|(file, _)| file)
}

pub(crate) fn is_build_id(id: &[u8]) -> bool {
    id.len() == 40 && id.iter().all(|byte| b"0123456789abcdef".contains(byte))
}

impl Store {
    /// Remembers what debugging information a blob has that was stored a moment ago, until its path is published.
    pub(crate) fn remember_debug(&self, blob: &Sha256Hash, build_ids: &[BuildIdOf]) {
        if build_ids.is_empty() {
            return;
        }
        let mut unindexed = self.inner.unindexed.lock().unwrap_or_else(PoisonError::into_inner);
        unindexed.insert(*blob, build_ids.to_vec());
        // Debugging information decides nothing: of more blobs than that some go without.
        while unindexed.len() > UNINDEXED_MAX {
            unindexed.pop_first();
        }
    }

    /// Notes where the debugging information of a blob lies that was stored a moment ago. Publishing a path does so by itself; to be called before
    /// that where another coordinator may publish the path.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn index_stored(&self, blob: &Sha256Hash) -> Result<(), StoreError> {
        let found = self.inner.unindexed.lock().unwrap_or_else(PoisonError::into_inner).remove(blob);
        match found {
            Some(build_ids) => self.index_debug(blob, &build_ids).await,
            None => Ok(()),
        }
    }

    /// Notes where debugging information lies. What leads to a blob that is there stays: who came first is believed.
    async fn index_debug(&self, blob: &Sha256Hash, build_ids: &[BuildIdOf]) -> Result<(), StoreError> {
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

    #[tokio::test]
    async fn what_is_stored_and_not_published_is_found_by_nobody() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = crate::StoreConfig {
            store_dir: kiln_wire::StoreDir::default(),
            location: crate::Location::Memory,
            spool_dir: dir.path().join("spool"),
            cached_paths_max: 10,
        };
        let store = Store::open(config).await.expect("opens");
        let keys = kiln_nix::Keyring::of(kiln_nix::SecretKey::from_seed("farm-1", [1; 32]).expect("a name"));
        let stored = |digit: &'static str| {
            let (store, dir) = (store.clone(), dir.path().join(digit));
            async move {
                let file = dir.join(format!("lib/debug/.build-id/{0}{0}/{1}.debug", digit, digit.repeat(38)));
                std::fs::create_dir_all(file.parent().expect("a directory")).expect("makes directories");
                std::fs::write(&file, digit).expect("writes");
                let nothing = kiln_nix::scan::Candidates::new([]);
                let packer = crate::Packer { level: 1, spool_dir: dir.with_extension("spool") };
                let packed = packer.pack(&dir, &nothing).expect("packs");
                let path = kiln_wire::StorePath::parse(&format!("{}-x", digit.repeat(32))).expect("a path");
                let info = packed.path_info(path, None, None);
                let mut receiver = store.receive(info, crate::Provenance::Built { candidates: [].into() }).expect("begins");
                receiver.write(packed.spool.as_memory().expect("small")).expect("takes");
                store.finish_upload(receiver).await.expect("stores")
            }
        };
        let is_found = |digit: &'static str| {
            let store = store.clone();
            async move { store.debuginfo(&digit.repeat(40)).await.expect("looks").is_some() }
        };
        let published = stored("a").await;
        assert!(!is_found("a").await, "it is only stored");
        store.publish(std::slice::from_ref(&published), &keys).await.expect("publishes");
        assert!(is_found("a").await);
        // What a build of the farm made may be published by another coordinator.
        let built = stored("b").await;
        store.index_stored(&built.blob.sha256).await.expect("indexes");
        assert!(is_found("b").await);
    }
}
