//! Output paths, recomputed from content: what was checked once need not be checked again.

use std::collections::BTreeMap;
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
    sound: Mutex<Modulo>,
    /// By which hash Nix to 2.34 names the outputs of those whose paths only builds tell. Its own lock: who only looks waits for no hash.
    identities: Mutex<BTreeMap<DrvPath, Sha256Hash>>,
    /// Whose turn it is to read a closure for an identity that nobody knows yet: the second finds what the first has read.
    turn: tokio::sync::Mutex<()>,
}

impl Checked {
    pub(crate) fn new(store_dir: StoreDir) -> Self {
        Self { sound: Mutex::new(Modulo::new(store_dir)), identities: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    /// Returns by which hash Nix to 2.34 names the outputs of a derivation that was checked and whose output paths only builds tell.
    pub(crate) fn identity(&self, path: &DrvPath) -> Option<Sha256Hash> {
        self.identities.lock().unwrap_or_else(PoisonError::into_inner).get(path).copied()
    }

    /// Waits until nobody else finds out an identity. Whoever has the turn looks again first.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Returns whether a derivation was checked.
    pub(crate) fn is_sound(&self, path: &DrvPath) -> bool {
        self.sound.lock().unwrap_or_else(PoisonError::into_inner).get(path).is_some()
    }

    /// Checks a derivation, if all of its inputs were checked: what it comes to may depend on them. A submission checks the others, and says
    /// what is wrong with those that are unsound.
    pub(crate) fn check_if_known(&self, path: &DrvPath, derivation: &Derivation) {
        let is_known = {
            let sound = self.sound.lock().unwrap_or_else(PoisonError::into_inner);
            derivation.inputs.keys().all(|input| sound.get(input).is_some())
        };
        if is_known {
            let _told_when_it_is_submitted = self.check(path, derivation);
        }
    }

    /// Checks a derivation whose inputs were checked before. Takes a processor for as long as its hash takes.
    pub(crate) fn check(&self, path: &DrvPath, derivation: &Derivation) -> Result<(), CheckError> {
        let mut sound = self.sound.lock().unwrap_or_else(PoisonError::into_inner);
        if sound.get(path).is_some() {
            return Ok(());
        }
        let (computed, wrong) = sound.checked(path, derivation)?;
        if let Some(mismatch) = wrong.into_iter().next() {
            return Err(CheckError::Mismatch(mismatch));
        }
        if derivation.outputs.values().any(|output| output.path().is_none())
            && let Some(identity) = computed.identity
        {
            self.identities.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone(), identity);
        }
        // Only what is sound is known: whatever needs an unsound one is not computed from it.
        sound.tell(path.clone(), computed.hash);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unsound_or_came_before_its_inputs_is_left_to_its_submission() {
        let checked = Checked::new(StoreDir::default());
        let drv = |name: &str| DrvPath::parse(&format!("0hm2f1psjpcwg8fijsmr4wwxrx59s092-{name}.drv")).expect("a path");
        let text = |inputs: &str, out: &str| format!(r#"Derive([("out","{out}","","")],[{inputs}],[],"s","b",[],[("out","{out}")])"#);
        let parse = |name: &str, text: &str| Derivation::parse(&StoreDir::default(), name, text.as_bytes()).expect("a derivation");
        let low = parse("low", r#"Derive([("out","","r:sha256","")],[],[],"s","b",[],[("out","")])"#);
        let floating = parse(
            "f",
            &format!(r#"Derive([("out","","r:sha256","")],[("/nix/store/{}",["out"])],[],"s","b",[],[("out","")])"#, drv("low")),
        );
        checked.check_if_known(&drv("f"), &floating);
        assert!(!checked.is_sound(&drv("f")), "it would have no identity for ever");
        checked.check_if_known(&drv("low"), &low);
        checked.check_if_known(&drv("f"), &floating);
        assert!(checked.is_sound(&drv("f")) && checked.identity(&drv("f")).is_some());
        let wrong = parse("wrong", &text("", "/nix/store/1rz4g4znpzjwh1xymhjpm42vipw92pr7-wrong"));
        checked.check_if_known(&drv("wrong"), &wrong);
        assert!(!checked.is_sound(&drv("wrong")));
        assert!(matches!(checked.check(&drv("wrong"), &wrong), Err(CheckError::Mismatch(_))));
    }

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
