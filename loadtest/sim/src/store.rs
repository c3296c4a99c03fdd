//! The store that all coordinators share: blobs, narinfos, archived builds. It may fail for a while; what it took it keeps.

use std::collections::BTreeMap;

use kiln_core::BuildRecord;
use kiln_wire::{Blob, BuildId, PathInfo, Sha256Hash, StorePath};

/// The store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    /// Fails everything that is asked of it.
    pub fails: bool,
    /// Stored NARs, by the hash of what they unpack to.
    blobs: BTreeMap<Sha256Hash, Blob>,
    narinfos: BTreeMap<StorePath, PathInfo>,
    archive: BTreeMap<BuildId, BuildRecord>,
}

/// The store cannot be asked at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoreFails;

impl Store {
    /// Stores a NAR, unless it is there. Returns the stored bytes.
    pub fn put(&mut self, info: &PathInfo) -> Result<Blob, StoreFails> {
        self.asked()?;
        Ok(*self.blobs.entry(info.nar_hash).or_insert(info.blob))
    }

    /// Returns the stored bytes of a NAR.
    pub fn blob(&self, nar_hash: &Sha256Hash) -> Result<Option<Blob>, StoreFails> {
        self.asked()?;
        Ok(self.blobs.get(nar_hash).copied())
    }

    /// Publishes narinfos. A path keeps the first that it got.
    pub fn publish(&mut self, infos: &[PathInfo]) -> Result<(), StoreFails> {
        self.asked()?;
        for info in infos {
            self.narinfos.entry(info.path.clone()).or_insert_with(|| info.clone());
        }
        Ok(())
    }

    /// Returns what is published of a path.
    pub fn narinfo(&self, path: &StorePath) -> Result<Option<&PathInfo>, StoreFails> {
        self.asked()?;
        Ok(self.narinfos.get(path))
    }

    /// Archives an ended build.
    pub fn archive(&mut self, record: &BuildRecord) -> Result<(), StoreFails> {
        self.asked()?;
        self.archive.insert(record.build, record.clone());
        Ok(())
    }

    /// Returns an archived build.
    pub fn archived(&self, build: BuildId) -> Result<Option<&BuildRecord>, StoreFails> {
        self.asked()?;
        Ok(self.archive.get(&build))
    }

    /// Returns what is published, for those who check from outside.
    pub fn published(&self, path: &StorePath) -> Option<&PathInfo> {
        self.narinfos.get(path)
    }

    /// Returns whether it holds an archived build, for those who check from outside.
    pub fn holds_build(&self, build: BuildId) -> bool {
        self.archive.contains_key(&build)
    }

    /// Returns whether it holds a NAR, for those who check from outside.
    pub fn holds(&self, nar_hash: &Sha256Hash) -> Option<&Blob> {
        self.blobs.get(nar_hash)
    }

    fn asked(&self) -> Result<(), StoreFails> {
        if self.fails { Err(StoreFails) } else { Ok(()) }
    }
}
