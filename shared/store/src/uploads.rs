//! Uploads that outlive their connection, and the end of an upload from async code.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kiln_wire::{Blake3Hash, PathInfo, Sha256Hash, StorePath};

use crate::error::StoreError;
use crate::keep::INLINE_BYTES_MAX;
use crate::receive::{BlobReceiver, Provenance};
use crate::store::Store;

/// Uploads kept after their connection broke. Each holds a decoder (8 MiB at most for an honest peer) and its spooled bytes.
/// Passing it: the oldest starts again from 0.
const PARKED_MAX: usize = 64;
/// How long such an upload is kept. A peer that comes back later starts again from 0.
const PARKED_FOR: Duration = Duration::from_secs(600);

/// Uploads whose connection broke, by what was being sent.
#[derive(Default)]
pub struct Uploads {
    parked: Mutex<BTreeMap<UploadKey, Parked>>,
}

type UploadKey = (Sha256Hash, Blake3Hash, StorePath);

struct Parked {
    receiver: BlobReceiver,
    since: Instant,
}

impl Uploads {
    /// Goes on with the parked upload of the same statement, or starts one. The offset at which the peer is to begin comes with it.
    ///
    /// # Errors
    /// As [`Store::receive`].
    pub fn begin(&self, store: &Store, stated: &PathInfo, provenance: Provenance, now: Instant) -> Result<(BlobReceiver, u64), StoreError> {
        let parked = {
            let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
            parked.retain(|_, upload| now.saturating_duration_since(upload.since) < PARKED_FOR);
            parked.remove(&upload_key(stated))
        };
        let same = parked.filter(|upload| upload.receiver.stated() == stated && *upload.receiver.provenance() == provenance);
        let mut receiver = match same {
            Some(upload) => upload.receiver,
            None => store.receive(stated.clone(), provenance)?,
        };
        let offset_bytes = receiver.resume();
        Ok((receiver, offset_bytes))
    }

    /// Keeps an upload whose connection broke. One that was refused is dropped: nothing more can come of it.
    pub fn park(&self, receiver: BlobReceiver, now: Instant) {
        if receiver.is_refused() {
            return;
        }
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = parked.iter().min_by_key(|(_, upload)| upload.since).map(|(key, _)| key.clone());
        if let Some(oldest) = oldest.filter(|_| parked.len() >= PARKED_MAX) {
            parked.remove(&oldest);
        }
        parked.insert(upload_key(receiver.stated()), Parked { receiver, since: now });
    }

    /// Returns how many uploads wait for their peer.
    pub fn parked_count(&self) -> usize {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Store {
    /// Ends an upload: checks the whole, stores it durably, and returns the facts that hold (see [`Store::keep`]). Work on large
    /// blobs is done on a blocking thread.
    ///
    /// # Errors
    /// As [`BlobReceiver::finish`] and [`Store::keep`].
    pub async fn finish_upload(&self, receiver: BlobReceiver) -> Result<PathInfo, StoreError> {
        let received = match receiver.stated().nar_size_bytes <= INLINE_BYTES_MAX {
            true => receiver.finish()?,
            false => {
                let finished = tokio::task::spawn_blocking(|| receiver.finish()).await;
                finished.map_err(|err| StoreError::Task { operation: "check an upload", err })??
            }
        };
        self.keep(received).await
    }
}

fn upload_key(stated: &PathInfo) -> UploadKey {
    (stated.nar_hash, stated.blob.blake3, stated.path.clone())
}
