//! Uploads that outlive their connection, and the end of an upload from async code.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kiln_wire::{Blake3Hash, PathInfo, Sha256Hash, StorePath};

use crate::error::StoreError;
use crate::keep::off_thread;
use crate::receive::{BlobReceiver, Provenance, Received};
use crate::store::Store;

/// Uploads kept after their connection broke. Each holds a decoder (8 MiB at most for an honest peer) and its spooled bytes.
/// Passing it: the oldest starts again from 0.
const PARKED_MAX: usize = 64;
/// How long such an upload is kept. A peer that comes back later starts again from 0.
const PARKED_FOR: Duration = Duration::from_secs(600);

/// Uploads whose connection broke or whose store was away, by what was being sent.
#[derive(Default)]
pub struct Uploads {
    parked: Mutex<BTreeMap<UploadKey, Parked>>,
}

/// How an upload goes on.
pub enum Begun {
    /// The peer is to send from this offset on.
    Receive(Box<BlobReceiver>, u64),
    /// Everything arrived and was checked before; only the store did not take it.
    Complete(Box<Received>),
}

type UploadKey = (Sha256Hash, Blake3Hash, StorePath);

struct Parked {
    upload: Upload,
    since: Instant,
}

enum Upload {
    Partial(Box<BlobReceiver>),
    Complete(Box<Received>),
}

impl Upload {
    fn stated(&self) -> &PathInfo {
        match self {
            Self::Partial(receiver) => receiver.stated(),
            Self::Complete(received) => &received.info,
        }
    }

    fn provenance(&self) -> &Provenance {
        match self {
            Self::Partial(receiver) => receiver.provenance(),
            Self::Complete(received) => &received.provenance,
        }
    }
}

impl Uploads {
    /// Goes on with the parked upload of the same statement, or starts one.
    ///
    /// # Errors
    /// As [`Store::receive`].
    pub fn begin(&self, store: &Store, stated: &PathInfo, provenance: Provenance, now: Instant) -> Result<Begun, StoreError> {
        let parked = {
            let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
            parked.retain(|_, upload| now.saturating_duration_since(upload.since) < PARKED_FOR);
            parked.remove(&upload_key(stated))
        };
        let same = parked.map(|parked| parked.upload).filter(|upload| upload.stated() == stated && *upload.provenance() == provenance);
        let mut receiver = match same {
            Some(Upload::Complete(received)) => return Ok(Begun::Complete(received)),
            Some(Upload::Partial(receiver)) => receiver,
            None => Box::new(store.receive(stated.clone(), provenance)?),
        };
        let offset_bytes = receiver.resume();
        Ok(Begun::Receive(receiver, offset_bytes))
    }

    /// Keeps an upload whose connection broke. One that was refused is dropped: nothing more can come of it.
    pub fn park(&self, receiver: BlobReceiver, now: Instant) {
        if !receiver.is_refused() {
            self.insert(Upload::Partial(Box::new(receiver)), now);
        }
    }

    /// Keeps an upload that is complete and that the store did not take, so that its bytes need not come again.
    pub fn park_complete(&self, received: Box<Received>, now: Instant) {
        self.insert(Upload::Complete(received), now);
    }

    fn insert(&self, upload: Upload, now: Instant) {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = parked.iter().min_by_key(|(_, upload)| upload.since).map(|(key, _)| key.clone());
        if let Some(oldest) = oldest.filter(|_| parked.len() >= PARKED_MAX) {
            parked.remove(&oldest);
        }
        parked.insert(upload_key(upload.stated()), Parked { upload, since: now });
    }

    /// Returns how many uploads wait for their peer.
    pub fn parked_count(&self) -> usize {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Store {
    /// Ends an upload: checks the whole and stores it durably.
    ///
    /// # Errors
    /// As [`BlobReceiver::finish`] and [`Store::keep`].
    pub async fn finish_upload(&self, receiver: BlobReceiver) -> Result<PathInfo, StoreError> {
        self.keep(&self.check_upload(receiver).await?).await
    }

    /// Checks the whole of an upload. Work on large blobs is done on a blocking thread.
    ///
    /// # Errors
    /// As [`BlobReceiver::finish`].
    pub async fn check_upload(&self, receiver: BlobReceiver) -> Result<Received, StoreError> {
        let nar_size_bytes = receiver.stated().nar_size_bytes;
        off_thread(nar_size_bytes, "check an upload", || receiver.finish()).await?
    }
}

fn upload_key(stated: &PathInfo) -> UploadKey {
    (stated.nar_hash, stated.blob.blake3, stated.path.clone())
}
