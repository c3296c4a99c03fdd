//! Where outputs are whose paths only their builds tell: committed ones in the farm, published ones by their realisations.

use std::collections::BTreeMap;

use kiln_nix::derivation::{Derivation, Output};
use kiln_nix::modulo::Modulo;
use kiln_nix::realisation::{DerivedOutput, Realisation};
use kiln_store::StoreError;
use kiln_wire::{BuiltOutput, DrvPath, OutputName, PathInfo, Root, Sha256Hash, StorePath};

use crate::derivations::DerivationError;
use crate::driver::Chain;
use crate::drv_closure::DrvClosure;
use crate::garbage::touch;
use crate::heavy::heavy;
use crate::parts::Parts;

/// Returns what a published realisation says of an output, if its path is there.
pub(crate) async fn published(parts: &Parts, derivation: &DrvPath, output: &OutputName) -> Result<Option<PathInfo>, StoreError> {
    let of = DerivedOutput::ByPath { derivation: derivation.clone(), output: output.clone() };
    match parts.store.realisation(&of, &parts.keys).await? {
        Some(realisation) => {
            touch(parts, [&realisation.path]).await;
            parts.path_info(&realisation.path).await
        }
        None => Ok(None),
    }
}

/// Returns an output of a derivation as a live job committed it, or as it is published.
pub(crate) async fn output(parts: &Parts, derivation: &DrvPath, output: &OutputName) -> Result<Option<PathInfo>, StoreError> {
    let of = |built: &[BuiltOutput]| built.iter().find(|built| built.name == *output).map(|built| built.info.clone());
    match parts.farm(|farm| farm.outputs_of(derivation).and_then(of)) {
        Some(info) => Ok(Some(info)),
        None => published(parts, derivation, output).await,
    }
}

/// Returns where the outputs of derivations are whose paths the derivations do not say. What is not there is left out.
pub(crate) async fn outputs(
    parts: &Parts,
    derivations: Vec<DrvPath>,
) -> Result<BTreeMap<DrvPath, BTreeMap<OutputName, StorePath>>, DerivationError> {
    let mut found = BTreeMap::new();
    for path in derivations {
        let derivation = match parts.derivations.get(&parts.store, &path).await {
            Err(DerivationError::Missing(_)) => continue,
            read => read?,
        };
        // What is impure is made anew for everybody who asks.
        let mut made = BTreeMap::new();
        for (name, _) in derivation.outputs.iter().filter(|(_, output)| output.path().is_none() && !derivation.is_impure()) {
            let info = output(parts, &path, name).await.map_err(|source| DerivationError::Store { path: path.clone(), source })?;
            made.extend(info.map(|info| (name.clone(), info.path)));
        }
        if !made.is_empty() {
            found.insert(path, made);
        }
    }
    Ok(found)
}

/// Writes the realisations of a job whose outputs are published: its derivation's own, and those of the one that was built in its place.
/// Where another is there already that holds, it stays: who resolved by it goes on to be right. Impure outputs have none.
pub(crate) async fn record(parts: &Parts, derivation: &DrvPath, outputs: &[BuiltOutput]) -> Result<(), RecordError> {
    let parsed = parts.derivations.get(&parts.store, derivation).await?;
    if parsed.is_impure() {
        return Ok(());
    }
    if parsed.outputs.values().any(|output| output.path().is_none()) {
        let identity = identity(parts, derivation).await;
        write(parts, derivation, identity, outputs).await?;
    }
    let Some(resolved) = parts.farm(|farm| farm.resolved(derivation).cloned()) else { return Ok(()) };
    let parsed = parts.derivations.get(&parts.store, &resolved).await?;
    if parsed.outputs.values().any(|output| matches!(output, Output::Floating { .. })) {
        write(parts, &resolved, identity_alone(parts, &resolved, &parsed), outputs).await?;
    }
    Ok(())
}

async fn write(parts: &Parts, derivation: &DrvPath, identity: Option<Sha256Hash>, outputs: &[BuiltOutput]) -> Result<(), StoreError> {
    for BuiltOutput { name, info } in outputs {
        let by_path = DerivedOutput::ByPath { derivation: derivation.clone(), output: name.clone() };
        let by_hash = identity.map(|identity| DerivedOutput::ByHash { identity, output: name.clone() });
        for of in by_hash.into_iter().chain([by_path]) {
            let known = parts.store.realisation(&of, &parts.keys).await?;
            let holds = match &known {
                Some(known) => known.path != info.path && parts.store.missing(std::slice::from_ref(&known.path)).await?.is_empty(),
                None => false,
            };
            if !holds {
                parts.store.put_realisation(&Realisation::signed(of, info.path.clone(), &parts.keys)).await?;
            }
        }
    }
    Ok(())
}

/// Returns by which hash Nix to 2.34 names the outputs of a derivation. A leader that has not checked the derivation reads all that it needs.
async fn identity(parts: &Parts, derivation: &DrvPath) -> Option<Sha256Hash> {
    if let Some(identity) = parts.checked.identity(derivation) {
        return Some(identity);
    }
    let _turn = parts.checked.turn().await;
    if let Some(identity) = parts.checked.identity(derivation) {
        return Some(identity);
    }
    let root = Root { derivation: derivation.clone(), outputs: Default::default() };
    match DrvClosure::load(parts, &[root]).await {
        Ok(closure) => heavy(|| closure.ordered.iter().for_each(|path| drop(parts.checked.check(path, &closure.parsed[path])))),
        Err(refusal) => tracing::warn!(%derivation, refusal.message, "name the outputs as Nix to 2.34 does"),
    }
    parts.checked.identity(derivation)
}

/// As [`identity`], of a derivation that needs no other.
fn identity_alone(parts: &Parts, path: &DrvPath, derivation: &Derivation) -> Option<Sha256Hash> {
    match Modulo::new(parts.store_dir.clone()).add(path, derivation) {
        Ok(computed) => computed.identity,
        Err(error) => {
            tracing::warn!(derivation = %path, error = %Chain(&error), "name the outputs as Nix to 2.34 does");
            None
        }
    }
}

/// A realisation that cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error(transparent)]
    Derivation(#[from] DerivationError),
    #[error(transparent)]
    Store(#[from] StoreError),
}
