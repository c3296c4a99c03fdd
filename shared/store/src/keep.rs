//! Storing verified blobs, once.
//!
//! Invariant: the facts that leave this module describe the bytes that are stored. Where two producers compressed the same NAR
//! differently, the bytes that came first stay, and both get the facts of those.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kiln_wire::PathInfo;

use crate::blob::BlobReader;
use crate::error::StoreError;
use crate::inspect::{Facts, Inspector};
use crate::key;
use crate::lie::Lie;
use crate::objects::Put;
use crate::receive::{Provenance, Received, candidates, check_content, check_statement};
use crate::spool::Spool;
use crate::store::Store;

/// Blobs of at most this size, holding NARs of at most as much, are worked on where they are: a change of threads costs more.
pub(crate) const INLINE_BYTES_MAX: u64 = 256 << 10;

impl Store {
    /// Stores a verified blob. When this returns, it is durable, and readable by its NAR hash; its path is not valid before it is
    /// published. Returns the facts that hold: those of the stored bytes.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails; nothing is visible then.
    pub async fn keep(&self, received: Received) -> Result<PathInfo, StoreError> {
        let Received { info, provenance, spool } = received;
        let spool = Arc::new(spool);
        if self.put_blob(&info, &spool).await? == Put::Existed {
            if let Some(info) = self.adopt(&info, &provenance).await? {
                return Ok(info);
            }
            self.replace_blob(&info, &spool).await?;
        }
        self.inner.received_bytes.fetch_add(info.blob.size_bytes, Ordering::Relaxed);
        Ok(info)
    }

    /// Looks whether the NAR of `stated` is stored already, so that it need not be sent. Then everything stated is checked against
    /// the stored bytes, as if they had just arrived, and the facts that hold are returned. `None`: it must be sent (also where the
    /// stored bytes are damaged, which is logged).
    ///
    /// # Errors
    /// [`StoreError::Refused`] if the statement is wrong, [`StoreError::Object`] if the store fails.
    pub async fn adopt(&self, stated: &PathInfo, provenance: &Provenance) -> Result<Option<PathInfo>, StoreError> {
        let refuse = |lie| StoreError::refused(stated, lie);
        check_statement(self.store_dir(), stated, provenance).map_err(refuse)?;
        let key = key::nar(&stated.nar_hash);
        let Some(blob) = self.open_object(&key).await? else {
            return Ok(None);
        };
        let blob = Arc::new(blob);
        let facts = match self.inspect(Arc::clone(&blob), stated.nar_size_bytes, provenance).await? {
            Ok(facts) if facts.nar_hash == stated.nar_hash => facts,
            Ok(facts) => {
                tracing::warn!(%key, found = %facts.nar_hash, "a stored NAR is damaged: it has another hash");
                return Ok(None);
            }
            // The peer may have stated a size that is too small, in which case an upload will tell.
            Err(lie) => {
                tracing::warn!(%key, error = crate::store::chain(&lie), "a stored NAR is damaged, or its stated size is wrong");
                return Ok(None);
            }
        };
        facts.check_nar(stated).map_err(refuse)?;
        let (store, described) = (self.clone(), stated.clone());
        let content = tokio::task::spawn_blocking(move || check_content(store.store_dir(), &described, || blob.reader()));
        content.await.map_err(|err| StoreError::Task { operation: "check content", err })?.map_err(refuse)?;
        Ok(Some(PathInfo { blob: facts.blob, ..stated.clone() }))
    }

    /// Finds the facts of a stored blob.
    pub(crate) async fn inspect(
        &self,
        blob: Arc<BlobReader>,
        nar_size_bytes: u64,
        provenance: &Provenance,
    ) -> Result<Result<Facts, Lie>, StoreError> {
        let candidates = candidates(provenance);
        let pass = tokio::task::spawn_blocking(move || {
            let inspector = Inspector::new(nar_size_bytes, candidates.as_ref()).map_err(Read::Lie)?;
            inspect_blob(&blob, inspector)
        });
        match pass.await.map_err(|err| StoreError::Task { operation: "inspect a stored NAR", err })? {
            Ok(facts) => Ok(Ok(facts)),
            Err(Read::Lie(lie)) => Ok(Err(lie)),
            Err(Read::Io { key, err }) => {
                let err = object_store::Error::Generic { store: "blob", source: err.into() };
                Err(StoreError::Object { operation: "read", key, err })
            }
        }
    }

    async fn put_blob(&self, info: &PathInfo, spool: &Arc<Spool>) -> Result<Put, StoreError> {
        let key = key::nar(&info.nar_hash);
        match spool.as_memory() {
            Some(bytes) => self.inner.objects.put_new(&key, bytes::Bytes::copy_from_slice(bytes)).await,
            None => {
                let staging = key::staging(&info.nar_hash, &unique());
                self.inner.objects.put_new_large(&staging, &key, Arc::clone(spool)).await
            }
        }
    }

    async fn replace_blob(&self, info: &PathInfo, spool: &Arc<Spool>) -> Result<(), StoreError> {
        let key = key::nar(&info.nar_hash);
        match spool.as_memory() {
            Some(bytes) => self.inner.objects.put_over(&key, bytes::Bytes::copy_from_slice(bytes)).await,
            None => self.inner.objects.put_large(&key, Arc::clone(spool)).await,
        }
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

/// Returns a text that no other upload of this or another live process has.
fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("{}-{now}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}
