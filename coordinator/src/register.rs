//! Realisations that clients bring: what a derived output became elsewhere.
//!
//! Invariant: none is kept whose path the farm does not have, that nobody vouches for whom the farm trusts, or that contradicts one that
//! holds. Source: ADR 0034; Nix's `registerDrvOutput`.

use kiln_nix::hash::nix32;
use kiln_nix::realisation::{DerivedOutput, Realisation, Told};
use kiln_store::StoreError;
use kiln_wire::{Sha256Hash, StorePath};

use crate::garbage::touch;
use crate::intake::{self, IntakeError};
use crate::leading;
use crate::parts::Parts;

/// A realisation that is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegisterError {
    /// Nobody whom the farm trusts says so.
    #[error(
        "take the realisation of `{of}`: no key that is trusted here signed it; sign it with a key of the farm's `trusted_upload_keys`, or bring it as a trusted client"
    )]
    Unsigned { of: String },
    /// It leads to nothing.
    #[error("take the realisation of `{of}`: the farm does not have `{path}`; upload that first")]
    Absent { of: String, path: StorePath },
    /// Another one holds.
    #[error("take the realisation of `{of}`: the farm has it as `{known}`, which stays")]
    Differs { of: String, known: StorePath },
    /// Another coordinator leads.
    #[error(transparent)]
    NotLeader(#[from] IntakeError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Keeps what a derived output became, signed by the farm. One that the farm has stays as it is.
///
/// # Errors
/// [`RegisterError`] says why not, and what would help.
pub(crate) async fn register(parts: &Parts, told: Told, is_trusted: bool) -> Result<(), RegisterError> {
    let leader = leading::own(parts);
    let is_vouched = is_trusted || told.is_signed_by(&parts.intake.keys(&parts.keys));
    let told = told.realisation;
    let of = || told.of.to_string();
    if !is_vouched {
        return Err(RegisterError::Unsigned { of: of() });
    }
    let turn = turn_of(&told.of);
    let _turn = parts.turns.take(turn.iter()).await;
    let known = parts.store.realisation(&told.of, &parts.keys).await?.map(|known| known.path);
    // Whoever is told that it is registered relies on what it leads to.
    touch(parts, known.iter().chain([&told.path])).await;
    intake::check_leads(parts, leader)?;
    let asked: Vec<StorePath> = known.iter().chain([&told.path]).cloned().collect();
    let absent = parts.store.missing(&asked).await?;
    match known {
        Some(known) if known == told.path => return Ok(()),
        Some(known) if !absent.contains(&known) => return Err(RegisterError::Differs { of: of(), known }),
        // What is gone says nothing.
        Some(_) | None => {}
    }
    if absent.contains(&told.path) {
        return Err(RegisterError::Absent { of: of(), path: told.path });
    }
    let signed = Realisation::signed(told.of, told.path, &parts.keys);
    parts.store.put_realisation(&signed).await?;
    tracing::info!(of = %signed.of, path = %signed.path, "a realisation was brought");
    Ok(())
}

/// Returns whose turn it takes to write the realisation of an output.
pub(crate) fn turn_of(of: &DerivedOutput) -> Option<StorePath> {
    match of {
        DerivedOutput::ByPath { derivation, .. } => Some(derivation.as_path().clone()),
        DerivedOutput::ByHash { identity, .. } => turn_of_identity(identity),
    }
}

/// As [`turn_of`], of all outputs of a derivation by its hash: no derivation has a path of this name.
pub(crate) fn turn_of_identity(identity: &Sha256Hash) -> Option<StorePath> {
    StorePath::parse(&format!("{}-realisation", nix32(&identity.0[..20]))).ok()
}

#[cfg(test)]
mod tests {
    use kiln_wire::OutputName;

    use super::*;

    #[test]
    fn outputs_of_one_derivation_take_turns() {
        let of =
            |hash, output| DerivedOutput::ByHash { identity: Sha256Hash([hash; 32]), output: OutputName::parse(output).expect("a name") };
        assert!(turn_of(&of(1, "out")).is_some());
        assert_eq!(turn_of(&of(1, "out")), turn_of(&of(1, "dev")));
        assert_ne!(turn_of(&of(1, "out")), turn_of(&of(2, "out")));
    }
}
