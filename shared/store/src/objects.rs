//! The object store beneath: keys, and writes that are visible all at once or not at all.
//!
//! Everything goes through [`object_store`], so that a local disk, memory and S3 differ in the configuration only. Nothing leans on
//! conditional writes, which not every service has: objects whose key follows from their content are written again without harm.
//! Knows nothing of what the objects mean.

use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload};

use crate::batch;
use crate::error::StoreError;
use crate::s3::S3;
use crate::spool::Spool;

/// Bytes of one part of a large object, and of the largest that is written in one request. S3 allows 10,000 parts of at least 5 MiB:
/// enough for 78 GiB.
const PART_BYTES: usize = 8 << 20;
/// Parts of one object under way at a time: what a fast link to S3 can carry, in 32 MiB of memory.
const PARTS_MAX: usize = 4;
/// Small objects under way at a time where each is a request.
const PUTS_MAX: usize = 64;

/// Where objects lie.
#[derive(Clone, Debug)]
pub(crate) struct Objects {
    inner: Arc<dyn ObjectStore>,
    /// The directory whose files they are, where they are files.
    dir: Option<Arc<FilePath>>,
    /// The same, if its entries must reach the disk in their order.
    durable_dir: Option<Arc<FilePath>>,
}

impl Objects {
    /// Objects as files below `dir`, which is made if absent. With `durable`, a write returns only when it is on stable storage.
    pub(crate) fn local(dir: &FilePath, durable: bool) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(|err| StoreError::Directory { dir: dir.to_owned(), err })?;
        let files = LocalFileSystem::new_with_prefix(dir).map_err(|err| StoreError::Open { location: dir.display().to_string(), err })?;
        Ok(Self { inner: Arc::new(files.with_fsync(durable)), dir: Some(dir.into()), durable_dir: durable.then(|| dir.into()) })
    }

    /// Objects in this process's memory.
    pub(crate) fn memory() -> Self {
        Self { inner: Arc::new(InMemory::new()), dir: None, durable_dir: None }
    }

    /// Objects of somebody else.
    pub(crate) fn given(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, dir: None, durable_dir: None }
    }

    /// Objects in a bucket.
    pub(crate) fn s3(s3: &S3) -> Result<Self, StoreError> {
        let inner = s3.open().map_err(|err| StoreError::Open { location: s3.url(), err })?;
        Ok(Self { inner, dir: None, durable_dir: None })
    }

    /// Returns an object opened for reading, if it exists.
    pub(crate) async fn get(&self, key: &Path) -> Result<Option<GetResult>, StoreError> {
        optional(self.inner.get(key).await).map_err(|err| failed("read", key, err))
    }

    /// Returns a span of an object opened for reading, if the object exists.
    pub(crate) async fn get_range(&self, key: &Path, span: std::ops::Range<u64>) -> Result<Option<GetResult>, StoreError> {
        let options = GetOptions { range: Some(GetRange::Bounded(span)), ..GetOptions::default() };
        optional(self.inner.get_opts(key, options).await).map_err(|err| failed("read", key, err))
    }

    /// Returns a small object's bytes, if it exists.
    ///
    /// # Errors
    /// [`StoreError::Oversize`] if it is larger than `bytes_max`.
    pub(crate) async fn get_small(&self, key: &Path, bytes_max: u64) -> Result<Option<Bytes>, StoreError> {
        let Some(object) = self.get(key).await? else {
            return Ok(None);
        };
        if object.meta.size > bytes_max {
            return Err(StoreError::Oversize { key: key.to_string(), size_bytes: object.meta.size, bytes_max });
        }
        object.bytes().await.map(Some).map_err(|err| failed("read", key, err))
    }

    /// Returns the bytes of many small objects that are files of this machine, in the order asked: none for one that is not there, is larger
    /// than `bytes_max`, or cannot be read, and none where each is a request. Who asks for that one alone gets it, or is told why not.
    pub(crate) async fn get_at_hand(&self, keys: Vec<Path>, bytes_max: u64) -> Result<Vec<Option<Bytes>>, StoreError> {
        let Some(dir) = self.dir.clone() else { return Ok(vec![None; keys.len()]) };
        let read = tokio::task::spawn_blocking(move || keys.iter().map(|key| batch::read(&dir, key, bytes_max)).collect()).await;
        read.map_err(|err| StoreError::Task { operation: "read objects", err })
    }

    /// Returns an object's size and age, if it exists.
    pub(crate) async fn head(&self, key: &Path) -> Result<Option<ObjectMeta>, StoreError> {
        optional(self.inner.head(key).await).map_err(|err| failed("look up", key, err))
    }

    /// Writes an object in place of what was there.
    pub(crate) async fn put(&self, key: &Path, bytes: Bytes) -> Result<(), StoreError> {
        self.inner.put(key, PutPayload::from_bytes(bytes)).await.map(drop).map_err(|err| failed("write", key, err))
    }

    /// Writes many small objects in place of what was there; on an error, any of them may be written.
    pub(crate) async fn put_all(&self, objects: Vec<(Path, Bytes)>) -> Result<(), StoreError> {
        let Some(dir) = self.durable_dir.clone().filter(|_| objects.len() > 1) else {
            let puts = futures::stream::iter(objects).map(|(key, bytes)| {
                let objects = self.clone();
                async move { objects.put(&key, bytes).await }
            });
            return puts.buffer_unordered(PUTS_MAX).try_collect().await;
        };
        let first = objects[0].0.clone();
        let written = tokio::task::spawn_blocking(move || batch::write_all(&dir, &objects)).await;
        let written = written.map_err(|err| StoreError::Task { operation: "write objects", err })?;
        written.map_err(|err| failed("write", &first, generic(err.into())))
    }

    /// Writes spooled bytes in place of what was there; many in parts, which are seen once the last has arrived.
    pub(crate) async fn put_spool(&self, key: &Path, spool: Arc<Spool>) -> Result<(), StoreError> {
        if let Some(bytes) = spool.as_memory() {
            return self.put(key, Bytes::copy_from_slice(bytes)).await;
        }
        if spool.size_bytes() <= PART_BYTES as u64 {
            let bytes = part(spool, 0).await.map_err(|err| failed("write", key, err))?;
            return self.put(key, bytes).await;
        }
        match self.put_large(key, Arc::clone(&spool)).await {
            // The answer to the last request may have been lost: the next try of it finds no upload any more.
            Err(err) if self.head(key).await?.is_some_and(|found| found.size == spool.size_bytes()) => {
                tracing::debug!(%key, error = crate::store::chain(&err), "an object was written although its writing seemed to fail");
                Ok(())
            }
            written => written,
        }
    }

    async fn put_large(&self, key: &Path, spool: Arc<Spool>) -> Result<(), StoreError> {
        let mut upload = self.inner.put_multipart(key).await.map_err(|err| failed("write", key, err))?;
        let written = match put_parts(upload.as_mut(), spool).await {
            Ok(()) => upload.complete().await.map(drop),
            Err(err) => Err(err),
        };
        if written.is_err()
            && let Err(abort) = upload.abort().await
        {
            tracing::debug!(%key, error = %abort, "a half-written object could not be given up");
        }
        written.map_err(|err| failed("write", key, err))
    }

    /// Deletes an object; one that is not there is gone too. Not durable before [`Objects::sync`].
    pub(crate) async fn delete(&self, key: &Path) -> Result<(), StoreError> {
        optional(self.inner.delete(key).await).map(drop).map_err(|err| failed("delete", key, err))
    }

    /// Waits until deletions at the top are on stable storage, where that is asked for.
    pub(crate) async fn sync(&self) -> Result<(), StoreError> {
        let Some(dir) = self.durable_dir.clone() else { return Ok(()) };
        let synced = tokio::task::spawn_blocking(move || std::fs::File::open(&*dir).and_then(|dir| dir.sync_all())).await;
        let synced = synced.map_err(|err| StoreError::Task { operation: "sync the store's directory", err })?;
        synced.map_err(|err| failed("delete", &Path::default(), generic(err.into())))
    }

    /// Lists all objects, or those somewhere below a prefix, as they come: a bucket gives them a page at a time.
    pub(crate) fn walk(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta, StoreError>> {
        let at = prefix.cloned().unwrap_or_default();
        self.inner.list(prefix).map(move |listed| listed.map_err(|err| failed("list", &at, err))).boxed()
    }

    /// Lists the objects directly below a prefix (none: the root), by key.
    pub(crate) async fn list(&self, prefix: Option<&Path>) -> Result<Vec<ObjectMeta>, StoreError> {
        let listed = self.inner.list_with_delimiter(prefix).await;
        let mut objects = listed.map_err(|err| failed("list", prefix.unwrap_or(&Path::default()), err))?.objects;
        objects.sort_by(|a, b| a.location.cmp(&b.location));
        Ok(objects)
    }
}

async fn put_parts(upload: &mut dyn MultipartUpload, spool: Arc<Spool>) -> Result<(), object_store::Error> {
    let mut under_way = FuturesUnordered::new();
    let mut offset_bytes = 0;
    while offset_bytes < spool.size_bytes() {
        let bytes = part(Arc::clone(&spool), offset_bytes).await?;
        offset_bytes += bytes.len() as u64;
        under_way.push(upload.put_part(PutPayload::from_bytes(bytes)));
        if under_way.len() >= PARTS_MAX {
            under_way.next().await.transpose()?;
        }
    }
    while under_way.next().await.transpose()?.is_some() {}
    Ok(())
}

async fn part(spool: Arc<Spool>, offset_bytes: u64) -> Result<Bytes, object_store::Error> {
    let read = tokio::task::spawn_blocking(move || read_part(&spool, offset_bytes)).await;
    read.map_err(|err| generic(err.into()))?.map_err(|err| generic(err.into()))
}

fn read_part(spool: &Spool, offset_bytes: u64) -> std::io::Result<Bytes> {
    let left = usize::try_from(spool.size_bytes() - offset_bytes).unwrap_or(PART_BYTES);
    let mut part = vec![0; left.min(PART_BYTES)];
    let mut have = 0;
    while have < part.len() {
        match spool.read_at(&mut part[have..], offset_bytes + have as u64)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => have += count,
        }
    }
    Ok(part.into())
}

fn generic(source: Box<dyn std::error::Error + Send + Sync>) -> object_store::Error {
    object_store::Error::Generic { store: "spool", source }
}

fn failed(operation: &'static str, key: &Path, err: object_store::Error) -> StoreError {
    StoreError::Object { operation, key: key.to_string(), err }
}

fn optional<T>(result: Result<T, object_store::Error>) -> Result<Option<T>, object_store::Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(err) => Err(err),
    }
}
