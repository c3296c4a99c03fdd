//! What building targets would do, for clients that show it before: nothing is changed.

use std::collections::{BTreeMap, BTreeSet};

use kiln_nix::daemon::Target;
use kiln_wire::{DrvPath, OutputName, StorePath};

use super::store::Store;

/// What building targets would do.
#[derive(Debug, Default)]
pub(super) struct Outlook {
    /// Derivations that would be built.
    pub(super) will_build: BTreeSet<StorePath>,
    /// Paths that the farm would take from an upstream cache.
    pub(super) will_substitute: BTreeSet<StorePath>,
    /// Bytes of those as the caches have them.
    pub(super) download_bytes: u64,
    /// Bytes of those unpacked.
    pub(super) nar_bytes: u64,
    /// Paths that the farm lacks and that nothing makes.
    pub(super) unknown: BTreeSet<StorePath>,
}

/// Outputs by derivation; of one without names, all.
type Wave = BTreeMap<DrvPath, BTreeSet<OutputName>>;

/// Looks from the targets down. Below an output that exists, here or upstream, nothing is looked at.
pub(super) async fn outlook(store: &Store, targets: &[Target]) -> anyhow::Result<Outlook> {
    let mut outlook = Outlook::default();
    let mut wave = Wave::new();
    let mut paths = BTreeSet::new();
    for target in targets {
        match target {
            Target::Path(path) => drop(paths.insert(path.clone())),
            // What follows is not known before that is built.
            Target::Made { derivation, through, .. } => wave.entry(derivation.clone()).or_default().extend(through.first().cloned()),
            Target::Outputs { derivation, outputs } => wave.entry(derivation.clone()).or_default().extend(outputs.iter().cloned()),
        }
    }
    let valid = store.valid(paths.clone()).await?;
    outlook.unknown.extend(paths.into_iter().filter(|path| !valid.contains(path)));
    while !wave.is_empty() {
        wave = look(store, wave, &mut outlook).await?;
    }
    Ok(outlook)
}

/// Looks at a few derivations, and returns what those need that would be built.
async fn look(store: &Store, wave: Wave, outlook: &mut Outlook) -> anyhow::Result<Wave> {
    let derivations = store.derivations(wave.keys().cloned().collect()).await?;
    let lacking = wave.keys().filter(|path| !derivations.contains_key(*path)).map(|path| path.as_path().clone());
    outlook.unknown.extend(lacking);
    let mut outputs: BTreeSet<StorePath> = BTreeSet::new();
    for (path, derivation) in &derivations {
        let wanted = derivation.outputs.iter().filter(|(name, _)| is_wanted(&wave[path], name));
        outputs.extend(wanted.filter_map(|(_, output)| output.path().cloned()));
    }
    let realised = store.outputs(&derivations).await?;
    outputs.extend(realised.values().flat_map(BTreeMap::values).cloned());
    let mut valid = store.valid(outputs.clone()).await?;
    for found in store.substitutable(outputs.into_iter().filter(|path| !valid.contains(path)).collect()).await {
        outlook.download_bytes = outlook.download_bytes.saturating_add(found.download_bytes);
        outlook.nar_bytes = outlook.nar_bytes.saturating_add(found.nar_bytes);
        outlook.will_substitute.insert(found.path.clone());
        valid.insert(found.path);
    }
    let mut next = Wave::new();
    for (path, derivation) in &derivations {
        let mut wanted = derivation.outputs.iter().filter(|(name, _)| is_wanted(&wave[path], name));
        let is_there = wanted.all(|(name, output)| {
            let at = output.path().or_else(|| realised.get(path)?.get(name));
            at.is_some_and(|at| valid.contains(at))
        });
        if !is_there && outlook.will_build.insert(path.as_path().clone()) {
            for (input, needed) in &derivation.inputs {
                next.entry(input.clone()).or_default().extend(needed.all());
            }
        }
    }
    Ok(next)
}

fn is_wanted(named: &BTreeSet<OutputName>, name: &OutputName) -> bool {
    named.is_empty() || named.contains(name)
}
