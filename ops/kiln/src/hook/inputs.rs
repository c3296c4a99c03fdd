//! What the farm lacks to build a derivation: recipes and sources, never what was built elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use kiln_nix::hook::Inputs;
use kiln_nix::{Derivation, Outline, job};
use kiln_wire::client::{DerivationFile, Request, Response};
use kiln_wire::limits::DERIVATION_BATCH_BYTES;
use kiln_wire::{DrvPath, JobSpec, OutputName, Root, StoreDir, StorePath};

use super::locks::Locks;
use super::voice::Voice;
use crate::client::{Client, unexpected};
use crate::import::{self, Places, missing};
use crate::progress::Progress;

/// What the farm lacks.
pub(super) struct Lacking {
    /// What is to be built.
    pub(super) root: Derivation,
    /// Its inputs that the farm would build first.
    pub(super) jobs: Vec<JobSpec>,
    files: Vec<DerivationFile>,
    sources: BTreeSet<StorePath>,
}

impl Lacking {
    /// Returns whether the farm has all that it needs to build.
    pub(super) fn is_nothing(&self) -> bool {
        self.files.is_empty() && self.sources.is_empty()
    }
}

/// Derivations with the outputs that are needed of each; none of one whose recipe alone is needed.
type Wave = BTreeMap<DrvPath, BTreeSet<OutputName>>;

/// Looks from the derivation down. Below one that the farm has, with its outputs, nothing is looked at: Nix asks for inputs first.
pub(super) async fn look(client: &Client, store_dir: &StoreDir, places: &Places, derivation: &DrvPath) -> anyhow::Result<Lacking> {
    let root = read(places, store_dir, derivation)?;
    let mut wave = Wave::from([(derivation.clone(), root.0.outputs.keys().cloned().collect())]);
    let mut lacking = Lacking { root: root.0, jobs: Vec::new(), files: Vec::new(), sources: BTreeSet::new() };
    let mut seen = BTreeSet::new();
    while !wave.is_empty() {
        seen.extend(wave.keys().cloned());
        let mut next = look_at(client, store_dir, places, wave, &mut lacking).await?;
        next.retain(|path, _| !seen.contains(path));
        wave = next;
    }
    lacking.jobs.retain(|job| job.derivation != *derivation);
    Ok(lacking)
}

async fn look_at(client: &Client, store_dir: &StoreDir, places: &Places, wave: Wave, lacking: &mut Lacking) -> anyhow::Result<Wave> {
    let mut read_all = Vec::new();
    let mut asked = BTreeSet::new();
    for (path, needed) in wave {
        let (derivation, bytes) = read(places, store_dir, &path)?;
        asked.insert(path.as_path().clone());
        asked.extend(derivation.sources.iter().cloned());
        asked.extend(derivation.outputs.values().filter_map(|output| output.path().cloned()));
        read_all.push((path, needed, derivation, bytes));
    }
    let missing: BTreeSet<StorePath> = missing(client, asked.into_iter().collect()).await?.into_iter().collect();
    let mut next = Wave::new();
    for (path, needed, derivation, bytes) in read_all {
        let is_there = |name: &OutputName| {
            let output = derivation.outputs.get(name).and_then(|output| output.path());
            output.is_some_and(|output| !missing.contains(output))
        };
        let is_built = needed.iter().all(is_there);
        let is_known = !missing.contains(path.as_path());
        if !is_built {
            // Only what it asks of a worker is looked at, and that without its inputs.
            lacking.jobs.push(job::spec(&path, &Outline::of(&derivation), |_| None)?);
            lacking.sources.extend(derivation.sources.iter().filter(|source| missing.contains(*source)).cloned());
        }
        if !is_built || !is_known {
            for (input, wanted) in &derivation.inputs {
                let outputs = if is_built { BTreeSet::new() } else { wanted.all() };
                next.entry(input.clone()).or_default().extend(outputs);
            }
        }
        if !is_known {
            lacking.files.push(DerivationFile { path, bytes });
        }
    }
    Ok(next)
}

/// Reads a derivation, with its bytes.
pub(super) fn read(places: &Places, store_dir: &StoreDir, path: &DrvPath) -> anyhow::Result<(Derivation, Vec<u8>)> {
    let bytes = places.derivation(path).with_context(|| format!("read derivation `{path}`"))?;
    let bytes = bytes.with_context(|| format!("derivation `{path}` is not in the store of this machine"))?;
    Ok((Derivation::parse_canonical(store_dir, path.name(), &bytes)?, bytes))
}

/// Hands over what the farm lacks. Of hooks that do so at once, one uploads sources, and the others find them there.
pub(super) async fn hand_over(
    client: &Client,
    store_dir: &StoreDir,
    places: &Places,
    locks: &Locks,
    voice: &Voice,
    Lacking { files, sources, .. }: &Lacking,
    inputs: &Inputs,
) -> anyhow::Result<()> {
    for batch in batches(files) {
        match client.one(&Request::AddDerivations(batch.to_vec())).await? {
            Response::Done => {}
            _ => return Err(unexpected("another kind").into_error()),
        }
    }
    if sources.is_empty() {
        return Ok(());
    }
    let lock = locks.upload().await?;
    // Sources may refer to others that no derivation names; Nix has named all.
    let candidates: BTreeSet<StorePath> = inputs.paths.union(sources).cloned().collect();
    let lacking: BTreeSet<StorePath> = missing(client, candidates.iter().cloned().collect()).await?.into_iter().collect();
    let lacking_sources = sources.intersection(&lacking).count();
    if lacking_sources > 0 {
        voice.info(&format!("copying {} to the farm", crate::words::count(lacking_sources as u64, "source"))).await;
        import::upload_sources(client, store_dir, places, sources, &candidates, lacking).await?;
    }
    drop(lock);
    Ok(())
}

/// Hands over all that the build of a root can need.
pub(super) async fn hand_over_all(client: &Client, store_dir: &StoreDir, places: &Places, root: &Root) -> anyhow::Result<()> {
    import::upload(client, store_dir, places, std::slice::from_ref(root), &Progress::new(true, store_dir.clone())).await
}

/// Divides files, in their order, into what goes into one request each.
fn batches(files: &[DerivationFile]) -> Vec<&[DerivationFile]> {
    let (mut batches, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (at, file) in files.iter().enumerate() {
        if at > start && (at - start == FILES_PER_BATCH || bytes + file.bytes.len() > DERIVATION_BATCH_BYTES) {
            batches.push(&files[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += file.bytes.len();
    }
    if start < files.len() {
        batches.push(&files[start..]);
    }
    batches
}

/// Derivations in one request: as many as `kiln build` hands over.
const FILES_PER_BATCH: usize = 512;
