//! Publishing: the step that makes a path valid.

use std::sync::Arc;

use bytes::Bytes;
use kiln_nix::sign::SecretKey;
use kiln_wire::PathInfo;

use crate::error::StoreError;
use crate::store::Store;
use crate::{Lie, key, narinfo};

impl Store {
    /// Publishes a path: writes its signed narinfo, durably. Doing it twice is harmless. The caller has made sure that the farm
    /// committed the path, or that it follows from its content; of a set that refers to each other, what is referred to goes first.
    ///
    /// # Errors
    /// [`StoreError::MissingReference`] if something it refers to is not valid (it may become so), [`StoreError::MissingBlob`] or
    /// [`StoreError::DamagedBlob`] if its NAR is not there or has another size. Nothing is written then.
    pub async fn publish(&self, info: &PathInfo, signing_key: &SecretKey) -> Result<(), StoreError> {
        let references: Vec<_> = info.references.iter().filter(|reference| **reference != info.path).cloned().collect();
        if let Some(reference) = self.missing(&references).await?.into_iter().next() {
            return Err(StoreError::MissingReference { path: info.path.clone(), reference });
        }
        let nar = key::nar(&info.nar_hash);
        let Some(stored) = self.inner.objects.head(&nar).await? else {
            return Err(StoreError::MissingBlob { path: info.path.clone(), key: nar.to_string() });
        };
        if stored.size != info.blob.size_bytes {
            let lie = Lie::BlobSize { stated_bytes: info.blob.size_bytes, found_bytes: stored.size };
            return Err(StoreError::DamagedBlob { path: info.path.clone(), key: nar.to_string(), lie });
        }
        let text =
            narinfo::write(self.store_dir(), info, signing_key).map_err(|err| StoreError::Unwritable { path: info.path.clone(), err })?;
        self.inner.objects.put_over(&key::narinfo(info.path.hash_part()), Bytes::from(text)).await?;
        self.inner.infos.put(Arc::new(info.clone()));
        Ok(())
    }
}
