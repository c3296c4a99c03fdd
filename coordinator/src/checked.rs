//! Output paths, recomputed from content: what was checked once need not be checked again.

use std::collections::{BTreeMap, BTreeSet};

use kiln_nix::derivation::Derivation;
use kiln_nix::modulo::{Modulo, ModuloError, OutputMismatch};
use kiln_wire::{DrvPath, Sha256Hash, StoreDir};

/// A derivation that must not be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    /// Its hash cannot be computed.
    #[error(transparent)]
    Modulo(#[from] ModuloError),
    /// An output path does not follow from its content.
    #[error("{0}; make the derivation again with Nix")]
    Mismatch(OutputMismatch),
}

/// The derivations whose output paths follow from their content.
pub(crate) struct Checked {
    modulo: Modulo,
    sound: BTreeSet<DrvPath>,
    /// By which hash Nix to 2.34 names the outputs of those whose paths only builds tell.
    identities: BTreeMap<DrvPath, Sha256Hash>,
}

impl Checked {
    pub(crate) fn new(store_dir: StoreDir) -> Self {
        Self { modulo: Modulo::new(store_dir), sound: BTreeSet::new(), identities: BTreeMap::new() }
    }

    /// Returns by which hash Nix to 2.34 names the outputs of a derivation that was checked and whose output paths only builds tell.
    pub(crate) fn identity(&self, path: &DrvPath) -> Option<Sha256Hash> {
        self.identities.get(path).copied()
    }

    /// Checks a derivation whose inputs were checked before.
    pub(crate) fn check(&mut self, path: &DrvPath, derivation: &Derivation) -> Result<(), CheckError> {
        if self.sound.contains(path) {
            return Ok(());
        }
        match self.modulo.check_outputs(path, derivation)?.into_iter().next() {
            Some(mismatch) => Err(CheckError::Mismatch(mismatch)),
            None => {
                if derivation.outputs.values().any(|output| output.path().is_none())
                    && let Some(identity) = self.modulo.add(path, derivation)?.identity
                {
                    self.identities.insert(path.clone(), identity);
                }
                self.sound.insert(path.clone());
                Ok(())
            }
        }
    }
}
