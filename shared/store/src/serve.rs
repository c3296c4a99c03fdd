//! Blobs as HTTP asks for them: by file name, whole or in part.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

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
