//! Repair for a client: what is stored damaged is taken or built anew, and is put back if it is the same.
//!
//! As Nix does it (`--repair`): what is asked for, and all that it refers to, is read and held against its hash. A derivation is built again
//! only when its inputs are sound. A path whose derivation makes something else stays as it is, and the client is told.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, anyhow, bail};
use kiln_nix::daemon::{BuildResult, Note, Options, Target};
use kiln_wire::client::{Request, Response, Thoroughness};
use kiln_wire::limits::PATHS_PER_REQUEST_MAX;
use kiln_wire::{DrvPath, GarbageRequest, PathInfo, StorePath};

use super::builds;
use super::roots;
use super::store::Store;
use super::stream::{Failure, Stream};
use crate::client::unexpected;
use crate::realise::infos_of;

/// Builds what is not there of `targets`, then repairs what is, with all that it refers to.
pub(super) async fn targets(store: &Store, stream: &mut Stream, wanted: &[Target], options: Options) -> Result<Vec<BuildResult>, Failure> {
    let results = builds::build(store, stream, wanted, options).await?;
    let mut paths: Vec<StorePath> = results.iter().flat_map(|result| result.outputs.values().cloned()).collect();
    paths.extend(wanted.iter().filter_map(|target| match target {
        Target::Path(path) => Some(path.clone()),
        Target::Outputs { .. } | Target::Made { .. } => None,
    }));
    let mut repair = Repair::default();
    repair.look(store, paths).await?;
    repair.run(store, stream).await?;
    Ok(results)
}

/// Verifies the farm's store, and repairs it if that is wanted. Returns whether something is damaged in the end.
pub(super) async fn whole_store(store: &Store, stream: &mut Stream, contents: bool, repairs: bool) -> Result<bool, Failure> {
    let paths: Vec<StorePath> = roots::list(store, GarbageRequest::Paths).await?.into_iter().collect();
    let how = match (contents, repairs) {
        (false, _) => Thoroughness::Names,
        (true, false) => Thoroughness::Read,
        (true, true) => Thoroughness::Mend,
    };
    let mut repair = Repair::default();
    for some in paths.chunks(VERIFIED_AT_A_TIME) {
        repair.verify(store, some, how).await?;
        for message in repair.told.drain(..) {
            stream.note(Note::Text(&format!("{message}\n"))).await?;
        }
    }
    if repair.damaged.is_empty() || !repairs {
        return Ok(!repair.damaged.is_empty());
    }
    match repair.run(store, stream).await {
        Ok(()) => Ok(false),
        Err(Failure::Told(error)) => {
            stream.note(Note::Text(&format!("{error:#}\n"))).await?;
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

/// What is known of paths while some are repaired.
#[derive(Default)]
struct Repair {
    sound: BTreeSet<StorePath>,
    /// With what is wrong.
    damaged: BTreeMap<StorePath, String>,
    /// What was found and not told.
    told: Vec<String>,
    infos: BTreeMap<StorePath, PathInfo>,
}

impl Repair {
    /// Verifies paths and all that they refer to, as far as that was not done. Returns the closure.
    async fn look(&mut self, store: &Store, paths: Vec<StorePath>) -> anyhow::Result<BTreeSet<StorePath>> {
        let mut closure = BTreeSet::new();
        for some in paths.chunks(PATHS_PER_REQUEST_MAX) {
            for info in store.client().all(&Request::PathInfos { paths: some.to_vec(), closure: true }, infos_of).await? {
                closure.insert(info.path.clone());
                self.infos.insert(info.path.clone(), info);
            }
        }
        let unknown = |path: &&StorePath| !self.sound.contains(*path) && !self.damaged.contains_key(*path);
        let unknown: Vec<StorePath> = closure.iter().filter(unknown).cloned().collect();
        for some in unknown.chunks(VERIFIED_AT_A_TIME) {
            self.verify(store, some, Thoroughness::Mend).await?;
        }
        Ok(closure)
    }

    async fn verify(&mut self, store: &Store, paths: &[StorePath], how: Thoroughness) -> anyhow::Result<()> {
        let damages = match store.client().one(&Request::Verify { paths: paths.to_vec(), how }).await? {
            Response::Damaged(damages) => damages,
            _ => return Err(unexpected("another kind").into_error()),
        };
        self.sound.extend(paths.iter().cloned());
        for damage in damages {
            self.sound.remove(&damage.path);
            self.told.push(format!("path '{}' is damaged at the farm: {}", store.store_dir().join(&damage.path), damage.message));
            self.damaged.insert(damage.path, damage.message);
        }
        Ok(())
    }

    /// Builds anew what is damaged, inputs first.
    async fn run(&mut self, store: &Store, stream: &mut Stream) -> Result<(), Failure> {
        while !self.damaged.is_empty() {
            for message in self.told.drain(..) {
                stream.note(Note::Text(&format!("{message}\n"))).await?;
            }
            let (known, mut ready) = (self.damaged.len(), BTreeSet::new());
            for derivation in self.derivations(store).await? {
                let inputs = self.inputs(store, &derivation).await?;
                if inputs.iter().all(|path| !self.damaged.contains_key(path)) {
                    ready.insert(derivation);
                }
            }
            if ready.is_empty() && self.damaged.len() > known {
                // An input is damaged too, which is to be built first.
                continue;
            }
            if ready.is_empty() {
                return Err(anyhow!("repair: what is damaged is needed to build what is damaged: {}", self.shown(store)).into());
            }
            self.build(store, stream, ready).await?;
        }
        Ok(())
    }

    /// Returns the derivations that made what is damaged.
    async fn derivations(&mut self, store: &Store) -> anyhow::Result<BTreeSet<DrvPath>> {
        let unknown: Vec<StorePath> = self.damaged.keys().filter(|path| !self.infos.contains_key(*path)).cloned().collect();
        for some in unknown.chunks(PATHS_PER_REQUEST_MAX) {
            let request = Request::PathInfos { paths: some.to_vec(), closure: false };
            let found = store.client().all(&request, infos_of).await?;
            self.infos.extend(found.into_iter().map(|info| (info.path.clone(), info)));
        }
        let mut derivations = BTreeSet::new();
        for (path, message) in &self.damaged {
            let deriver = self.infos.get(path).and_then(|info| info.deriver.clone());
            derivations.insert(deriver.with_context(|| {
                format!(
                    "repair `{}`: {message}; no upstream cache has it, and no derivation is known that makes it: delete it \
                     (`nix-store --delete`) and add it again",
                    store.store_dir().join(path)
                )
            })?);
        }
        Ok(derivations)
    }

    /// Verifies what a derivation is built from. Returns all of it.
    async fn inputs(&mut self, store: &Store, path: &DrvPath) -> anyhow::Result<BTreeSet<StorePath>> {
        let full = || store.store_dir().join(path.as_path());
        let derivation = store.derivation(path).await?;
        let derivation = derivation.with_context(|| format!("repair by `{}`: the farm does not have that derivation", full()))?;
        let inputs = store.derivations(derivation.inputs.keys().cloned().collect()).await?;
        let realised = store.outputs(&inputs).await?;
        let mut paths: Vec<StorePath> = derivation.sources.iter().cloned().collect();
        for (input, made) in &inputs {
            let unknown = realised.get(input);
            paths.extend(made.outputs.iter().filter_map(|(name, output)| output.path().or_else(|| unknown?.get(name)).cloned()));
        }
        self.look(store, paths).await
    }

    async fn build(&mut self, store: &Store, stream: &mut Stream, derivations: BTreeSet<DrvPath>) -> Result<(), Failure> {
        let target = |derivation: &DrvPath| Target::Outputs { derivation: derivation.clone(), outputs: BTreeSet::new() };
        let targets: Vec<Target> = derivations.iter().map(target).collect();
        let results = builds::check(store, stream, &targets, true).await?;
        let failed: BTreeSet<&str> = results.iter().map(|result| result.message.as_str()).filter(|text| !text.is_empty()).collect();
        if let Some(first) = failed.first() {
            return Err(anyhow!("repair: the farm keeps what it has: {first}").into());
        }
        let made: Vec<StorePath> = self.damaged.keys().filter(|path| self.is_made_by(path, &derivations)).cloned().collect();
        made.iter().for_each(|path| drop(self.damaged.remove(path)));
        for some in made.chunks(VERIFIED_AT_A_TIME) {
            self.verify(store, some, Thoroughness::Read).await?;
        }
        match made.iter().any(|path| self.damaged.contains_key(path)) {
            true => Err(anyhow!("repair: built anew, and damaged still: {}", self.shown(store)).into()),
            false => Ok(()),
        }
    }

    fn is_made_by(&self, path: &StorePath, derivations: &BTreeSet<DrvPath>) -> bool {
        self.infos.get(path).and_then(|info| info.deriver.as_ref()).is_some_and(|deriver| derivations.contains(deriver))
    }

    fn shown(&self, store: &Store) -> String {
        let shown: Vec<_> = self.damaged.keys().take(5).map(|path| format!("`{}`", store.store_dir().join(path))).collect();
        shown.join(", ")
    }
}

/// Refuses a client that is not trusted: as Nix does, for what is repaired is away for a moment.
pub(super) fn allow(trusted: bool) -> anyhow::Result<()> {
    if !trusted {
        bail!("repair: only a trusted client may ask for that");
    }
    Ok(())
}

/// Paths in one request: each is read whole before the answer comes.
const VERIFIED_AT_A_TIME: usize = 64;
