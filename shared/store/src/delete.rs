//! Listing everything that the store holds, and deleting what nobody keeps. What that is, the coordinator
//! says that leads.
//!
//! Invariant: of a path the narinfo goes first, its blob later; of a derivation its logs go first, so that none is left without it.

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use kiln_wire::{BuildId, DrvPath, OutputName, PathInfo, Sha256Hash, StorePath, Timestamp};

use crate::error::StoreError;
use crate::store::{NARINFO_BYTES_MAX, Store, damaged_narinfo};
use crate::{key, narinfo};

/// One object, as a list of the store tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The narinfo of the path with this hash part.
    Narinfo {
        /// The hash part.
        hash_part: String,
        /// When it was written.
        at: Timestamp,
    },
    /// A derivation's file.
    Derivation {
        /// Its path.
        path: DrvPath,
        /// Its size.
        size_bytes: u64,
        /// When it was written.
        at: Timestamp,
    },
    /// A blob.
    Blob {
        /// Its SHA-256; that of its NAR, in farms that are older.
        sha256: Sha256Hash,
        /// Its size.
        size_bytes: u64,
        /// When it was written.
        at: Timestamp,
    },
    /// What an output of a derivation became.
    Realisation {
        /// The derivation.
        derivation: DrvPath,
        /// Which output.
        output: OutputName,
    },
    /// Anything else: what goes with something of these, or none of the collector's business.
    Other,
}

/// Something that can be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted<'a> {
    /// A path's narinfo and listing. It is not valid any more.
    Path {
        /// The path.
        path: &'a StorePath,
        /// The hash of its NAR, which its listing is named by.
        nar_hash: Sha256Hash,
    },
    /// A derivation's file, and the logs of its attempts that are in the store.
    Derivation(&'a DrvPath),
    /// A blob.
    Blob(&'a Sha256Hash),
    /// The record of an ended build.
    Build(BuildId),
}

impl Store {
    /// Lists everything, in no order, as it comes: nothing is held but a page.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub fn objects(&self) -> BoxStream<'static, Result<Stored, StoreError>> {
        let classify = |object: object_store::ObjectMeta| {
            let at = Timestamp(u64::try_from(object.last_modified.timestamp_millis()).unwrap_or_default());
            classify(object.location.as_ref(), object.size, at)
        };
        self.inner.objects.walk(None).map_ok(classify).boxed()
    }

    /// Returns what is known of the valid path with this hash part, from the store itself and without remembering it.
    ///
    /// # Errors
    /// [`StoreError::DamagedNarinfo`] if its narinfo cannot be read, [`StoreError::Object`] if the store fails.
    pub async fn info_of_part(&self, hash_part: &str) -> Result<Option<PathInfo>, StoreError> {
        let key = key::narinfo(hash_part);
        let Some(bytes) = self.inner.objects.get_small(&key, NARINFO_BYTES_MAX).await? else { return Ok(None) };
        narinfo::read(self.store_dir(), &bytes).map(Some).map_err(|reason| damaged_narinfo(&key, reason))
    }

    /// Deletes something; what is not there is gone already. Several deletions are on stable storage after [`Store::sync_deleted`].
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn delete(&self, what: Deleted<'_>) -> Result<(), StoreError> {
        let objects = &self.inner.objects;
        match what {
            Deleted::Path { path, nar_hash } => self.delete_narinfo(path, &nar_hash).await,
            Deleted::Derivation(path) => {
                for log in objects.list(Some(&key::log_dir(path))).await? {
                    objects.delete(&log.location).await?;
                }
                objects.delete(&key::derivation(path)).await
            }
            Deleted::Blob(sha256) => objects.delete(&key::nar(sha256)).await,
            Deleted::Build(build) => objects.delete(&key::build(build)).await,
        }
    }

    async fn delete_narinfo(&self, path: &StorePath, nar_hash: &Sha256Hash) -> Result<(), StoreError> {
        // Before as well: who gives up waiting for the store must not leave it remembered.
        self.inner.infos.forget(path);
        let deleted = self.inner.objects.delete(&key::narinfo(path.hash_part())).await;
        self.inner.infos.forget(path);
        deleted?;
        self.inner.known.deleted(path);
        // Another path may have the same NAR: then it is listed again when somebody asks.
        self.inner.objects.delete(&key::listing(nar_hash)).await
    }

    /// Waits until deleted narinfos are gone from stable storage, so that no blob goes before them.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn sync_deleted(&self) -> Result<(), StoreError> {
        self.inner.objects.sync().await
    }

    /// Forgets what is held in memory of a path that is being deleted.
    pub fn forget_path(&self, path: &StorePath) {
        self.inner.infos.forget(path);
    }

    /// Forgets what is held in memory of paths: another leader may have deleted some since.
    pub fn forget_paths(&self) {
        self.inner.infos.forget_all();
    }
}

fn classify(key: &str, size_bytes: u64, at: Timestamp) -> Stored {
    let stored = match key.split_once('/') {
        None => {
            let part = key.strip_suffix(key::NARINFO_SUFFIX).filter(|part| key::is_hash_part(part));
            part.map(|part| Stored::Narinfo { hash_part: part.to_owned(), at })
        }
        Some(("drv", name)) => DrvPath::parse(name).ok().map(|path| Stored::Derivation { path, size_bytes, at }),
        Some(("nar", name)) => key::nar_hash_of(name).map(|sha256| Stored::Blob { sha256, size_bytes, at }),
        Some(("build-trace-v2", rest)) => realisation(rest),
        Some(_) => None,
    };
    stored.unwrap_or(Stored::Other)
}

/// Reads `<derivation>/<output>.doi`.
fn realisation(rest: &str) -> Option<Stored> {
    let (derivation, output) = rest.strip_suffix(".doi")?.split_once('/')?;
    Some(Stored::Realisation { derivation: DrvPath::parse(derivation).ok()?, output: OutputName::parse(output).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_known_by_its_key_and_nothing_else_is_touched() {
        let at = Timestamp(7);
        let part = "0hm2f1psjpcwg8fijsmr4wwxrx59s092";
        let path = DrvPath::parse(&format!("{part}-x.drv")).expect("a path");
        let sha256 = Sha256Hash([7; 32]);
        let table = [
            (format!("{part}.narinfo"), Stored::Narinfo { hash_part: part.to_owned(), at }),
            (format!("drv/{path}"), Stored::Derivation { path: path.clone(), size_bytes: 3, at }),
            (key::nar(&sha256).to_string(), Stored::Blob { sha256, size_bytes: 3, at }),
            (
                format!("build-trace-v2/{path}/out.doi"),
                Stored::Realisation { derivation: path.clone(), output: OutputName::parse("out").expect("a name") },
            ),
            (format!("build-trace-v2/{path}/out"), Stored::Other),
            (format!("build-trace-v2/{part}-x/out.doi"), Stored::Other),
            ("builds/12.build".to_owned(), Stored::Other),
            ("nix-cache-info".to_owned(), Stored::Other),
            ("farm".to_owned(), Stored::Other),
            (format!("old/{part}.narinfo"), Stored::Other),
            ("nar/x.nar.xz".to_owned(), Stored::Other),
            (format!("logs/{part}-x.drv/1.log.zst"), Stored::Other),
        ];
        for (key, expected) in table {
            assert_eq!(classify(&key, 3, at), expected, "{key}");
        }
    }
}
