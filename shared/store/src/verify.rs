//! Reading everything again: is what the store holds still what it says?

use std::collections::BTreeSet;
use std::sync::Arc;

use kiln_wire::{DrvPath, PathInfo, StorePath};

use crate::error::StoreError;
use crate::key;
use crate::narinfo;
use crate::receive::Provenance;
use crate::store::{NARINFO_BYTES_MAX, Store, damaged_narinfo};

/// What a check of the whole store found.
#[derive(Debug, Default)]
pub struct VerifyReport {
    /// Paths whose narinfo and NAR were read.
    pub path_count: u64,
    /// Derivations that were read.
    pub derivation_count: u64,
    /// Bytes of blobs that were read.
    pub blob_bytes: u64,
    /// Everything that is not as it should be; each names its object.
    pub damages: Vec<StoreError>,
}

impl Store {
    /// Reads a path's narinfo and NAR again, from the store and not from memory: sizes, hashes, grammar, references.
    ///
    /// # Errors
    /// [`StoreError::Absent`], or the damage, which names the object and what differs.
    pub async fn verify(&self, path: &StorePath) -> Result<PathInfo, StoreError> {
        self.inner.infos.forget(path);
        let info = self.read_path_info(path).await?.ok_or_else(|| StoreError::Absent { path: path.clone() })?;
        self.verify_blob(&info).await?;
        Ok(info)
    }

    /// Reads every narinfo, NAR and derivation of the store again. Slow, and safe to run at any time.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store cannot be listed. Damage is in the report.
    pub async fn verify_all(&self) -> Result<VerifyReport, StoreError> {
        let mut report = VerifyReport::default();
        for object in self.inner.objects.list(None).await? {
            let name = object.location.as_ref();
            let Some(hash_part) = name.strip_suffix(key::NARINFO_SUFFIX).filter(|part| key::is_hash_part(part)) else {
                continue;
            };
            match self.verify_hash_part(hash_part).await {
                Ok(info) => report.blob_bytes += info.blob.size_bytes,
                Err(damage) => report.damages.push(damage),
            }
            report.path_count += 1;
        }
        for object in self.inner.objects.list(Some(&key::derivation_dir())).await? {
            let Some(path) = object.location.filename().and_then(|name| DrvPath::parse(name).ok()) else {
                continue;
            };
            if let Err(damage) = self.derivation(&path).await {
                report.damages.push(damage);
            }
            report.derivation_count += 1;
        }
        Ok(report)
    }

    async fn verify_hash_part(&self, hash_part: &str) -> Result<PathInfo, StoreError> {
        let key = key::narinfo(hash_part);
        let bytes = self.inner.objects.get_small(&key, NARINFO_BYTES_MAX).await?.unwrap_or_default();
        let damaged = |reason| damaged_narinfo(&key, reason);
        let info = narinfo::read(self.store_dir(), &bytes).map_err(damaged)?;
        if info.path.hash_part() != hash_part {
            return Err(damaged(format!("it describes `{}`", info.path)));
        }
        self.verify_blob(&info).await?;
        Ok(info)
    }

    async fn verify_blob(&self, info: &PathInfo) -> Result<(), StoreError> {
        let blob = Arc::new(self.open_blob(info).await?);
        let object = blob.object_key().to_owned();
        let damaged = |lie: crate::Lie| StoreError::DamagedBlob { path: info.path.clone(), key: object.clone(), lie: lie.into() };
        let mut candidates: BTreeSet<_> = info.references.clone();
        candidates.insert(info.path.clone());
        // Imported paths may state references that a scan does not find: their path vouches for them.
        let provenance = match info.content_address {
            Some(_) => Provenance::Imported,
            None => Provenance::Built { candidates },
        };
        let facts = self.inspect(blob, info.nar_size_bytes, &provenance).await?.map_err(damaged)?;
        facts.check_blob(&info.blob).and_then(|()| facts.check_nar(info)).map_err(damaged)
    }
}
