//! Output paths, recomputed from content: what was checked once need not be checked again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

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

/// The derivations whose output paths follow from their content. Its locks are held for one derivation's hash at most.
pub(crate) struct Checked {
    sound: Mutex<Sound>,
    /// By which hash Nix to 2.34 names the outputs of those whose paths only builds tell. Its own lock: who only looks waits for no hash.
    identities: Mutex<BTreeMap<DrvPath, Sha256Hash>>,
    /// Whose turn it is to read a closure for an identity that nobody knows yet: the second finds what the first has read.
    turn: tokio::sync::Mutex<()>,
}

struct Sound {
    modulo: Modulo,
    paths: BTreeSet<DrvPath>,
}

impl Checked {
    pub(crate) fn new(store_dir: StoreDir) -> Self {
        let sound = Sound { modulo: Modulo::new(store_dir), paths: BTreeSet::new() };
        Self { sound: Mutex::new(sound), identities: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    /// Returns by which hash Nix to 2.34 names the outputs of a derivation that was checked and whose output paths only builds tell.
    pub(crate) fn identity(&self, path: &DrvPath) -> Option<Sha256Hash> {
        self.identities.lock().unwrap_or_else(PoisonError::into_inner).get(path).copied()
    }

    /// Waits until nobody else finds out an identity. Whoever has the turn looks again first.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Checks a derivation whose inputs were checked before. Takes a processor for as long as its hash takes.
    pub(crate) fn check(&self, path: &DrvPath, derivation: &Derivation) -> Result<(), CheckError> {
        let mut sound = self.sound.lock().unwrap_or_else(PoisonError::into_inner);
        if sound.paths.contains(path) {
            return Ok(());
        }
        match sound.modulo.check_outputs(path, derivation)?.into_iter().next() {
            Some(mismatch) => Err(CheckError::Mismatch(mismatch)),
            None => {
                if derivation.outputs.values().any(|output| output.path().is_none())
                    && let Some(identity) = sound.modulo.add(path, derivation)?.identity
                {
                    self.identities.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone(), identity);
                }
                sound.paths.insert(path.clone());
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_looked_up_while_somebody_hashes() {
        let checked = Checked::new(StoreDir::default());
        let path = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-x.drv").expect("a path");
        let text =
            r#"Derive([("out","","r:sha256","")],[],[],"s","b",[],[("out","/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9")])"#;
        let derivation = Derivation::parse_canonical(&StoreDir::default(), "x", text.as_bytes()).expect("a derivation");
        checked.check(&path, &derivation).expect("sound");
        let hashing = checked.sound.lock().expect("nobody panicked");
        assert!(checked.identity(&path).is_some());
        drop(hashing);
    }
}
