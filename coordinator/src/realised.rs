//! Where outputs are whose paths only their builds tell: committed ones in the farm, published ones by their realisations.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use kiln_nix::derivation::{Derivation, Output};
use kiln_nix::modulo::Modulo;
use kiln_nix::realisation::{DerivedOutput, Realisation};
use kiln_store::StoreError;
use kiln_wire::{BuiltOutput, DrvPath, OutputName, PathInfo, Root, Sha256Hash, StorePath};

use crate::derivations::DerivationError;
use crate::driver::Chain;
use crate::drv_closure::DrvClosure;
use crate::garbage::touch;
use crate::parts::Parts;
use crate::register::turn_of_identity;
use crate::submit;

/// Returns what a published realisation says of an output, if its path is there.
pub(crate) async fn published(parts: &Parts, derivation: &DrvPath, output: &OutputName) -> Result<Option<PathInfo>, StoreError> {
    let of = DerivedOutput::ByPath { derivation: derivation.clone(), output: output.clone() };
    let mut known = parts.store.realisation(&of, &parts.keys).await?;
    // What clients bring says the derivation's hash alone, to Nix 2.34.
    if known.is_none()
        && let Some(identity) = parts.checked.identity(derivation)
    {
        let of = DerivedOutput::ByHash { identity, output: output.clone() };
        known = parts.store.realisation(&of, &parts.keys).await?;
    }
    match known {
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
    let lookups = futures::stream::iter(derivations).map(|path| async move {
        let made = made(parts, &path).await?;
        Ok::<_, DerivationError>((path, made))
    });
    let found: Vec<_> = lookups.buffered(LOOKUPS_MAX).try_collect().await?;
    Ok(found.into_iter().filter(|(_, made)| !made.is_empty()).collect())
}

async fn made(parts: &Parts, path: &DrvPath) -> Result<BTreeMap<OutputName, StorePath>, DerivationError> {
    let mut made = BTreeMap::new();
    let derivation = match parts.derivations.get(parts, path).await {
        Err(DerivationError::Missing(_) | DerivationError::NotOne { .. } | DerivationError::Parse { .. }) => return Ok(made),
        read => read?,
    };
    // What is impure is made anew for everybody who asks.
    for (name, _) in derivation.outputs.iter().filter(|(_, output)| output.path().is_none() && !derivation.is_impure()) {
        let info = output(parts, path, name).await.map_err(|source| DerivationError::Store { path: path.clone(), source })?;
        made.extend(info.map(|info| (name.clone(), info.path)));
    }
    Ok(made)
}

/// Writes the realisations of a job whose outputs are published: its derivation's own, and those of the one that was built in its place.
/// Where another is there already that holds, it stays: who resolved by it goes on to be right. Impure outputs have none.
pub(crate) async fn record(parts: &Parts, derivation: &DrvPath, outputs: &[BuiltOutput]) -> Result<(), RecordError> {
    let Some(parsed) = readable(parts, derivation).await? else { return Ok(()) };
    if parsed.is_impure() {
        return Ok(());
    }
    if parsed.outputs.values().any(|output| output.path().is_none()) {
        let identity = identity(parts, derivation).await;
        write(parts, derivation, identity, outputs).await?;
    }
    let Some(resolved) = parts.farm(|farm| farm.resolved(derivation).cloned()) else { return Ok(()) };
    let Some(parsed) = readable(parts, &resolved).await? else { return Ok(()) };
    if parsed.outputs.values().any(|output| matches!(output, Output::Floating { .. })) {
        write(parts, &resolved, identity_alone(parts, &resolved, &parsed), outputs).await?;
    }
    Ok(())
}

/// Returns a derivation. One that is gone or damaged does not hold up what it made: that has no realisations then.
async fn readable(parts: &Parts, path: &DrvPath) -> Result<Option<Arc<Derivation>>, DerivationError> {
    match parts.derivations.get(parts, path).await {
        Err(error @ (DerivationError::Missing(_) | DerivationError::NotOne { .. } | DerivationError::Parse { .. })) => {
            tracing::warn!(error = %Chain(&error), "its outputs are published without realisations");
            Ok(None)
        }
        read => read.map(Some),
    }
}

/// One set at a time: of two that are published together the second finds what the first has written.
async fn write(parts: &Parts, derivation: &DrvPath, identity: Option<Sha256Hash>, outputs: &[BuiltOutput]) -> Result<(), StoreError> {
    let brought = identity.as_ref().and_then(turn_of_identity);
    let _turn = parts.turns.take(brought.iter().chain([derivation.as_path()])).await;
    let mut known = Vec::new();
    for BuiltOutput { name, .. } in outputs {
        let by_path = DerivedOutput::ByPath { derivation: derivation.clone(), output: name.clone() };
        let by_hash = identity.map(|identity| DerivedOutput::ByHash { identity, output: name.clone() });
        for of in by_hash.into_iter().chain([by_path]) {
            let at = parts.store.realisation(&of, &parts.keys).await?.map(|known| known.path);
            known.push((name.clone(), of, at));
        }
    }
    let paths: BTreeSet<StorePath> = known.iter().filter_map(|(.., at)| at.clone()).collect();
    let absent: BTreeSet<StorePath> = parts.store.missing(&paths.into_iter().collect::<Vec<_>>()).await?.into_iter().collect();
    let held = |at: &StorePath| !absent.contains(at);
    let chosen = choose(outputs, known.iter().filter_map(|(name, _, at)| Some((name, at.as_ref().filter(|at| held(at))?))));
    for (name, of, at) in known {
        let Some(path) = chosen.get(&name) else { continue };
        // The same is written again, for every key that signs by now.
        if at.as_ref().is_none_or(|at| at == path || !held(at)) {
            parts.store.put_realisation(&Realisation::signed(of, path.clone(), &parts.keys)).await?;
        }
    }
    Ok(())
}

/// Returns which path each output is realised at: where another set is published, of which a path is there, that set; else the new one. Sets
/// are never mixed: outputs of two builds need not fit each other. What is gone of a set that stays is realised nowhere.
fn choose<'a>(outputs: &[BuiltOutput], held: impl Iterator<Item = (&'a OutputName, &'a StorePath)>) -> BTreeMap<OutputName, StorePath> {
    let new: BTreeMap<OutputName, StorePath> = outputs.iter().map(|output| (output.name.clone(), output.info.path.clone())).collect();
    let held: BTreeMap<OutputName, StorePath> = held.map(|(name, path)| (name.clone(), path.clone())).collect();
    if held.iter().all(|(name, path)| new.get(name) == Some(path)) { new } else { held }
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
    let checked = match DrvClosure::load(parts, &[root]).await {
        Ok(closure) => submit::check_output_paths(parts, &closure).await,
        Err(refusal) => Err(refusal),
    };
    match checked {
        Ok(()) => {}
        Err(refusal) => tracing::warn!(job = %derivation, term = parts.term(), refusal.message, "name the outputs as Nix to 2.34 does"),
    }
    parts.checked.identity(derivation)
}

/// As [`identity`], of a derivation that needs no other.
fn identity_alone(parts: &Parts, path: &DrvPath, derivation: &Derivation) -> Option<Sha256Hash> {
    match Modulo::new(parts.store_dir.clone()).add(path, derivation) {
        Ok(computed) => computed.identity,
        Err(error) => {
            tracing::warn!(job = %path, error = %Chain(&error), "name the outputs as Nix to 2.34 does");
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

/// Derivations whose outputs are looked up at a time, for one request.
const LOOKUPS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use kiln_wire::{Blake3Hash, Blob};

    use super::*;

    fn name(text: &str) -> OutputName {
        OutputName::parse(text).expect("a name")
    }

    fn path(letter: char) -> StorePath {
        StorePath::parse(&format!("{}-x", letter.to_string().repeat(32))).expect("a path")
    }

    /// Reads `out=a dev=b`.
    fn set(text: &str) -> BTreeMap<OutputName, StorePath> {
        let pair = |pair: &str| {
            let (output, letter) = pair.split_once('=').expect("name=letter");
            (name(output), path(letter.chars().next().expect("a letter")))
        };
        text.split_whitespace().map(pair).collect()
    }

    #[test]
    fn sets_of_two_builds_are_not_mixed() {
        for (made, held, chosen) in [
            ("out=a dev=b", "", "out=a dev=b"),
            ("out=a dev=b", "out=a", "out=a dev=b"),
            ("out=a dev=b", "out=a dev=b", "out=a dev=b"),
            ("out=a dev=b", "out=c dev=d", "out=c dev=d"),
            // One of the two came out the same.
            ("out=a dev=b", "out=a dev=d", "out=a dev=d"),
            // The other's `dev` is gone: this one's does not belong to its `out`.
            ("out=a dev=b", "out=c", "out=c"),
        ] {
            let info = |path: &StorePath| kiln_wire::PathInfo {
                path: path.clone(),
                nar_hash: Sha256Hash([1; 32]),
                nar_size_bytes: 1,
                references: BTreeSet::new(),
                deriver: None,
                content_address: None,
                blob: Blob { size_bytes: 1, blake3: Blake3Hash([0; 32]), sha256: Sha256Hash([0; 32]) },
            };
            let outputs: Vec<_> = set(made).iter().map(|(name, path)| BuiltOutput { name: name.clone(), info: info(path) }).collect();
            assert_eq!(choose(&outputs, set(held).iter()), set(chosen), "{made} upon {held}");
        }
    }
}
