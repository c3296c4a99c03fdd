//! Records of the farm's past beside its paths: logs of ended attempts and ended builds, for every coordinator to show.
//!
//! An attempt's or a build's number is given once in a farm's life, so that a key is written with the same content whoever writes it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::Bytes;
use kiln_wire::limits::LOG_BYTES_MAX;
use kiln_wire::{AttemptId, BuildId, DrvPath, Timestamp};

use crate::blob::BlobBytes;
use crate::error::StoreError;
use crate::keep::off_thread;
use crate::key;
use crate::spool::Spool;
use crate::store::Store;

/// How logs are compressed: they are text that is written once and seldom read.
const LEVEL: i32 = 3;
/// Bytes of an ended build's record at most: one of a million jobs has less.
const BUILD_BYTES_MAX: u64 = 1 << 30;

impl Store {
    /// Keeps the whole log of an ended attempt, from its file. Doing it twice is harmless.
    ///
    /// # Errors
    /// [`StoreError::Log`] if the file cannot be read, [`StoreError::Object`] if the store fails.
    pub async fn put_log(&self, derivation: &DrvPath, attempt: AttemptId, file: File) -> Result<(), StoreError> {
        let spool_dir = self.spool_dir().to_owned();
        let read = |err| StoreError::Log { operation: "read", derivation: derivation.clone(), err };
        let size_bytes = file.metadata().map_err(read)?.len();
        let packed = off_thread(size_bytes, "pack a log", move || pack(file, &spool_dir)).await?;
        let spool = packed.map_err(|err| StoreError::Log { operation: "pack", derivation: derivation.clone(), err })?;
        self.inner.objects.put_spool(&key::log(derivation, attempt), Arc::new(spool)).await
    }

    /// Returns the log of an ended attempt. `None`: the store does not have it.
    ///
    /// # Errors
    /// [`StoreError::Log`] if it is damaged, [`StoreError::Object`] if the store fails.
    pub async fn log(&self, derivation: &DrvPath, attempt: AttemptId) -> Result<Option<BlobBytes>, StoreError> {
        let Some(packed) = self.open_object(&key::log(derivation, attempt)).await? else {
            return Ok(None);
        };
        let spool_dir = self.spool_dir().to_owned();
        // Text is packed to a tenth or less.
        let size_bytes = packed.size_bytes().saturating_mul(16);
        let unpacked = off_thread(size_bytes, "unpack a log", move || unpack(packed.reader(), &spool_dir)).await?;
        unpacked.map(Some).map_err(|err| StoreError::Log { operation: "unpack", derivation: derivation.clone(), err })
    }

    /// Returns whether the store has the log of an attempt.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn has_log(&self, derivation: &DrvPath, attempt: AttemptId) -> Result<bool, StoreError> {
        Ok(self.inner.objects.head(&key::log(derivation, attempt)).await?.is_some())
    }

    /// Returns the latest attempt whose log the store has.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn latest_log(&self, derivation: &DrvPath) -> Result<Option<AttemptId>, StoreError> {
        let listed = self.inner.objects.list(Some(&key::log_dir(derivation))).await?;
        let attempts = listed.iter().filter_map(|object| key::log_attempt(object.location.filename()?));
        Ok(attempts.max())
    }

    /// Returns the logs that were written before a moment, as the store's clock has it.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn logs_before(&self, before: Timestamp) -> Result<Vec<(DrvPath, AttemptId)>, StoreError> {
        let listed = self.inner.objects.list(Some(&key::logs_dir())).await?;
        let old =
            |object: &&object_store::ObjectMeta| object.last_modified.timestamp_millis() < i64::try_from(before.0).unwrap_or(i64::MAX);
        let log = |object: &object_store::ObjectMeta| {
            let mut parts = object.location.parts().skip(1);
            let derivation = DrvPath::parse(parts.next()?.as_ref()).ok()?;
            Some((derivation, key::log_attempt(parts.next()?.as_ref())?))
        };
        Ok(listed.iter().filter(old).filter_map(log).collect())
    }

    /// Deletes the log of an attempt; one that is not there is gone already.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn delete_log(&self, derivation: &DrvPath, attempt: AttemptId) -> Result<(), StoreError> {
        self.inner.objects.delete(&key::log(derivation, attempt)).await
    }

    /// Keeps the record of an ended build. Doing it twice is harmless.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn put_build(&self, build: BuildId, record: Bytes) -> Result<(), StoreError> {
        let spool_dir = self.spool_dir().to_owned();
        let spooled = off_thread(record.len() as u64, "spool a build", move || {
            let mut spool = Spool::new(&spool_dir);
            spool.write_all(&record).map(|()| spool)
        });
        let spooled = spooled.await?;
        let key = key::build(build);
        let failed = |err: io::Error| object_store::Error::Generic { store: "spool", source: err.into() };
        let spool = spooled.map_err(|err| StoreError::Object { operation: "write", key: key.to_string(), err: failed(err) })?;
        self.inner.objects.put_spool(&key, Arc::new(spool)).await
    }

    /// Returns the record of an ended build. `None`: the store does not have it.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn build(&self, build: BuildId) -> Result<Option<Bytes>, StoreError> {
        self.inner.objects.get_small(&key::build(build), BUILD_BYTES_MAX).await
    }

    /// Returns the builds whose records the store has, in their order.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn builds(&self) -> Result<Vec<BuildId>, StoreError> {
        let listed = self.inner.objects.list(Some(&key::build_dir())).await?;
        let mut builds: Vec<BuildId> = listed.iter().filter_map(|object| key::build_number(object.location.filename()?)).collect();
        builds.sort();
        Ok(builds)
    }

    /// Returns whether the store has the record of a build.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn has_build(&self, build: BuildId) -> Result<bool, StoreError> {
        Ok(self.inner.objects.head(&key::build(build)).await?.is_some())
    }
}

fn pack(file: File, spool_dir: &FilePath) -> io::Result<Spool> {
    let mut packer = zstd::Encoder::new(Spool::new(spool_dir), LEVEL)?;
    io::copy(&mut file.take(LOG_BYTES_MAX), &mut packer)?;
    packer.finish()
}

/// The store's bytes are not trusted to be small.
fn unpack(packed: impl Read, spool_dir: &FilePath) -> io::Result<BlobBytes> {
    let mut spool = Spool::new(spool_dir);
    io::copy(&mut zstd::Decoder::new(packed)?.take(LOG_BYTES_MAX), &mut spool)?;
    Ok(spool.into_bytes())
}
