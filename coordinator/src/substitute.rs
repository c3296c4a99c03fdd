//! Substitution: what a submission needs and upstream caches have is brought into the farm's store, and is not built.
//!
//! Happens while a submission is answered, on the leader, before the farm hears of the build: nothing of it is in the replicated state,
//! and a leader that is deposed leaves paths that the next one finds valid. Each path becomes valid after all that it refers to. What a
//! cache does not deliver is looked for at the next one, and is built in the end. Source: ADR 0030.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use kiln_store::{Endorsed, StoreError};
use kiln_wire::client::{Refusal, Substitutable};
use kiln_wire::limits::{UPSTREAM_ASKING_MS_MAX, UPSTREAM_FETCHES_MAX, UPSTREAM_PATHS_MAX, UPSTREAM_QUERIES_MAX};
use kiln_wire::{JobSpec, Leader, Root, StoreDir, StorePath};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::brought::{self, PublishError};
use crate::driver::Chain;
use crate::drv_closure::DrvClosure;
use crate::garbage::touch;
use crate::meter::add;
use crate::parts::Parts;
use crate::round::{Round, in_order, unattainable};
use crate::upstream::{Found, Substituter, TakeError, Upstreams};
use crate::{leading, needed, refuse, submit};

/// What all submissions share: the caches, and the paths that are on their way.
pub(crate) struct Substitution {
    upstreams: Upstreams,
    flights: Mutex<BTreeMap<StorePath, Weak<Flight>>>,
}

/// A path on its way: whoever needs it too waits for the same.
type Flight = OnceCell<Endorsed>;

impl Substitution {
    /// Prepares to ask these caches.
    ///
    /// # Errors
    /// [`reqwest`]'s, if it cannot prepare for TLS.
    pub(crate) fn new(configured: &[Substituter], store_dir: StoreDir) -> reqwest::Result<Self> {
        Ok(Self { upstreams: Upstreams::new(configured, store_dir)?, flights: Mutex::default() })
    }

    /// Returns the caches.
    pub(crate) fn upstreams(&self) -> &Upstreams {
        &self.upstreams
    }

    /// Returns the flight of a path, which somebody else may have begun.
    fn flight(&self, path: &StorePath) -> Arc<Flight> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| flight.strong_count() > 0);
        let known = flights.get(path).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let flight = Arc::default();
            flights.insert(path.clone(), Arc::downgrade(&flight));
            flight
        })
    }
}

/// Returns the jobs of a submission, inputs first: what nobody has, neither the store nor an upstream cache. What caches have of the
/// rest is in the store then.
///
/// # Errors
/// A [`Refusal`] as of [`needed::jobs`], or because the store failed.
pub(crate) async fn jobs(parts: &Arc<Parts>, closure: &DrvClosure, roots: &[Root]) -> Result<Vec<JobSpec>, Refusal> {
    let search = Search::begin(parts).await;
    loop {
        let jobs = needed::jobs(closure, roots, |outputs| search.unbuilt(outputs), |outputs| submit::realised(parts, outputs)).await?;
        if search.state().found.is_empty() && search.order.is_empty() {
            return Ok(jobs);
        }
        // What clients did not bring may be there as well.
        let sources: BTreeSet<StorePath> =
            jobs.iter().flat_map(|job| closure.outlines[&job.derivation].sources().iter().cloned()).collect();
        search.missing(sources.iter().cloned().collect()).await?;
        let wanted = unbuilt(closure, roots, &jobs).into_iter().chain(sources);
        if search.bring(wanted).await? {
            return Ok(jobs);
        }
    }
}

/// Returns those of some paths that caches have and the store lacks. Nothing is fetched.
///
/// # Errors
/// A [`Refusal`] if the store failed.
pub(crate) async fn substitutable(parts: &Arc<Parts>, paths: Vec<StorePath>) -> Result<Vec<Substitutable>, Refusal> {
    let search = Search::begin(parts).await;
    search.missing(paths).await?;
    let state = search.state();
    let described = state.found.values().map(|found| {
        let narinfo = &found.believed.narinfo;
        Substitutable {
            path: narinfo.path.clone(),
            references: narinfo.references.iter().cloned().collect(),
            download_bytes: narinfo.file_size_bytes.unwrap_or_default(),
            nar_bytes: narinfo.nar_size_bytes,
        }
    });
    Ok(described.collect())
}

/// Returns the outputs that jobs or roots want of derivations that are no jobs.
fn unbuilt(closure: &DrvClosure, roots: &[Root], jobs: &[JobSpec]) -> BTreeSet<StorePath> {
    let built: BTreeSet<_> = jobs.iter().map(|job| &job.derivation).collect();
    let mut outputs = BTreeSet::new();
    for root in roots.iter().filter(|root| !built.contains(&root.derivation)) {
        let made = closure.outlines[&root.derivation].outputs().iter();
        let wanted = made.filter(|(name, _)| root.outputs.is_empty() || root.outputs.contains(name));
        outputs.extend(wanted.filter_map(|(_, path)| path.clone()));
    }
    for job in jobs {
        for need in closure.outlines[&job.derivation].needs().iter().filter(|need| !built.contains(&need.derivation)) {
            let Some(input) = closure.outlines.get(&need.derivation) else { continue };
            outputs.extend(need.output.as_ref().and_then(|name| input.output(name)?.cloned()));
        }
    }
    outputs
}

/// What one submission has asked the caches.
struct Search<'a> {
    parts: &'a Arc<Parts>,
    /// The leadership under which it began.
    leader: Option<Leader>,
    /// The caches that answer.
    order: Vec<usize>,
    state: Mutex<State>,
}

struct State {
    /// What a cache has and the store lacks.
    found: BTreeMap<StorePath, Found>,
    /// What no cache has, or none gives.
    nowhere: BTreeSet<StorePath>,
    /// The caches that did not give a path.
    failed: BTreeMap<StorePath, BTreeSet<usize>>,
    /// What came and could not be valid yet.
    kept: Vec<Arc<Flight>>,
    /// How long answers are waited for, yet.
    patience: Duration,
}

impl State {
    fn new() -> Self {
        let patience = Duration::from_millis(UPSTREAM_ASKING_MS_MAX);
        Self { found: BTreeMap::new(), nowhere: BTreeSet::new(), failed: BTreeMap::new(), kept: Vec::new(), patience }
    }
}

/// What a round brought.
#[derive(Default)]
struct Brought {
    count: usize,
    nar_bytes: u64,
    /// A cache did not give something.
    has_failed: bool,
    /// What came and is not valid.
    waiting: BTreeMap<StorePath, Endorsed>,
    left: BTreeMap<StorePath, Arc<Flight>>,
}

/// The end of a task of a round.
enum Done {
    /// The archive of a path came; `None`: the store has the path.
    Took { path: StorePath, from: usize, took: Result<Option<(Endorsed, Arc<Flight>)>, TakeError> },
    /// It is valid, or something that it refers to is not.
    Published { path: StorePath, published: Result<bool, PublishError> },
}

/// Fetches the archive of a path, with whoever else wants it, unless it is there.
async fn take(parts: Arc<Parts>, found: Found, flight: Arc<Flight>) -> Done {
    let (from, path) = (found.from, found.believed.narinfo.path.clone());
    let upstreams = &parts.substitution.upstreams;
    let took = async {
        if parts.store.path_info(&path).await.map_err(|error| TakeError::Own(error.into()))?.is_some() {
            return Ok(None);
        }
        let shared = flight.get_or_try_init(|| upstreams.take(&parts.store, &found)).await?;
        // Others may believe another cache, which says otherwise.
        let endorsed = match shared.info.references == found.believed.narinfo.references {
            true => shared.clone(),
            false => upstreams.take(&parts.store, &found).await?,
        };
        Ok(Some((endorsed, flight)))
    };
    let took = took.await;
    Done::Took { path, from, took }
}

/// Makes a path valid.
async fn make_valid(parts: Arc<Parts>, leader: Option<Leader>, endorsed: Endorsed) -> Done {
    let published = match brought::publish(&parts, leader, &endorsed).await {
        Ok(_) => Ok(true),
        Err(PublishError::Store(StoreError::MissingReference { .. })) => Ok(false),
        Err(error) => Err(error),
    };
    Done::Published { path: endorsed.info.path, published }
}

/// Collects what comes within some time, and returns what is left of that.
async fn within<T>(patience: Duration, answers: impl Stream<Item = T>) -> (Vec<T>, Duration) {
    let deadline = Instant::now() + patience;
    let (mut answers, mut came) = (std::pin::pin!(answers), Vec::new());
    while let Ok(Some(answer)) = timeout_at(deadline, answers.next()).await {
        came.push(answer);
    }
    (came, deadline.saturating_duration_since(Instant::now()))
}

impl<'a> Search<'a> {
    async fn begin(parts: &'a Arc<Parts>) -> Self {
        let leader = leading::own(parts);
        Self { parts, leader, order: parts.substitution.upstreams.order().await, state: Mutex::new(State::new()) }
    }

    /// Returns those of some outputs that neither the store nor a cache has.
    async fn unbuilt(&self, paths: Vec<StorePath>) -> Result<Vec<StorePath>, Refusal> {
        touch(self.parts, &paths).await;
        // What is taken for absent and is not is built again, and stays as it is.
        let missing = self.parts.store.unpublished(&paths).await.map_err(|error| unavailable(&error))?;
        self.nowhere(missing).await
    }

    /// Returns those of some paths that neither the store nor a cache has.
    async fn missing(&self, paths: Vec<StorePath>) -> Result<Vec<StorePath>, Refusal> {
        touch(self.parts, &paths).await;
        let missing = self.parts.store.missing(&paths).await.map_err(|error| unavailable(&error))?;
        self.nowhere(missing).await
    }

    /// Returns those of some paths that the store lacks which no cache has either.
    async fn nowhere(&self, missing: Vec<StorePath>) -> Result<Vec<StorePath>, Refusal> {
        if self.order.is_empty() {
            return Ok(missing);
        }
        let unasked: BTreeSet<StorePath> = {
            let state = self.state();
            missing.iter().filter(|path| !state.found.contains_key(*path) && !state.nowhere.contains(*path)).cloned().collect()
        };
        let questions = stream::iter(unasked.iter().cloned()).map(|path| async move {
            let but = self.state().failed.get(&path).cloned().unwrap_or_default();
            (self.parts.substitution.upstreams.find(&self.order, &path, &but).await, path)
        });
        let patience = self.state().patience;
        let (answers, left) = within(patience, questions.buffer_unordered(UPSTREAM_QUERIES_MAX)).await;
        if left.is_zero() {
            tracing::warn!(asked = unasked.len(), answered = answers.len(), "upstream caches answer too slowly: what is left is built");
        }
        {
            let mut state = self.state();
            let found = answers.iter().filter(|(found, _)| found.is_some()).count();
            let counts = &self.parts.meter.upstream;
            add(&counts.found, u64::try_from(found).unwrap_or(u64::MAX));
            add(&counts.absent, u64::try_from(unasked.len() - found).unwrap_or(u64::MAX));
            state.patience = left;
            state.nowhere.extend(unasked);
            for (found, path) in answers {
                if let Some(found) = found {
                    state.nowhere.remove(&path);
                    state.found.insert(path, found);
                }
            }
        }
        let state = self.state();
        Ok(missing.into_iter().filter(|path| !state.found.contains_key(path)).collect())
    }

    /// Brings those of some paths that caches have, with all that they refer to. Returns whether all are there; if not, whoever asked is
    /// to ask anew which are missing.
    async fn bring(&self, wanted: impl Iterator<Item = StorePath>) -> Result<bool, Refusal> {
        let wanted: BTreeSet<StorePath> = {
            let state = self.state();
            wanted.filter(|path| state.found.contains_key(path)).collect()
        };
        let Some(closure) = self.closure(wanted).await? else { return Ok(false) };
        let (ordered, circular) = in_order(&closure);
        if !circular.is_empty() {
            self.give_up(circular);
            return Ok(false);
        }
        let round = {
            let state = self.state();
            Round::new(&closure, ordered, |path| state.found[path].from, UPSTREAM_FETCHES_MAX)
        };
        let brought = self.drive(round).await?;
        if brought.count > 0 {
            tracing::info!(paths = brought.count, nar_bytes = brought.nar_bytes, "took paths from upstream caches");
        }
        let is_whole = brought.left.is_empty() && !brought.has_failed;
        if !brought.has_failed {
            // Nobody is to blame, and asking anew would end the same.
            self.give_up(brought.left.keys().cloned());
        }
        // The next round need not fetch these again.
        self.state().kept = brought.left.into_values().collect();
        Ok(is_whole)
    }

    /// Fetches what a round has, and publishes each path after those that it refers to. Dropped, it fetches nothing more.
    async fn drive(&self, mut round: Round) -> Result<Brought, Refusal> {
        let (mut work, mut brought) = (JoinSet::new(), Brought::default());
        let (mut ready, mut publishing) = (VecDeque::new(), 0);
        loop {
            while let Some(path) = round.next_fetch() {
                work.spawn(take(self.parts.clone(), self.found(&path), self.parts.substitution.flight(&path)));
            }
            while publishing < PUBLICATIONS_MAX
                && let Some(endorsed) = ready.pop_front()
            {
                publishing += 1;
                work.spawn(make_valid(self.parts.clone(), self.leader, endorsed));
            }
            let Some(done) = work.join_next().await else { return Ok(brought) };
            let valid = match done.map_err(|died| refuse::unavailable("take from upstream caches", &died))? {
                Done::Took { path, from, took: Ok(Some((endorsed, flight))) } => {
                    brought.left.insert(path.clone(), flight);
                    if round.fetched(&path, from) {
                        ready.push_back(endorsed.clone());
                    }
                    brought.waiting.insert(path, endorsed);
                    continue;
                }
                Done::Took { path, from, took: Ok(None) } => {
                    round.fetched(&path, from);
                    path
                }
                Done::Took { path, from, took: Err(TakeError::Cache { path: of, cache, source }) } => {
                    tracing::warn!(path = %of, cache, error = %Chain(source.as_ref()), "an upstream cache does not give what it has");
                    add(&self.parts.meter.upstream.failed, 1);
                    round.fetched(&path, from);
                    round.failed(&path);
                    self.fail(path);
                    brought.has_failed = true;
                    continue;
                }
                Done::Took { took: Err(error @ TakeError::Own(_)), .. } => {
                    return Err(refuse::unavailable("take from upstream caches", &error));
                }
                Done::Published { path, published } => {
                    publishing -= 1;
                    match published.map_err(|error| refuse::unavailable("submit", &error))? {
                        true => path,
                        false => {
                            round.failed(&path);
                            continue;
                        }
                    }
                }
            };
            // The store has it from here on.
            self.state().found.remove(&valid);
            brought.left.remove(&valid);
            if let Some(endorsed) = brought.waiting.remove(&valid) {
                brought.count += 1;
                brought.nar_bytes += endorsed.info.nar_size_bytes;
                add(&self.parts.meter.upstream.taken, 1);
                add(&self.parts.meter.upstream.taken_bytes, endorsed.info.nar_size_bytes);
            }
            let able = round.valid(&valid);
            ready.extend(able.iter().filter_map(|path| brought.waiting.get(path).cloned()));
        }
    }

    fn found(&self, path: &StorePath) -> Found {
        self.state().found.get(path).cloned().expect("the closure holds what was found")
    }

    /// Returns what has to be brought so that `wanted` can be valid, with the references of each. `None`: something is nowhere.
    async fn closure(&self, wanted: BTreeSet<StorePath>) -> Result<Option<BTreeMap<StorePath, BTreeSet<StorePath>>>, Refusal> {
        let mut closure: BTreeMap<StorePath, BTreeSet<StorePath>> = BTreeMap::new();
        let mut nowhere: BTreeSet<StorePath> = BTreeSet::new();
        let mut layer = wanted.clone();
        while !layer.is_empty() {
            let mut references = BTreeSet::new();
            {
                let state = self.state();
                for (path, found) in layer.into_iter().filter_map(|path| state.found.get_key_value(&path)) {
                    let others = found.believed.narinfo.references.iter().filter(|reference| *reference != path).cloned();
                    let others: BTreeSet<StorePath> = others.collect();
                    references.extend(others.iter().cloned());
                    closure.insert(path.clone(), others);
                }
            }
            if closure.len() > UPSTREAM_PATHS_MAX {
                tracing::warn!(paths_max = UPSTREAM_PATHS_MAX, "what upstream caches have is too much for one submission, and is built");
                self.give_up(wanted);
                return Ok(None);
            }
            references.retain(|path| !closure.contains_key(path));
            nowhere.extend(self.missing(references.iter().cloned().collect()).await?);
            layer = references;
        }
        if nowhere.is_empty() {
            return Ok(Some(closure));
        }
        tracing::warn!(lacking = %nowhere.first().expect("not empty"), "upstream caches have paths without all that these refer to");
        self.give_up(unattainable(&closure, nowhere));
        Ok(None)
    }

    /// Notes that no cache gives these.
    fn give_up(&self, paths: impl IntoIterator<Item = StorePath>) {
        let mut state = self.state();
        for path in paths {
            state.found.remove(&path);
            state.nowhere.insert(path);
        }
    }

    /// Notes that the cache that has a path does not give it: the next one is asked.
    fn fail(&self, path: StorePath) {
        let mut state = self.state();
        if let Some(found) = state.found.remove(&path) {
            state.failed.entry(path).or_default().insert(found.from);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unavailable(error: &StoreError) -> Refusal {
    refuse::unavailable("submit", error)
}

/// Paths that are made valid at a time for one submission: each waits for the disk.
const PUBLICATIONS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn caches_that_do_not_answer_are_not_waited_for_without_end() {
        let hour = Duration::from_secs(3600);
        let (answers, left) = within(Duration::ZERO, stream::iter([1, 2]).chain(stream::pending())).await;
        assert_eq!((answers, left), (vec![1, 2], Duration::ZERO));
        let (answers, left) = within(hour, stream::iter([1, 2])).await;
        assert_eq!(answers, [1, 2]);
        assert!(!left.is_zero() && left <= hour);
    }
}
