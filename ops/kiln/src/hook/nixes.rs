//! The local Nixes that take outputs. Starting one takes longer than all else that a trivial build needs, and one has to be told as it
//! starts which locks its parent holds. So one is kept that was told what Nix will hold next: of the derivations that need what is being
//! built, and of what these need beside it. It holds nothing itself, and of what it was told it adds only what Nix does hold at the moment ([`super::outputs`]).

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_wire::{DrvPath, StoreDir, StorePath};
use tokio::sync::OwnedMutexGuard;

use super::inputs;
use super::local::LocalNix;
use crate::import::Places;

/// Starts and keeps local Nixes.
pub(super) struct Nixes {
    program: PathBuf,
    store_dir: StoreDir,
    keeps: bool,
    /// The newest comes last.
    kept: Mutex<Vec<Arc<Kept>>>,
    is_foretelling: AtomicBool,
}

/// A local Nix that is kept.
pub(super) struct Kept {
    store: String,
    /// The locks that it was told of.
    told: BTreeSet<StorePath>,
    /// None while it is used, and once it failed.
    nix: Arc<tokio::sync::Mutex<Option<LocalNix>>>,
}

/// A local Nix for one build.
pub(super) enum Ready {
    /// One that is kept, which others may use at the moment.
    Kept(Arc<Kept>),
    /// One that was started for this build.
    Own(LocalNix),
}

/// What a build has used.
pub(super) enum Used {
    /// One that is kept.
    Kept,
    /// One that was started for it.
    Own(LocalNix),
}

/// The place of a kept Nix while it works. If it does not come back, none takes it again.
pub(super) struct Place(OwnedMutexGuard<Option<LocalNix>>);

impl Nixes {
    pub(super) fn new(program: PathBuf, store_dir: StoreDir, keeps: bool) -> Arc<Self> {
        Arc::new(Self { program, store_dir, keeps, kept: Mutex::default(), is_foretelling: AtomicBool::new(false) })
    }

    /// Returns one for a build of these outputs, all of which Nix has locked. One that has to be started goes on while others work.
    pub(super) fn ready(&self, store: &str, outputs: &[StorePath]) -> anyhow::Result<Ready> {
        match self.fitting(store, outputs) {
            Some(kept) => Ok(Ready::Kept(kept)),
            None => self.start(store, outputs).map(Ready::Own),
        }
    }

    fn fitting<'a>(&self, store: &str, outputs: impl IntoIterator<Item = &'a StorePath> + Clone) -> Option<Arc<Kept>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |kept: &&Arc<Kept>| kept.store == store && outputs.clone().into_iter().all(|path| kept.told.contains(path));
        kept.iter().rev().find(fits).cloned()
    }

    /// Starts one that is told of these locks.
    pub(super) fn start<'a>(&self, store: &str, locked: impl IntoIterator<Item = &'a StorePath>) -> anyhow::Result<LocalNix> {
        LocalNix::start(&self.program, store, &self.store_dir, locked)
    }

    /// Takes back what a build of `derivation` has used, and gets ready for what is built next.
    pub(super) async fn done(self: &Arc<Self>, used: Used, store: &str, places: &Places, derivation: &DrvPath, outputs: &[StorePath]) {
        let Used::Own(mut nix) = used else { return };
        // Where one is kept for the same graph by now, that one fits.
        let foretells = self.keeps && self.fitting(store, outputs).is_none() && !self.is_foretelling.swap(true, Ordering::AcqRel);
        let (nixes, store, places, derivation) = (self.clone(), store.to_owned(), places.clone(), derivation.clone());
        let ending = tokio::task::spawn_blocking(move || {
            if foretells {
                if let Err(error) = nixes.foretell(&mut nix, store, &places, &derivation) {
                    tracing::debug!(%error, "keep a local Nix");
                }
                nixes.is_foretelling.store(false, Ordering::Release);
            }
            nix.end();
        });
        if !self.keeps {
            // This process ends next, and what it started is not left behind.
            let _ended = ending.await;
        }
    }

    /// Starts one for what is built after a derivation. Blocks.
    fn foretell(&self, nix: &mut LocalNix, store: String, places: &Places, derivation: &DrvPath) -> anyhow::Result<()> {
        let told = foretold(&self.store_dir, places, derivation, |path| nix.referrers(path))?;
        if told.is_empty() {
            return Ok(());
        }
        let mut started = self.start(&store, &told)?;
        started.greet()?;
        let kept = Arc::new(Kept { store, told, nix: Arc::new(tokio::sync::Mutex::new(Some(started))) });
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == KEPT_MAX {
            all.remove(0);
        }
        all.push(kept);
        Ok(())
    }
}

impl Kept {
    /// Returns the locks that it was told of, whether or not anybody has them.
    pub(super) fn told(&self) -> &BTreeSet<StorePath> {
        &self.told
    }

    /// Waits a moment until it is free; none if it is not.
    pub(super) async fn when_free(&self) -> Option<(Place, LocalNix)> {
        let mut place = tokio::time::timeout(FREE_WITHIN, self.nix.clone().lock_owned()).await.ok()?;
        let nix = place.take()?;
        Some((Place(place), nix))
    }
}

impl Place {
    /// Keeps it for the next.
    pub(super) fn give_back(mut self, nix: LocalNix) {
        *self.0 = Some(nix);
    }
}

/// Returns the outputs that may be locked next once a derivation is built: of those that need it, nearest first, and of the others that
/// these need.
fn foretold(
    store_dir: &StoreDir,
    places: &Places,
    derivation: &DrvPath,
    mut referrers: impl FnMut(&StorePath) -> anyhow::Result<BTreeSet<StorePath>>,
) -> anyhow::Result<BTreeSet<StorePath>> {
    let mut seen = BTreeSet::from([derivation.clone()]);
    let mut waiting = VecDeque::from([derivation.clone()]);
    let mut told = BTreeSet::new();
    while let Some(path) = waiting.pop_front() {
        for referrer in referrers(path.as_path())? {
            let Ok(referrer) = DrvPath::from_path(referrer) else { continue };
            if !seen.insert(referrer.clone()) {
                continue;
            }
            let (above, _) = inputs::read(places, store_dir, &referrer)?;
            told.extend(above.outputs.values().filter_map(|output| output.path().cloned()));
            for beside in above.inputs.keys() {
                if told.len() >= TOLD_MAX {
                    return Ok(told);
                }
                if seen.insert(beside.clone()) {
                    let (beside, _) = inputs::read(places, store_dir, beside)?;
                    told.extend(beside.outputs.values().filter_map(|output| output.path().cloned()));
                }
            }
            waiting.push_back(referrer);
        }
    }
    Ok(told)
}

/// Local Nixes that are kept; each is a process of some 20 MB.
const KEPT_MAX: usize = 2;
/// Outputs that one is told of: less than half of the 128 KiB that an environment variable may have. The last derivation may go beyond.
const TOLD_MAX: usize = 512;
/// How long to wait for a kept one, which may be taking something large: longer than it takes to start another.
const FREE_WITHIN: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn path(name: &str) -> StorePath {
        StorePath::parse(&format!("0hm2f1psjpcwg8fijsmr4wwxrx59s092-{name}")).expect("a path")
    }

    fn drv_path(name: &str) -> DrvPath {
        DrvPath::from_path(path(&format!("{name}.drv"))).expect("a derivation's path")
    }

    /// `a; b: a` is a derivation and one that needs it. Each output is named as its derivation.
    fn check(graph: &str, from: &str, wanted: &str) {
        let store_dir = StoreDir::default();
        let graph: BTreeMap<&str, Vec<&str>> = graph
            .split(';')
            .map(|row| row.split_once(':').unwrap_or((row, "")))
            .map(|(name, inputs)| (name.trim(), inputs.split_whitespace().collect()))
            .collect();
        let written = |name: &str, inputs: &[&str]| {
            let full = |path: StorePath| store_dir.join(&path);
            let inputs: Vec<String> =
                inputs.iter().map(|input| format!(r#"("{}",["out"])"#, full(path(&format!("{input}.drv"))))).collect();
            let (out, inputs) = (full(path(name)), inputs.join(","));
            format!(r#"Derive([("out","{out}","","")],[{inputs}],[],"x86_64-linux","sh",[],[("out","{out}")])"#).into_bytes()
        };
        let derivations = graph.iter().map(|(name, inputs)| (drv_path(name), written(name, inputs))).collect();
        let places = Places { derivations, ..Places::default() };
        let referrers = |asked: &StorePath| {
            let needs = |inputs: &[&str]| inputs.iter().any(|input| path(&format!("{input}.drv")) == *asked);
            let found = graph.iter().filter(|(_, inputs)| needs(inputs)).map(|(name, _)| path(&format!("{name}.drv")));
            // What is no derivation refers to one too.
            Ok(found.chain([path("a-list-of-derivations")]).collect())
        };
        let told = foretold(&store_dir, &places, &drv_path(from), referrers).expect("foretold");
        assert_eq!(told.iter().map(StorePath::name).collect::<Vec<_>>().join(" "), wanted, "{graph:?}");
    }

    #[test]
    fn what_needs_a_derivation_is_foretold_with_what_that_needs_beside_it() {
        check("a; b: a; c: b", "a", "b c");
        check("a; b: a; c: b", "c", "");
        check("a; x; y; top: a x y", "a", "top x y");
        // What only the neighbours need is not looked for: it is asked for before them.
        check("a; deep; x: deep; top: a x", "a", "top x");
    }

    #[test]
    fn what_is_foretold_has_an_end() {
        let mut asked = 0;
        let graph: BTreeMap<DrvPath, usize> = (0..TOLD_MAX * 2).map(|at| (drv_path(&format!("d{at}")), at)).collect();
        let store_dir = StoreDir::default();
        let written = |at: usize| {
            let input = at.checked_sub(1).map(|below| format!(r#"("{}",["out"])"#, store_dir.join(&path(&format!("d{below}.drv")))));
            let out = store_dir.join(&path(&format!("d{at}")));
            let input = input.unwrap_or_default();
            format!(r#"Derive([("out","{out}","","")],[{input}],[],"x86_64-linux","sh",[],[("out","{out}")])"#).into_bytes()
        };
        let derivations = graph.iter().map(|(path, at)| (path.clone(), written(*at))).collect();
        let places = Places { derivations, ..Places::default() };
        let told = foretold(&store_dir, &places, &drv_path("d0"), |asked_of| {
            asked += 1;
            let at = graph[&DrvPath::from_path(asked_of.clone()).expect("a derivation")];
            Ok(BTreeSet::from([path(&format!("d{}.drv", at + 1))]))
        });
        assert_eq!((told.expect("foretold").len(), asked), (TOLD_MAX, TOLD_MAX));
    }
}
