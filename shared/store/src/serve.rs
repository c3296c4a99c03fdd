//! Blobs as HTTP asks for them: by file name, whole or in part.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use kiln_nix::hash::nix32;
use kiln_wire::Sha256Hash;

use crate::blob::BlobReader;
use crate::error::StoreError;
use crate::key;
use crate::store::Store;

impl Store {
    /// Returns the size of the blob with this file name (`<hash>.nar.zst`). `None`: there is no such blob, or the text is no such name.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn nar_file_size(&self, file_name: &str) -> Result<Option<u64>, StoreError> {
        match key::nar_file(file_name) {
            Some(key) => Ok(self.inner.objects.head(&key).await?.map(|found| found.size)),
            None => Ok(None),
        }
    }

    /// Returns whether a blob is there.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn has_blob(&self, sha256: &Sha256Hash) -> Result<bool, StoreError> {
        Ok(self.inner.objects.head(&key::nar(sha256)).await?.is_some())
    }

    /// Opens the blob with this file name (`<hash>.nar.zst`). `None`: there is no such blob, or the text is no such name.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn open_nar_file(&self, file_name: &str) -> Result<Option<BlobReader>, StoreError> {
        match key::nar_file(file_name) {
            Some(key) => self.open_object(&key).await,
            None => Ok(None),
        }
    }

    /// Returns the file name of the blob that a client asks for by the hash of another file: of one that it uploaded. A blob's own hash
    /// is as good. `None`: there is no such blob, or the text is no such hash.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn blob_file(&self, file_hash: &str) -> Result<Option<String>, StoreError> {
        let Some(uploaded) = key::uploaded(file_hash) else { return Ok(None) };
        let own = format!("{file_hash}.nar.zst");
        if self.nar_file_size(&own).await?.is_some() {
            return Ok(Some(own));
        }
        let Some(text) = self.inner.objects.get_small(&uploaded, 64).await? else { return Ok(None) };
        let Some(hash) = std::str::from_utf8(&text).ok().filter(|hash| key::is_sha256(hash)) else { return Ok(None) };
        // The note may outlive the blob, and whoever is told that it is here does not send it.
        let noted = format!("{hash}.nar.zst");
        Ok(self.nar_file_size(&noted).await?.map(|_| noted))
    }

    /// Notes which blob a file became that a client uploaded: the client may ask for it by that name. What is no hash is not noted.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn note_uploaded(&self, file_hash: &str, blob: &Sha256Hash) -> Result<(), StoreError> {
        match key::uploaded(file_hash) {
            Some(key) => self.inner.objects.put(&key, nix32(&blob.0).into()).await,
            None => Ok(()),
        }
    }

    /// Streams a span of the blob with this file name, which need not be on this machine. `None` as with [`Store::open_nar_file`].
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails; what fails later ends the stream.
    pub async fn stream_nar_file(
        &self,
        file_name: &str,
        span: Range<u64>,
    ) -> Result<Option<BoxStream<'static, io::Result<Bytes>>>, StoreError> {
        let Some(key) = key::nar_file(file_name) else { return Ok(None) };
        let found = self.inner.objects.get_range(&key, span).await?;
        Ok(found.map(|object| object.into_stream().map_err(io::Error::from).boxed()))
    }
}
