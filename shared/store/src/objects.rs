//! The object store beneath: keys, and writes that are visible all at once or not at all.
//!
//! Everything goes through [`object_store`], so that a local disk, memory and S3 differ in the configuration only. Knows nothing of
//! what the objects mean.

use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{GetResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use crate::error::StoreError;
use crate::spool::Spool;

/// Bytes of one part of a large object. S3 allows 10,000 parts of at least 5 MiB: enough for 78 GiB.
const PART_BYTES: usize = 8 << 20;

/// Where objects lie.
#[derive(Clone, Debug)]
pub(crate) struct Objects {
    inner: Arc<dyn ObjectStore>,
}

/// What became of a write-once write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// The object is new.
    Written,
    /// An object of that key was there and is kept.
    Existed,
}

impl Objects {
    /// Objects as files below `dir`, which is made if absent. With `durable`, a write returns only when it is on stable storage.
    pub(crate) fn local(dir: &FilePath, durable: bool) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(|err| StoreError::Directory { dir: dir.to_owned(), err })?;
        let files = LocalFileSystem::new_with_prefix(dir).map_err(|err| StoreError::Open { location: dir.display().to_string(), err })?;
        Ok(Self { inner: Arc::new(files.with_fsync(durable)) })
    }

    /// Objects in this process's memory.
    pub(crate) fn memory() -> Self {
        Self { inner: Arc::new(InMemory::new()) }
    }

    /// Returns an object opened for reading, if it exists.
    pub(crate) async fn get(&self, key: &Path) -> Result<Option<GetResult>, StoreError> {
        optional(self.inner.get(key).await).map_err(|err| StoreError::Object { operation: "read", key: key.to_string(), err })
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
        object.bytes().await.map(Some).map_err(|err| StoreError::Object { operation: "read", key: key.to_string(), err })
    }

    /// Returns an object's size and age, if it exists.
    pub(crate) async fn head(&self, key: &Path) -> Result<Option<ObjectMeta>, StoreError> {
        optional(self.inner.head(key).await).map_err(|err| StoreError::Object { operation: "look up", key: key.to_string(), err })
    }

    /// Writes an object unless one of that key exists.
    pub(crate) async fn put_new(&self, key: &Path, bytes: Bytes) -> Result<Put, StoreError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        written(self.inner.put_opts(key, PutPayload::from_bytes(bytes), options).await.map(drop), key)
    }

    /// Writes an object in place of what was there.
    pub(crate) async fn put_over(&self, key: &Path, bytes: Bytes) -> Result<(), StoreError> {
        let options = PutOptions { mode: PutMode::Overwrite, ..PutOptions::default() };
        let result = self.inner.put_opts(key, PutPayload::from_bytes(bytes), options).await;
        result.map(drop).map_err(|err| StoreError::Object { operation: "write", key: key.to_string(), err })
    }

    /// Writes a large object unless one of that key exists. It is put together under `staging` first.
    pub(crate) async fn put_new_large(&self, staging: &Path, key: &Path, spool: Arc<Spool>) -> Result<Put, StoreError> {
        self.put_large(staging, spool).await?;
        let result = written(self.inner.rename_if_not_exists(staging, key).await, key);
        if !matches!(result, Ok(Put::Written)) {
            self.delete(staging).await?;
        }
        result
    }

    /// Writes a large object in place of what was there.
    pub(crate) async fn put_large(&self, key: &Path, spool: Arc<Spool>) -> Result<(), StoreError> {
        let failed = |err| StoreError::Object { operation: "write", key: key.to_string(), err };
        let mut upload = self.inner.put_multipart(key).await.map_err(failed)?;
        match put_parts(upload.as_mut(), spool).await {
            Ok(()) => upload.complete().await.map(drop).map_err(failed),
            Err(err) => {
                if let Err(abort) = upload.abort().await {
                    tracing::warn!(key = %key, error = %abort, "a half-written object could not be given up");
                }
                Err(failed(err))
            }
        }
    }

    /// Deletes an object; one that is absent is fine.
    pub(crate) async fn delete(&self, key: &Path) -> Result<(), StoreError> {
        let result = optional(self.inner.delete(key).await);
        result.map(drop).map_err(|err| StoreError::Object { operation: "delete", key: key.to_string(), err })
    }

    /// Lists the objects directly below a prefix (none: the root), by key.
    pub(crate) async fn list(&self, prefix: Option<&Path>) -> Result<Vec<ObjectMeta>, StoreError> {
        let listed = self.inner.list_with_delimiter(prefix).await.map_err(|err| StoreError::Object {
            operation: "list",
            key: prefix.map(Path::to_string).unwrap_or_default(),
            err,
        })?;
        let mut objects = listed.objects;
        objects.sort_by(|a, b| a.location.cmp(&b.location));
        Ok(objects)
    }
}

async fn put_parts(upload: &mut dyn MultipartUpload, spool: Arc<Spool>) -> Result<(), object_store::Error> {
    let mut offset_bytes = 0;
    while offset_bytes < spool.size_bytes() {
        let source = Arc::clone(&spool);
        let read = tokio::task::spawn_blocking(move || read_part(&source, offset_bytes)).await;
        let part = read.map_err(|err| generic(err.into()))?.map_err(|err| generic(err.into()))?;
        offset_bytes += part.len() as u64;
        upload.put_part(PutPayload::from_bytes(part)).await?;
    }
    Ok(())
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

fn written(result: Result<(), object_store::Error>, key: &Path) -> Result<Put, StoreError> {
    match result {
        Ok(()) => Ok(Put::Written),
        Err(object_store::Error::AlreadyExists { .. }) => Ok(Put::Existed),
        Err(err) => Err(StoreError::Object { operation: "write", key: key.to_string(), err }),
    }
}

fn optional<T>(result: Result<T, object_store::Error>) -> Result<Option<T>, object_store::Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(err) => Err(err),
    }
}
