//! Notes: small objects in which the farm keeps what it must know about its store itself, beside what it is about, so that whatever
//! survives the loss of a machine has them with it: pins, roots of clients, what is being deleted.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use kiln_wire::Timestamp;

use crate::error::StoreError;
use crate::key;
use crate::store::Store;

/// A note that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What it says.
    pub bytes: Bytes,
    /// When it was written.
    pub at: Timestamp,
}

/// Bytes of a note at most: a hundred thousand paths.
const NOTE_BYTES_MAX: u64 = 16 << 20;
/// Notes that are read at a time.
const READS_MAX: usize = 16;

impl Store {
    /// Writes a note of a kind under a name, in place of what was there.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails, [`StoreError::Oversize`] if the note is too long.
    pub async fn put_note(&self, kind: &str, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        let key = key::note(kind, name);
        if bytes.len() as u64 > NOTE_BYTES_MAX {
            return Err(StoreError::Oversize { key: key.to_string(), size_bytes: bytes.len() as u64, bytes_max: NOTE_BYTES_MAX });
        }
        self.inner.objects.put(&key, bytes).await
    }

    /// Returns a note, if it is there.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn note(&self, kind: &str, name: &str) -> Result<Option<Bytes>, StoreError> {
        self.inner.objects.get_small(&key::note(kind, name), NOTE_BYTES_MAX).await
    }

    /// Returns every note of a kind.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn notes(&self, kind: &str) -> Result<Vec<Note>, StoreError> {
        let listed = self.inner.objects.list(Some(&key::note_dir(kind))).await?;
        let reads = futures::stream::iter(listed).map(|object| async move {
            let at = Timestamp(u64::try_from(object.last_modified.timestamp_millis()).unwrap_or_default());
            let read = self.inner.objects.get_small(&object.location, NOTE_BYTES_MAX).await?;
            Ok(read.map(|bytes| Note { bytes, at }))
        });
        let found: Vec<Option<Note>> = reads.buffered(READS_MAX).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Deletes a note; one that is not there is gone too.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn delete_note(&self, kind: &str, name: &str) -> Result<(), StoreError> {
        self.inner.objects.delete(&key::note(kind, name)).await
    }
}
