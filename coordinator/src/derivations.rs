//! Derivations in memory: bytes and parse of those that were used lately, and what has been checked of each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use kiln_nix::derivation::{Derivation, DerivationError as ParseError};
use kiln_store::{Store, StoreError};
use kiln_wire::{DrvPath, OutputName, StoreDir, StorePath};

/// A derivation that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DerivationError {
    /// The farm lacks it.
    #[error("the farm has no derivation `{0}`")]
    Missing(DrvPath),
    /// It is not a derivation that this farm understands.
    #[error("parse `{path}`")]
    Parse {
        /// Which.
        path: DrvPath,
        /// What is wrong with it.
        #[source]
        source: ParseError,
    },
    /// The store failed.
    #[error("read `{path}` from the store")]
    Store {
        /// Which.
        path: DrvPath,
        /// What the store said.
        #[source]
        source: StoreError,
    },
}

/// The derivations that were used lately.
pub(crate) struct Derivations {
    store_dir: StoreDir,
    kept: Mutex<BTreeMap<DrvPath, Kept>>,
}

#[derive(Clone)]
struct Kept {
    bytes: Bytes,
    parsed: Arc<Derivation>,
}

impl Derivations {
    pub(crate) fn new(store_dir: StoreDir) -> Self {
        Self { store_dir, kept: Mutex::default() }
    }

    /// Returns the parse of a derivation.
    pub(crate) async fn get(&self, store: &Store, path: &DrvPath) -> Result<Arc<Derivation>, DerivationError> {
        Ok(self.load(store, path).await?.parsed)
    }

    /// Forgets a derivation that is deleted.
    pub(crate) fn forget(&self, path: &DrvPath) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
    }

    /// Forgets all: another leader may have deleted some.
    pub(crate) fn forget_all(&self) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Returns the bytes of a derivation.
    pub(crate) async fn bytes(&self, store: &Store, path: &DrvPath) -> Result<Bytes, DerivationError> {
        Ok(self.load(store, path).await?.bytes)
    }

    /// Keeps a derivation whose path was checked against its bytes.
    pub(crate) fn keep(&self, path: DrvPath, bytes: Bytes, parsed: Arc<Derivation>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_MAX {
            // Everything is in the store: starting over costs reads, and no bookkeeping on the way.
            kept.clear();
        }
        kept.insert(path, Kept { bytes, parsed });
    }

    /// Puts a derivation that a client brought into the store, and keeps it: it is about to be submitted.
    ///
    /// # Errors
    /// What the store says.
    pub(crate) async fn add(&self, store: &Store, path: DrvPath, bytes: Bytes) -> Result<(), StoreError> {
        let parsed = store.put_derivation(&path, bytes.clone()).await?;
        // One that Nix would have written differently is refused when it is read for use.
        if parsed.check_canonical(&self.store_dir, &bytes).is_ok() {
            self.keep(path, bytes, Arc::new(parsed));
        }
        Ok(())
    }

    async fn load(&self, store: &Store, path: &DrvPath) -> Result<Kept, DerivationError> {
        if let Some(kept) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(path) {
            return Ok(kept.clone());
        }
        let read = store.derivation(path).await.map_err(|source| DerivationError::Store { path: path.clone(), source })?;
        let (bytes, parsed) = read.ok_or_else(|| DerivationError::Missing(path.clone()))?;
        parsed.check_canonical(&self.store_dir, &bytes).map_err(|source| DerivationError::Parse { path: path.clone(), source })?;
        let parsed = Arc::new(parsed);
        self.keep(path.clone(), bytes.clone(), parsed.clone());
        Ok(Kept { bytes, parsed })
    }
}

/// Returns the outputs of a derivation whose paths are known before the build.
pub(crate) fn output_paths(derivation: &Derivation) -> BTreeMap<OutputName, StorePath> {
    derivation.outputs.iter().filter_map(|(name, output)| Some((name.clone(), output.path()?.clone()))).collect()
}

/// Derivations kept in memory; a real one takes about 5 KB, so all of a large package set stays below 1 GiB.
const KEPT_MAX: usize = 131_072;
