//! Publishing: the step that makes paths valid.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use kiln_nix::{Keyring, NarInfo, Signature};
use kiln_wire::{PathInfo, StorePath};

use crate::error::StoreError;
use crate::store::{NARINFO_BYTES_MAX, Store};
use crate::{Lie, key, narinfo};

/// A path with signatures that others made for it, which its narinfo is to have beside the farm's own.
#[derive(Clone, Debug)]
pub struct Endorsed {
    /// The facts.
    pub info: PathInfo,
    /// Signatures by keys that the farm trusts. Those that bear the name of a key of its own are left out.
    pub signatures: Vec<Signature>,
}

impl Store {
    /// Publishes a set of paths: writes their signed narinfos, durably, each after those it refers to. Doing it twice is harmless:
    /// signatures that others made of the same facts stay.
    /// The caller has made sure that the farm committed the set, or that the paths follow from their content.
    ///
    /// # Errors
    /// [`StoreError::MissingReference`] if something outside the set is not valid (it may become so), [`StoreError::MissingBlob`] or
    /// [`StoreError::DamagedBlob`] if a NAR is not there or has another size, [`StoreError::Cycle`]. Paths of the set that do not
    /// refer to the one at fault may be published by then.
    pub async fn publish(&self, infos: &[PathInfo], keys: &Keyring) -> Result<(), StoreError> {
        self.publish_all(infos, keys, &BTreeMap::new()).await
    }

    /// As [`Store::publish`], of one path that others signed.
    ///
    /// # Errors
    /// As [`Store::publish`].
    pub async fn publish_endorsed(&self, path: &Endorsed, keys: &Keyring) -> Result<(), StoreError> {
        let signatures = BTreeMap::from([(&path.info.path, path.signatures.as_slice())]);
        self.publish_all(std::slice::from_ref(&path.info), keys, &signatures).await
    }

    async fn publish_all(
        &self,
        infos: &[PathInfo],
        keys: &Keyring,
        endorsed: &BTreeMap<&StorePath, &[Signature]>,
    ) -> Result<(), StoreError> {
        let within: BTreeSet<_> = infos.iter().map(|info| &info.path).collect();
        let outside: BTreeSet<_> = infos.iter().flat_map(|info| &info.references).filter(|path| !within.contains(path)).collect();
        let outside: Vec<_> = outside.into_iter().cloned().collect();
        if let Some(reference) = self.missing(&outside).await?.into_iter().next() {
            let referrer = infos.iter().find(|info| info.references.contains(&reference)).expect("taken from one of them");
            return Err(StoreError::MissingReference { path: referrer.path.clone(), reference });
        }
        for info in in_order(infos)? {
            self.publish_one(info, keys, endorsed.get(&info.path).copied().unwrap_or_default()).await?;
        }
        Ok(())
    }

    async fn publish_one(&self, info: &PathInfo, keys: &Keyring, others: &[Signature]) -> Result<(), StoreError> {
        let Some((nar, found_bytes)) = self.find_blob(info).await? else {
            let nar = key::nar(&info.blob.sha256);
            return Err(StoreError::MissingBlob { path: info.path.clone(), key: nar.to_string() });
        };
        if found_bytes != info.blob.size_bytes {
            let lie = Box::new(Lie::BlobSize { stated_bytes: info.blob.size_bytes, found_bytes });
            return Err(StoreError::DamagedBlob { path: info.path.clone(), key: nar.to_string(), lie });
        }
        let others = [others, &self.signatures_of(info).await?].concat();
        let text = narinfo::write(self.store_dir(), info, keys, &others);
        let text = text.map_err(|err| StoreError::Unwritable { path: info.path.clone(), err })?;
        // Before the answer comes, for it may get lost: a path that is known and not there costs a look, the other way round a build.
        self.inner.known.published(&info.path);
        self.inner.objects.put(&key::narinfo(info.path.hash_part()), Bytes::from(text)).await?;
        self.inner.infos.put(Arc::new(info.clone()));
        self.index_stored(&info.blob.sha256).await
    }

    /// Returns the signatures that a path was published with, if it says the same as before.
    async fn signatures_of(&self, info: &PathInfo) -> Result<Vec<Signature>, StoreError> {
        let stored = self.inner.objects.get_small(&key::narinfo(info.path.hash_part()), NARINFO_BYTES_MAX).await?;
        let stored = stored.and_then(|text| NarInfo::parse(self.store_dir(), &text).ok());
        let signed = kiln_nix::narinfo::fingerprint(self.store_dir(), info);
        let same = stored.filter(|stored| stored.fingerprint(self.store_dir()) == signed);
        Ok(same.map(|stored| stored.signatures).unwrap_or_default())
    }
}

/// Returns a set of paths, each after those of the set that it refers to.
fn in_order(infos: &[PathInfo]) -> Result<Vec<&PathInfo>, StoreError> {
    let mut waiting: BTreeMap<&StorePath, &PathInfo> = infos.iter().map(|info| (&info.path, info)).collect();
    let mut ordered = Vec::with_capacity(infos.len());
    while let Some(first) = waiting.keys().next().copied() {
        let waits = |info: &PathInfo| info.references.iter().any(|path| *path != info.path && waiting.contains_key(path));
        let ready: Vec<_> = waiting.values().filter(|info| !waits(info)).copied().collect();
        if ready.is_empty() {
            return Err(StoreError::Cycle { path: first.clone() });
        }
        for info in ready {
            waiting.remove(&info.path);
            ordered.push(info);
        }
    }
    Ok(ordered)
}
