//! Listing everything that the store holds, and deleting what nobody keeps. What that is, the coordinator
//! says that leads.
//!
//! Invariant: of a path the narinfo goes first, its blob later; of a derivation its logs go first, so that none is left without it.

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use kiln_nix::realisation::{DerivedOutput, Realisation};
use kiln_wire::{BuildId, DrvPath, OutputName, PathInfo, Sha256Hash, StorePath, Timestamp};
use object_store::path::Path;

use crate::debug::{blob_file_of, is_build_id};
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
        /// When it was written.
        at: Timestamp,
    },
    /// What only leads to something else.
    Pointer {
        /// To what, and from where.
        pointer: Pointer,
        /// When it was written.
        at: Timestamp,
    },
    /// Anything else: what goes with something of these, or none of the collector's business.
    Other,
}

/// An object that leads to another, or says something of it, and is of no use without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pointer {
    /// The debugging information with this build id is in a blob.
    Debug(String),
    /// A file with this hash, which a client uploaded, became a blob.
    Uploaded(String),
    /// What the NAR of this hash holds. It is of use as long as a path has that NAR.
    Listing(Sha256Hash),
    /// What an output became.
    Realisation(DerivedOutput),
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
    /// What leads nowhere.
    Pointer(&'a Pointer),
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
            Deleted::Pointer(pointer) => objects.delete(&key_of(pointer)).await,
        }
    }

    /// Returns whether what a pointer leads to is gone. Of a listing that only the whole store tells: it counts as leading somewhere.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn leads_nowhere(&self, pointer: &Pointer) -> Result<bool, StoreError> {
        let blob_file = match pointer {
            Pointer::Listing(_) => return Ok(false),
            Pointer::Realisation(of) => {
                let Some(text) = self.inner.objects.get_small(&key_of(pointer), POINTER_BYTES_MAX).await? else { return Ok(false) };
                // One that cannot be read is read as none, and people may want to look at it.
                let Ok(realisation) = Realisation::parse(of.clone(), &text) else { return Ok(false) };
                return Ok(self.inner.objects.head(&key::narinfo(realisation.path.hash_part())).await?.is_none());
            }
            Pointer::Debug(id) => {
                let Some(entry) = self.debuginfo(id).await? else { return Ok(false) };
                blob_file_of(&entry).map(str::to_owned)
            }
            Pointer::Uploaded(_) => {
                let Some(text) = self.inner.objects.get_small(&key_of(pointer), POINTER_BYTES_MAX).await? else { return Ok(false) };
                std::str::from_utf8(&text).ok().map(|hash| format!("{hash}.nar.zst"))
            }
        };
        match blob_file {
            Some(file) => Ok(self.nar_file_size(&file).await?.is_none()),
            None => Ok(true),
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

fn key_of(pointer: &Pointer) -> Path {
    match pointer {
        Pointer::Debug(id) => key::debuginfo(id),
        Pointer::Uploaded(hash) => key::uploaded_file(hash),
        Pointer::Listing(nar_hash) => key::listing(nar_hash),
        Pointer::Realisation(of) => key::realisation(of),
    }
}

/// Bytes of a pointer at most: that of a realisation has a signature of each key.
const POINTER_BYTES_MAX: u64 = 64 << 10;

fn classify(key: &str, size_bytes: u64, at: Timestamp) -> Stored {
    let stored = match key.split_once('/') {
        None => {
            let part = key.strip_suffix(key::NARINFO_SUFFIX).filter(|part| key::is_hash_part(part));
            part.map(|part| Stored::Narinfo { hash_part: part.to_owned(), at })
        }
        Some(("drv", name)) => DrvPath::parse(name).ok().map(|path| Stored::Derivation { path, size_bytes, at }),
        Some(("nar", name)) => key::nar_hash_of(name).map(|sha256| Stored::Blob { sha256, size_bytes, at }),
        Some(("build-trace-v2", rest)) => realisation(rest, at),
        Some((directory, name)) if !name.contains('/') => pointer(directory, name).map(|pointer| Stored::Pointer { pointer, at }),
        Some(_) => None,
    };
    stored.unwrap_or(Stored::Other)
}

fn pointer(directory: &str, name: &str) -> Option<Pointer> {
    match directory {
        "debuginfo" => is_build_id(name.as_bytes()).then(|| Pointer::Debug(name.to_owned())),
        "uploaded" => key::is_sha256(name).then(|| Pointer::Uploaded(name.to_owned())),
        "listings" => key::listed_nar(name).map(Pointer::Listing),
        "realisations" => {
            let of = name.strip_suffix(".doi").and_then(|id| DerivedOutput::parse_by_hash(id).ok());
            of.map(Pointer::Realisation)
        }
        _ => None,
    }
}

/// Reads `<derivation>/<output>.doi`.
fn realisation(rest: &str, at: Timestamp) -> Option<Stored> {
    let (derivation, output) = rest.strip_suffix(".doi")?.split_once('/')?;
    Some(Stored::Realisation { derivation: DrvPath::parse(derivation).ok()?, output: OutputName::parse(output).ok()?, at })
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
        let by_hash = DerivedOutput::ByHash { identity: sha256, output: OutputName::parse("out").expect("a name") };
        let table = [
            (format!("{part}.narinfo"), Stored::Narinfo { hash_part: part.to_owned(), at }),
            (format!("drv/{path}"), Stored::Derivation { path: path.clone(), size_bytes: 3, at }),
            (key::nar(&sha256).to_string(), Stored::Blob { sha256, size_bytes: 3, at }),
            (
                format!("build-trace-v2/{path}/out.doi"),
                Stored::Realisation { derivation: path.clone(), output: OutputName::parse("out").expect("a name"), at },
            ),
            (format!("debuginfo/{}", "0a".repeat(20)), Stored::Pointer { pointer: Pointer::Debug("0a".repeat(20)), at }),
            (format!("debuginfo/{}", "0a".repeat(19)), Stored::Other),
            (format!("uploaded/{}", "1".repeat(52)), Stored::Pointer { pointer: Pointer::Uploaded("1".repeat(52)), at }),
            (key::listing(&sha256).to_string(), Stored::Pointer { pointer: Pointer::Listing(sha256), at }),
            (by_hash.file_name(), Stored::Pointer { pointer: Pointer::Realisation(by_hash.clone()), at }),
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
