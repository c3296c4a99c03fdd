//! What a client wants, and what became of each.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use kiln_nix::daemon::{BuildResult, Status, Target};
use kiln_wire::client::{BuildState, BuildView, JobView, NOT_DETERMINISTIC};
use kiln_wire::{DrvPath, FailureClass, OutOfPatience, OutputName, Root, StorePath};

use super::store::Store;
use crate::failures;

/// What a client wants.
pub(super) struct Wanted {
    items: Vec<Item>,
}

enum Item {
    /// A path as it is.
    Path { path: StorePath, is_valid: bool },
    /// Outputs of a derivation, each with its path if that is known before it is built.
    Outputs { derivation: DrvPath, outputs: BTreeMap<OutputName, Option<StorePath>>, is_there: bool },
}

/// What happened in a build.
#[derive(Default)]
pub(super) struct Course {
    /// When those that were built began and ended, in milliseconds since 1970.
    pub(super) built: BTreeMap<DrvPath, (u64, u64)>,
    /// Of those that were not built because of another, that one.
    pub(super) causes: BTreeMap<DrvPath, DrvPath>,
    /// How it ended.
    pub(super) view: Option<BuildView>,
    /// What took longer than its client waits, so that the build was cancelled.
    pub(super) out_of_patience: Option<OutOfPatience>,
}

impl Wanted {
    /// Looks at what is there already.
    pub(super) async fn look(store: &Store, targets: &[Target]) -> anyhow::Result<Self> {
        let named = |target: &Target| match target {
            Target::Outputs { derivation, .. } => Some(derivation.clone()),
            Target::Path(_) | Target::Made { .. } => None,
        };
        let derivations = store.derivations(targets.iter().filter_map(named).collect()).await?;
        let mut items = Vec::new();
        let mut wanted_count = 0;
        for target in targets {
            items.push(match target {
                Target::Path(path) => Item::Path { path: path.clone(), is_valid: false },
                Target::Made { derivation, .. } => anyhow::bail!("what `{derivation}` makes is to be found first"),
                Target::Outputs { derivation: path, outputs: names } => {
                    let full = store.store_dir().join(path.as_path());
                    let derivation = derivations.get(path).with_context(|| format!("path `{full}` is not valid"))?;
                    if let Some(name) = names.iter().find(|name| !derivation.outputs.contains_key(*name)) {
                        anyhow::bail!("derivation `{full}` has no output `{name}`");
                    }
                    let wanted = derivation.outputs.iter().filter(|(name, _)| names.is_empty() || names.contains(*name));
                    let outputs: BTreeMap<_, _> = wanted.map(|(name, output)| (name.clone(), output.path().cloned())).collect();
                    wanted_count += outputs.len();
                    ensure!(wanted_count <= OUTPUTS_MAX, "build: more than {OUTPUTS_MAX} outputs are asked for; ask in parts");
                    Item::Outputs { derivation: path.clone(), outputs, is_there: false }
                }
            });
        }
        let mut wanted = Self { items };
        wanted.look_again(store).await?;
        Ok(wanted)
    }

    /// Asks the farm which paths are valid, and where outputs are that were built and whose paths nobody could know before.
    async fn look_again(&mut self, store: &Store) -> anyhow::Result<()> {
        let unknown = |item: &Item| match item {
            Item::Outputs { derivation, outputs, .. } if outputs.values().any(Option::is_none) => Some(derivation.clone()),
            Item::Outputs { .. } | Item::Path { .. } => None,
        };
        let derivations = store.derivations(self.items.iter().filter_map(unknown).collect()).await?;
        let realised = store.outputs(&derivations).await?;
        for item in &mut self.items {
            let Item::Outputs { derivation, outputs, .. } = item else { continue };
            let Some(realised) = realised.get(derivation) else { continue };
            for (name, at) in outputs.iter_mut().filter(|(_, at)| at.is_none()) {
                *at = realised.get(name).cloned();
            }
        }
        let mut paths = BTreeSet::new();
        for item in &self.items {
            match item {
                Item::Path { path, .. } => drop(paths.insert(path.clone())),
                Item::Outputs { outputs, .. } => paths.extend(outputs.values().flatten().cloned()),
            }
        }
        let valid = store.valid(paths).await?;
        for item in &mut self.items {
            match item {
                Item::Path { path, is_valid } => *is_valid = valid.contains(path),
                Item::Outputs { outputs, is_there, .. } => {
                    *is_there = outputs.values().all(|path| path.as_ref().is_some_and(|path| valid.contains(path)));
                }
            }
        }
        Ok(())
    }

    /// Returns what has to be built.
    pub(super) fn roots(&self) -> Vec<Root> {
        self.roots_where(|is_there| !is_there)
    }

    /// Returns what can be built, whether it is there or not.
    pub(super) fn all_roots(&self) -> Vec<Root> {
        self.roots_where(|_| true)
    }

    fn roots_where(&self, counts: impl Fn(bool) -> bool) -> Vec<Root> {
        let mut roots: BTreeMap<DrvPath, BTreeSet<OutputName>> = BTreeMap::new();
        for item in &self.items {
            match item {
                Item::Outputs { derivation, outputs, is_there } if counts(*is_there) => {
                    roots.entry(derivation.clone()).or_default().extend(outputs.keys().cloned());
                }
                Item::Outputs { .. } | Item::Path { .. } => {}
            }
        }
        roots.into_iter().map(|(derivation, outputs)| Root { derivation, outputs }).collect()
    }

    /// Returns whether each target was made again as it is, in their order.
    pub(super) async fn results_of_check(self, store: &Store, course: &Course) -> Vec<BuildResult> {
        let mut told = BTreeSet::new();
        let mut results = Vec::new();
        // Each root is a job of the check, so what the farm says to be there was made, whoever missed the event.
        let was_made = |derivation: &DrvPath| course.view.as_ref().is_some_and(|view| view.outputs.contains_key(derivation));
        for item in self.items {
            results.push(match item {
                Item::Path { path, is_valid } => path_as_it_is(store, &path, is_valid),
                Item::Outputs { derivation, outputs, .. } => match outputs_made(&derivation, outputs, true, course) {
                    Some(outputs) if was_made(&derivation) => built(&derivation, outputs, course),
                    _ => why_not(store, &derivation, course, &mut told).await,
                },
            });
        }
        results
    }

    /// Returns what became of each target, in their order.
    pub(super) async fn results(mut self, store: &Store, course: &Course) -> anyhow::Result<Vec<BuildResult>> {
        if course.view.is_some() {
            self.look_again(store).await?;
        }
        let mut told = BTreeSet::new();
        let mut results = Vec::new();
        for item in self.items {
            results.push(match item {
                Item::Path { path, is_valid } => path_as_it_is(store, &path, is_valid),
                Item::Outputs { derivation, outputs, is_there } => match outputs_made(&derivation, outputs, is_there, course) {
                    Some(outputs) => built(&derivation, outputs, course),
                    None => why_not(store, &derivation, course, &mut told).await,
                },
            });
        }
        Ok(results)
    }
}

fn path_as_it_is(store: &Store, path: &StorePath, is_valid: bool) -> BuildResult {
    match is_valid {
        true => made(Status::AlreadyValid, BTreeMap::new()),
        false => {
            let full = store.store_dir().join(path);
            failed(Status::NoSubstituters, format!("path `{full}` is not valid, and no derivation was named that makes it"))
        }
    }
}

/// Returns the paths of the outputs, if all were made.
fn outputs_made(
    derivation: &DrvPath,
    outputs: BTreeMap<OutputName, Option<StorePath>>,
    is_there: bool,
    course: &Course,
) -> Option<BTreeMap<OutputName, StorePath>> {
    let known = course.view.as_ref().and_then(|view| view.outputs.get(derivation));
    let path = |name: &OutputName, path: Option<StorePath>| match path {
        Some(path) => is_there.then_some(path),
        None => known?.get(name).cloned(),
    };
    outputs.into_iter().map(|(name, stated)| Some((name.clone(), path(&name, stated)?))).collect()
}

fn built(derivation: &DrvPath, outputs: BTreeMap<OutputName, StorePath>, course: &Course) -> BuildResult {
    match course.built.get(derivation) {
        Some((started_ms, ended_ms)) => BuildResult {
            times_built: 1,
            started_at_seconds: started_ms / 1000,
            ended_at_seconds: ended_ms / 1000,
            ..made(Status::Built, outputs)
        },
        None => made(Status::AlreadyValid, outputs),
    }
}

fn made(status: Status, outputs: BTreeMap<OutputName, StorePath>) -> BuildResult {
    BuildResult { status, message: String::new(), times_built: 0, started_at_seconds: 0, ended_at_seconds: 0, outputs }
}

pub(super) fn failed(status: Status, message: String) -> BuildResult {
    BuildResult { message, ..made(status, BTreeMap::new()) }
}

/// Says why a derivation was not built, with the end of the log of whatever failed the first time that it is told. `told` holds of what.
async fn why_not(store: &Store, derivation: &DrvPath, course: &Course, told: &mut BTreeSet<DrvPath>) -> BuildResult {
    let full = store.store_dir().join(derivation.as_path());
    let Some(view) = &course.view else {
        return failed(Status::MiscFailure, format!("`{full}` was not built"));
    };
    let failure = |path: &DrvPath| view.failures.iter().find(|job| job.derivation == *path);
    if let Some(job) = failure(derivation) {
        return failed(status_of(job), explain(store, job, told).await);
    }
    if let Some(job) = course.causes.get(derivation).and_then(failure) {
        let why = explain(store, job, told).await;
        return failed(Status::DependencyFailed, format!("`{full}` was not built, because something that it needs failed:\n{why}"));
    }
    if let Some(out) = &course.out_of_patience {
        let (slow, seconds) = (store.store_dir().join(out.derivation.as_path()), out.ms_max / 1000);
        let what = if out.is_silent { "was silent for" } else { "ran for" };
        return match out.derivation == *derivation {
            true => failed(Status::TimedOut, format!("`{full}` {what} more than {seconds} s, which is as long as you wait: timed out")),
            false => failed(Status::DependencyFailed, format!("`{full}` was not built, because `{slow}` {what} more than {seconds} s")),
        };
    }
    match view.state {
        BuildState::Cancelled => failed(Status::MiscFailure, format!("`{full}` was not built: build {} was cancelled", view.build)),
        BuildState::Active | BuildState::Built | BuildState::Failed => {
            failed(Status::DependencyFailed, format!("`{full}` was not built, because something else of build {} failed", view.build))
        }
    }
}

fn status_of(job: &JobView) -> Status {
    let last = job.attempts.last().and_then(|attempt| attempt.failure.as_ref());
    match last {
        Some((FailureClass::BuildFailure, message)) if message.starts_with(NOT_DETERMINISTIC) => Status::NotDeterministic,
        Some((FailureClass::BuildFailure | FailureClass::OutOfMemory, _)) | None => Status::PermanentFailure,
        Some((FailureClass::LimitExceeded, _)) => Status::TimedOut,
        Some((FailureClass::Infrastructure, _)) => Status::TransientFailure,
        Some((FailureClass::Cancelled, _)) => Status::MiscFailure,
    }
}

async fn explain(store: &Store, job: &JobView, told: &mut BTreeSet<DrvPath>) -> String {
    let full = store.store_dir().join(job.derivation.as_path());
    let mut text = format!("`{full}` failed: {}", job.reason);
    if !told.insert(job.derivation.clone()) {
        return text;
    }
    // A failure is told also where its log cannot be had.
    let tail = failures::tail(store.client(), job, TAIL_LINES).await.unwrap_or_default();
    if !tail.lines.is_empty() {
        text.push_str(&format!("\nlast {} log lines:", tail.lines.len()));
        tail.lines.iter().for_each(|line| text.push_str(&format!("\n> {line}")));
        text.push_str(&format!("\nfor the whole log, run: kiln log {full}"));
    }
    text
}

/// Outputs that one request may ask for, those that it names again counted again.
const OUTPUTS_MAX: usize = 1 << 18;

/// Lines of log in an error: what Nix shows by default.
const TAIL_LINES: usize = 10;
