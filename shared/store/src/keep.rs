//! Storing verified blobs.
//!
//! Invariant: an object's key is the hash of its bytes, so that it is never overwritten by others. Where two producers compressed the
//! same NAR differently, both their blobs are kept, and each has its own facts.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kiln_wire::PathInfo;

use crate::blob::BlobReader;
use crate::error::StoreError;
use crate::inspect::{Facts, Inspector};
use crate::key;
use crate::lie::Lie;
use crate::receive::{Provenance, Received, candidates, check_content, check_statement};
use crate::store::Store;

/// Blobs of at most this size, holding NARs of at most as much, are worked on where they are: a change of threads costs more.
const INLINE_BYTES_MAX: u64 = 256 << 10;

impl Store {
    /// Stores a verified blob. When this returns, it is durable, and readable by its hash; its path is not valid before it is
    /// published. Doing it twice is harmless. Returns the facts.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails; nothing is visible then, and what was received can be stored later.
    pub async fn keep(&self, received: &Received) -> Result<PathInfo, StoreError> {
        let info = self.keep_uncounted(received).await?;
        self.inner.received_bytes.fetch_add(info.blob.size_bytes, Ordering::Relaxed);
        Ok(info)
    }

    /// As [`Store::keep`], of what a worker made: its bytes are counted apart.
    ///
    /// # Errors
    /// As [`Store::keep`].
    pub async fn keep_made(&self, received: &Received) -> Result<PathInfo, StoreError> {
        let info = self.keep_uncounted(received).await?;
        self.inner.made_bytes.fetch_add(info.blob.size_bytes, Ordering::Relaxed);
        Ok(info)
    }

    async fn keep_uncounted(&self, received: &Received) -> Result<PathInfo, StoreError> {
        let info = &received.info;
        // Also where there is such an object already: its bytes may be damaged, these are not.
        self.inner.objects.put_spool(&key::nar(&info.blob.sha256), Arc::clone(&received.spool)).await?;
        // What only its content vouches for could say of any program that its debugging information is there.
        if let Provenance::Built { .. } = received.provenance {
            self.remember_debug(&info.blob.sha256, &received.build_ids);
        }
        Ok(info.clone())
    }

    /// Looks whether the blob of `stated` is stored already, so that it need not be sent. Then everything stated is checked against
    /// the stored bytes, as if they had just arrived, and the facts that hold are returned. `None`: it must be sent (also where the
    /// stored bytes are damaged, which is logged).
    ///
    /// # Errors
    /// [`StoreError::Refused`] if the statement is wrong, [`StoreError::Object`] if the store fails.
    pub async fn adopt(&self, stated: &PathInfo, provenance: &Provenance) -> Result<Option<PathInfo>, StoreError> {
        let refuse = |lie| StoreError::refused(stated, lie);
        check_statement(self.store_dir(), stated, provenance).map_err(refuse)?;
        let key = key::nar(&stated.blob.sha256);
        let Some(blob) = self.open_object(&key).await? else {
            return Ok(None);
        };
        let blob = Arc::new(blob);
        let facts = match self.inspect(Arc::clone(&blob), stated.nar_size_bytes, provenance).await? {
            Ok(facts) if facts.blob.sha256 == stated.blob.sha256 => facts,
            Ok(facts) => {
                tracing::warn!(%key, found = %facts.blob.sha256, "a stored NAR is damaged: its bytes have another hash");
                return Ok(None);
            }
            // The peer may have stated a size that is too small, in which case an upload will tell.
            Err(lie) => {
                tracing::warn!(%key, error = crate::store::chain(&lie), "a stored NAR is damaged, or its stated size is wrong");
                return Ok(None);
            }
        };
        facts.check_blob(&stated.blob).and_then(|()| facts.check_nar(stated)).map_err(refuse)?;
        let (store, described) = (self.clone(), stated.clone());
        let check = move || check_content(store.store_dir(), &described, || blob.reader());
        off_thread(stated.nar_size_bytes, "check content", check).await?.map_err(refuse)?;
        Ok(Some(stated.clone()))
    }

    /// Finds the facts of a stored blob.
    pub(crate) async fn inspect(
        &self,
        blob: Arc<BlobReader>,
        nar_size_bytes: u64,
        provenance: &Provenance,
    ) -> Result<Result<Facts, Lie>, StoreError> {
        let candidates = candidates(provenance);
        let pass = move || {
            let inspector = Inspector::new(nar_size_bytes, candidates.as_ref()).map_err(Read::Lie)?;
            inspect_blob(&blob, inspector)
        };
        match off_thread(nar_size_bytes, "inspect a stored NAR", pass).await? {
            Ok(facts) => Ok(Ok(facts)),
            Err(Read::Lie(lie)) => Ok(Err(lie)),
            Err(Read::Io { key, err }) => {
                let err = object_store::Error::Generic { store: "blob", source: err.into() };
                Err(StoreError::Object { operation: "read", key, err })
            }
        }
    }
}

/// Does work on a NAR: on a blocking thread, unless handing a small one over would take longer than the work.
pub(crate) async fn off_thread<T: Send + 'static>(
    nar_size_bytes: u64,
    operation: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    match nar_size_bytes <= INLINE_BYTES_MAX {
        true => Ok(work()),
        false => tokio::task::spawn_blocking(work).await.map_err(|err| StoreError::Task { operation, err }),
    }
}

enum Read {
    Lie(Lie),
    Io { key: String, err: std::io::Error },
}

/// Bytes of a stored blob that are read at a time.
const READ_BYTES: usize = 256 << 10;

fn inspect_blob(blob: &BlobReader, mut inspector: Inspector) -> Result<Facts, Read> {
    let mut buffer = vec![0; READ_BYTES];
    let mut offset_bytes = 0;
    loop {
        let failed = |err| Read::Io { key: blob.object_key().to_owned(), err };
        match blob.read_at(&mut buffer, offset_bytes).map_err(failed)? {
            0 => return inspector.finish().map_err(Read::Lie),
            count => {
                inspector.feed(&buffer[..count]).map_err(Read::Lie)?;
                offset_bytes += count as u64;
            }
        }
    }
}
