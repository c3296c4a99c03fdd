//! The store: which paths are valid, and where their bytes lie.
//!
//! Invariant: a path is valid exactly when its narinfo exists, and a narinfo is written only when its NAR is stored and everything it
//! refers to is valid. NARs are written once. With [`Location::Local`] and `durable`, a call that stores something returns when it is
//! on stable storage: the file is synced before it gets its name, the directory after.

use std::collections::BTreeMap;
use std::path::{Path as FilePath, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use kiln_nix::Keyring;
use kiln_nix::derivation::{Derivation, path_of_parsed};
use kiln_nix::sign::PublicKey;
use kiln_wire::limits::DERIVATION_BYTES_MAX;
use kiln_wire::{DrvPath, PathInfo, Sha256Hash, StoreDir, StorePath};
use object_store::ObjectStore;
use object_store::path::Path;

use crate::blob::BlobReader;
use crate::cache::PathInfoCache;
use crate::debug::BuildIdOf;
use crate::error::StoreError;
use crate::key;
use crate::known::Known;
use crate::narinfo;
use crate::objects::Objects;
use crate::receive::{BlobReceiver, Provenance};
use crate::s3::S3;

/// How a store is opened. Read from the daemon's configuration file; nothing in it changes what the store does, only where.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Where the objects lie.
    pub location: Location,
    /// The directory that the farm's store paths name.
    pub store_dir: StoreDir,
    /// Where uploads wait until they are verified, if they are larger than a MiB. Any local directory; made if absent.
    pub spool_dir: PathBuf,
    /// Paths whose facts are held in memory, about 500 bytes each.
    pub cached_paths_max: usize,
}

/// Where a store's objects lie.
#[derive(Clone, Debug)]
pub enum Location {
    /// Files on a local disk.
    Local {
        /// The directory; made if absent.
        dir: PathBuf,
        /// Whether to wait for stable storage. A farm's store must; tests need not.
        durable: bool,
    },
    /// A bucket, which other coordinators of the farm use as well.
    S3(S3),
    /// This process's memory, for tests.
    Memory,
    /// Objects that several stores of a test use as several machines use a bucket.
    Objects(Arc<dyn ObjectStore>),
}

impl Location {
    /// Returns objects in memory that every store opened at a clone of this location uses, as several machines use a bucket. For tests.
    pub fn shared_memory() -> Self {
        Self::Objects(Arc::new(object_store::memory::InMemory::new()))
    }
}

/// A farm's store. Cheap to clone; clones are the same store.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) objects: Objects,
    pub(crate) shared: bool,
    pub(crate) store_dir: StoreDir,
    pub(crate) spool_dir: PathBuf,
    pub(crate) infos: PathInfoCache,
    pub(crate) known: Known,
    /// Held while a NAR is listed.
    pub(crate) listing: Arc<tokio::sync::Mutex<()>>,
    /// Debugging information of blobs that are stored and not published.
    pub(crate) unindexed: Mutex<BTreeMap<Sha256Hash, Vec<BuildIdOf>>>,
    pub(crate) received_bytes: AtomicU64,
    pub(crate) made_bytes: AtomicU64,
    pub(crate) served_bytes: AtomicU64,
}

/// Bytes of blobs since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Verified and stored by [`Store::keep`].
    pub received_bytes: u64,
    /// Verified and stored by [`Store::keep_made`].
    pub made_bytes: u64,
    /// Counted by [`Store::count_served`].
    pub served_bytes: u64,
}

/// Priority that clients give this cache: lower is preferred, and cache.nixos.org has 40.
const CACHE_PRIORITY: u32 = 40;
/// Bytes of a narinfo at most; the same limit as kiln-nix's parser has.
pub(crate) const NARINFO_BYTES_MAX: u64 = 1 << 20;
/// Lookups under way at a time for one request.
const LOOKUPS_MAX: usize = 64;

impl Store {
    /// Opens a store, making what is absent.
    ///
    /// # Errors
    /// [`StoreError::Open`] if the place cannot be used, [`StoreError::OtherStoreDir`] if another farm's paths live there.
    pub async fn open(config: StoreConfig) -> Result<Self, StoreError> {
        let objects = match &config.location {
            Location::Local { dir, durable } => Objects::local(dir, *durable)?,
            Location::S3(s3) => Objects::s3(s3)?,
            Location::Memory => Objects::memory(),
            Location::Objects(objects) => Objects::given(Arc::clone(objects)),
        };
        let shared = matches!(config.location, Location::S3(_) | Location::Objects(_));
        std::fs::create_dir_all(&config.spool_dir).map_err(|err| StoreError::Directory { dir: config.spool_dir.clone(), err })?;
        let inner = Inner {
            objects,
            shared,
            store_dir: config.store_dir,
            spool_dir: config.spool_dir,
            infos: PathInfoCache::new(config.cached_paths_max),
            known: Known::default(),
            listing: Arc::default(),
            unindexed: Mutex::default(),
            received_bytes: AtomicU64::new(0),
            made_bytes: AtomicU64::new(0),
            served_bytes: AtomicU64::new(0),
        };
        let store = Self { inner: Arc::new(inner) };
        // A bucket may be away: who opens it asks `belong_to`, and can wait.
        if !shared {
            store.claim().await?;
        }
        Ok(store)
    }

    /// Returns whether other machines use the same store, so that nothing of it need lie on this one.
    pub fn is_shared(&self) -> bool {
        self.inner.shared
    }

    /// Returns the directory that the farm's store paths name.
    pub fn store_dir(&self) -> &StoreDir {
        &self.inner.store_dir
    }

    /// Returns the directory for bytes in transit.
    pub fn spool_dir(&self) -> &FilePath {
        &self.inner.spool_dir
    }

    /// Returns the bytes that came and went since the store was opened.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            received_bytes: self.inner.received_bytes.load(Ordering::Relaxed),
            made_bytes: self.inner.made_bytes.load(Ordering::Relaxed),
            served_bytes: self.inner.served_bytes.load(Ordering::Relaxed),
        }
    }

    /// Counts bytes of blobs that were sent. Those that workers fetch are counted by who sends them.
    pub fn count_served(&self, bytes: u64) {
        self.inner.served_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns the content of `nix-cache-info`.
    pub fn cache_info(&self) -> String {
        format!("StoreDir: {}\nWantMassQuery: 1\nPriority: {CACHE_PRIORITY}\n", self.inner.store_dir)
    }

    /// Returns what is known of a valid path. `None`: the path is not valid.
    ///
    /// # Errors
    /// [`StoreError::DamagedNarinfo`] if its narinfo cannot be read, [`StoreError::Object`] if the store fails.
    pub async fn path_info(&self, path: &StorePath) -> Result<Option<Arc<PathInfo>>, StoreError> {
        if let Some(info) = self.inner.infos.get(path) {
            return Ok(Some(info));
        }
        let Some(info) = self.read_path_info(path).await? else {
            return Ok(None);
        };
        let info = Arc::new(info);
        self.inner.infos.put(Arc::clone(&info));
        Ok(Some(info))
    }

    /// As [`Store::path_info`], but always from the store itself.
    pub(crate) async fn read_path_info(&self, path: &StorePath) -> Result<Option<PathInfo>, StoreError> {
        let key = key::narinfo(path.hash_part());
        let Some(bytes) = self.inner.objects.get_small(&key, NARINFO_BYTES_MAX).await? else {
            return Ok(None);
        };
        let info = narinfo::read(&self.inner.store_dir, &bytes).map_err(|reason| damaged_narinfo(&key, reason))?;
        self.inner.known.published(&info.path);
        // Another path with the same hash part cannot be had by accident; this one is then not in the store.
        Ok((info.path == *path).then_some(info))
    }

    /// Returns those of `paths` that are not valid, in the order asked.
    ///
    /// # Errors
    /// As [`Store::path_info`].
    pub async fn missing(&self, paths: &[StorePath]) -> Result<Vec<StorePath>, StoreError> {
        let lookups = futures::stream::iter(paths.to_vec()).map(|path| {
            let store = self.clone();
            async move { store.path_info(&path).await.map(|info| info.is_none().then_some(path)) }
        });
        let found: Vec<_> = lookups.buffered(LOOKUPS_MAX).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Keeps a derivation, and returns its parse. Its path must be the one that follows from its bytes.
    ///
    /// # Errors
    /// [`StoreError::WrongDerivation`] names the rule that is broken; nothing is stored then.
    pub async fn put_derivation(&self, path: &DrvPath, bytes: Bytes) -> Result<Derivation, StoreError> {
        let parsed = parse_derivation(&self.inner.store_dir, path, &bytes)?;
        self.inner.objects.put(&key::derivation(path), bytes).await?;
        Ok(parsed)
    }

    /// Keeps derivations that [`parse_derivation`] has taken. On return all are on stable storage, for which they waited together.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails; any of them may be stored then.
    pub async fn put_checked_derivations(&self, files: Vec<(DrvPath, Bytes)>) -> Result<(), StoreError> {
        self.inner.objects.put_all(files.into_iter().map(|(path, bytes)| (key::derivation(&path), bytes)).collect()).await
    }

    /// Returns the bytes of a derivation, checked against its path, and their parse. `None`: the store does not have it.
    ///
    /// # Errors
    /// [`StoreError::DamagedDerivation`] if the stored bytes are not those of the path.
    pub async fn derivation(&self, path: &DrvPath) -> Result<Option<(Bytes, Derivation)>, StoreError> {
        let key = key::derivation(path);
        let Some(bytes) = self.inner.objects.get_small(&key, DERIVATION_BYTES_MAX as u64).await? else {
            return Ok(None);
        };
        match check_derivation(&self.inner.store_dir, path, &bytes) {
            Ok(parsed) => Ok(Some((bytes, parsed))),
            Err(reason) => Err(StoreError::DamagedDerivation { path: path.clone(), key: key.to_string(), reason }),
        }
    }

    /// Returns those derivations of some that lie whole on a disk of this machine, as [`Store::derivation`] does, read together. Where each is
    /// a request to somebody, none: that may have to be waited for. What is wrong with another is told to whoever asks for it alone, and so is
    /// one with more than `bytes_max`.
    ///
    /// # Errors
    /// [`StoreError::Task`] if the reading broke off.
    pub async fn derivations_at_hand(&self, paths: Vec<DrvPath>, bytes_max: u64) -> Result<Vec<(DrvPath, Bytes, Derivation)>, StoreError> {
        let keys = paths.iter().map(key::derivation).collect();
        let read = self.inner.objects.get_at_hand(keys, bytes_max).await?;
        let whole = |(path, bytes): (DrvPath, Option<Bytes>)| {
            let parsed = check_derivation(&self.inner.store_dir, &path, bytes.as_ref()?).ok()?;
            Some((path, bytes?, parsed))
        };
        Ok(paths.into_iter().zip(read).filter_map(whole).collect())
    }

    /// Returns those of `paths` whose derivation the store does not have, in the order asked.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn missing_derivations(&self, paths: &[DrvPath]) -> Result<Vec<DrvPath>, StoreError> {
        let lookups = futures::stream::iter(paths.to_vec()).map(|path| {
            let store = self.clone();
            async move { store.inner.objects.head(&key::derivation(&path)).await.map(|found| found.is_none().then_some(path)) }
        });
        let found: Vec<_> = lookups.buffered(LOOKUPS_MAX).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Returns the narinfo of the path with this hash part, as it is served: with a signature of each key that signs. `None`: there is
    /// no such path, or the text is no hash part.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn narinfo(&self, hash_part: &str, keys: &Keyring) -> Result<Option<Bytes>, StoreError> {
        if !key::is_hash_part(hash_part) {
            return Ok(None);
        }
        let stored = self.inner.objects.get_small(&key::narinfo(hash_part), NARINFO_BYTES_MAX).await?;
        Ok(stored.map(|text| narinfo::with_signatures(self.store_dir(), text, keys)))
    }

    /// Opens the blob of a path, whether it is published yet or not, after comparing its size.
    ///
    /// # Errors
    /// [`StoreError::MissingBlob`] or [`StoreError::DamagedBlob`] name the object.
    pub async fn open_blob(&self, info: &PathInfo) -> Result<BlobReader, StoreError> {
        let key = key::nar(&info.blob.sha256);
        let blob = match self.open_object(&key).await? {
            Some(blob) => Some(blob),
            // See `Store::find_blob`.
            None => self.open_object(&key::nar(&info.nar_hash)).await?,
        };
        let blob = blob.ok_or_else(|| StoreError::MissingBlob { path: info.path.clone(), key: key.to_string() })?;
        let (stated_bytes, found_bytes) = (info.blob.size_bytes, blob.size_bytes());
        if found_bytes != stated_bytes {
            let lie = Box::new(crate::Lie::BlobSize { stated_bytes, found_bytes });
            return Err(StoreError::DamagedBlob { path: info.path.clone(), key: blob.object_key().to_owned(), lie });
        }
        Ok(blob)
    }

    /// Finds the object of a path's blob, and its size. Farms that were made before blobs lay under their own hash have them under
    /// that of their NAR.
    pub(crate) async fn find_blob(&self, info: &PathInfo) -> Result<Option<(Path, u64)>, StoreError> {
        for key in [key::nar(&info.blob.sha256), key::nar(&info.nar_hash)] {
            if let Some(found) = self.inner.objects.head(&key).await? {
                return Ok(Some((key, found.size)));
            }
        }
        Ok(None)
    }

    pub(crate) async fn open_object(&self, key: &Path) -> Result<Option<BlobReader>, StoreError> {
        let Some(object) = self.inner.objects.get(key).await? else {
            return Ok(None);
        };
        let opened = BlobReader::open(object, &self.inner.spool_dir).await;
        opened.map(Some).map_err(|err| StoreError::Object { operation: "read", key: key.to_string(), err })
    }

    /// Starts an upload.
    ///
    /// # Errors
    /// As [`BlobReceiver::new`].
    pub fn receive(&self, stated: PathInfo, provenance: Provenance) -> Result<BlobReceiver, StoreError> {
        BlobReceiver::new(&self.inner.store_dir, &self.inner.spool_dir, stated, provenance)
    }

    /// Makes a shared store a farm's own, by its name and its own key, or refuses a store that is another's: builds are kept by their
    /// number, and what two keys sign no client trusts. A store that knows the farm by another key of the ring, which was or will be
    /// its own, learns the new one.
    ///
    /// # Errors
    /// [`StoreError::OtherFarm`] and [`StoreError::OtherStoreDir`] name both.
    pub async fn belong_to(&self, farm: &str, keys: &Keyring) -> Result<(), StoreError> {
        self.claim().await?;
        let claimed = |key: &PublicKey| format!("{farm}, which signs with {key}");
        let (key, wanted) = (key::farm(), claimed(&keys.own().public()));
        // Two that write at once both read what came last: one of them is refused, or both are of one farm.
        if self.inner.objects.head(&key).await?.is_none() {
            self.inner.objects.put(&key, Bytes::from(wanted.clone())).await?;
        }
        let stored = self.inner.objects.get_small(&key, NARINFO_BYTES_MAX).await?.unwrap_or_default();
        if stored == wanted.as_bytes() {
            return Ok(());
        }
        match keys.known().any(|key| stored == claimed(&key).as_bytes()) {
            true => self.inner.objects.put(&key, Bytes::from(wanted)).await,
            false => Err(StoreError::OtherFarm { found: String::from_utf8_lossy(&stored).into_owned(), wanted }),
        }
    }

    /// Writes `nix-cache-info`, or refuses a store whose paths live elsewhere.
    async fn claim(&self) -> Result<(), StoreError> {
        let key = key::cache_info();
        let Some(stored) = self.inner.objects.get_small(&key, NARINFO_BYTES_MAX).await? else {
            return self.inner.objects.put(&key, self.cache_info().into()).await;
        };
        let text = String::from_utf8_lossy(&stored);
        let found = text.lines().find_map(|line| line.strip_prefix("StoreDir:")).map_or("", str::trim);
        match found == self.inner.store_dir.as_str() {
            true => Ok(()),
            false => Err(StoreError::OtherStoreDir { found: found.to_owned(), wanted: self.inner.store_dir.to_string() }),
        }
    }
}

pub(crate) fn damaged_narinfo(key: &Path, reason: String) -> StoreError {
    StoreError::DamagedNarinfo { key: key.to_string(), reason }
}

/// Reads a derivation whose path must be the one that follows from its bytes.
///
/// # Errors
/// [`StoreError::WrongDerivation`] names the rule that is broken.
pub fn parse_derivation(store_dir: &StoreDir, path: &DrvPath, bytes: &[u8]) -> Result<Derivation, StoreError> {
    check_derivation(store_dir, path, bytes).map_err(|reason| StoreError::WrongDerivation { path: path.clone(), reason })
}

fn check_derivation(store_dir: &StoreDir, path: &DrvPath, bytes: &[u8]) -> Result<Derivation, String> {
    if bytes.len() > DERIVATION_BYTES_MAX {
        return Err(format!("it has {} bytes, at most {DERIVATION_BYTES_MAX} are allowed", bytes.len()));
    }
    let parsed = Derivation::parse(store_dir, path.name(), bytes).map_err(|err| chain(&err))?;
    match path_of_parsed(store_dir, &parsed, bytes) {
        Ok(computed) if computed == *path => Ok(parsed),
        Ok(computed) => Err(format!("its content belongs to `{computed}`")),
        Err(err) => Err(chain(&err)),
    }
}

/// Returns an error with its causes on one line.
pub(crate) fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text.push_str(": ");
        text.push_str(&err.to_string());
        cause = err.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tasks of a coordinator hold these futures; whether they may move between threads shows where they are spawned only.
    #[test]
    fn the_stores_futures_can_be_spawned() {
        fn spawnable<T: Send + 'static>(_: impl FnOnce(Store) -> T) {}
        let key = || Keyring::of(kiln_nix::SecretKey::from_seed("farm-1", [1; 32]).expect("a good name"));
        spawnable(|store| async move { store.missing(&[]).await });
        spawnable(|store| async move { store.missing_derivations(&[]).await });
        spawnable(move |store| async move { store.publish(&[], &key()).await });
        spawnable(|store| async move { store.verify_all().await });
    }
}
