//! Substitution: what a submission needs and upstream caches have is brought into the farm's store, and is not built.
//!
//! Happens while a submission is answered, on the leader, before the farm hears of the build: nothing of it is in the replicated state,
//! and a leader that is deposed leaves paths that the next one finds valid. Each path becomes valid after all that it refers to. What a
//! cache does not deliver is looked for at the next one, and is built in the end. Source: ADR 0030.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures::{StreamExt, stream};
use kiln_store::{Endorsed, StoreError};
use kiln_wire::client::{Refusal, Substitutable};
use kiln_wire::limits::{UPSTREAM_FETCHES_MAX, UPSTREAM_PATHS_MAX, UPSTREAM_QUERIES_MAX};
use kiln_wire::{JobSpec, Root, StoreDir, StorePath};
use tokio::sync::OnceCell;

use crate::driver::Chain;
use crate::drv_closure::DrvClosure;
use crate::garbage::touch;
use crate::intake::{self, IntakeError};
use crate::parts::Parts;
use crate::upstream::{Found, Substituter, TakeError, Upstreams};
use crate::{needed, refuse, submit};

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

    /// Returns the flights of some paths, of which somebody else may have begun some.
    fn flights(&self, paths: &[StorePath]) -> Vec<Arc<Flight>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| flight.strong_count() > 0);
        let mut flight = |path: &StorePath| {
            let known = flights.get(path).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let flight = Arc::default();
                flights.insert(path.clone(), Arc::downgrade(&flight));
                flight
            })
        };
        paths.iter().map(&mut flight).collect()
    }
}

/// Returns the jobs of a submission, inputs first: what nobody has, neither the store nor an upstream cache. What caches have of the
/// rest is in the store then.
///
/// # Errors
/// A [`Refusal`] as of [`needed::jobs`], or because the store failed.
pub(crate) async fn jobs(parts: &Parts, closure: &DrvClosure, roots: &[Root]) -> Result<Vec<JobSpec>, Refusal> {
    let search = Search::begin(parts).await;
    loop {
        let jobs = needed::jobs(closure, roots, |outputs| search.missing(outputs), |outputs| submit::realised(parts, outputs)).await?;
        if search.state().found.is_empty() && search.order.is_empty() {
            return Ok(jobs);
        }
        // What clients did not bring may be there as well.
        let sources: BTreeSet<StorePath> = jobs.iter().flat_map(|job| closure.parsed[&job.derivation].sources.iter().cloned()).collect();
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
pub(crate) async fn substitutable(parts: &Parts, paths: Vec<StorePath>) -> Result<Vec<Substitutable>, Refusal> {
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
        let made = closure.parsed[&root.derivation].outputs.iter();
        let wanted = made.filter(|(name, _)| root.outputs.is_empty() || root.outputs.contains(*name));
        outputs.extend(wanted.filter_map(|(_, output)| output.path().cloned()));
    }
    for job in jobs {
        for (input, wanted) in closure.parsed[&job.derivation].inputs.iter().filter(|(input, _)| !built.contains(input)) {
            let Some(derivation) = closure.parsed.get(input) else { continue };
            outputs.extend(wanted.outputs.iter().filter_map(|name| derivation.outputs.get(name)?.path().cloned()));
        }
    }
    outputs
}

/// What one submission has asked the caches.
struct Search<'a> {
    parts: &'a Parts,
    /// The caches that answer.
    order: Vec<usize>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What a cache has and the store lacks.
    found: BTreeMap<StorePath, Found>,
    /// What no cache has, or none gives.
    nowhere: BTreeSet<StorePath>,
    /// The caches that did not give a path.
    failed: BTreeMap<StorePath, BTreeSet<usize>>,
}

impl<'a> Search<'a> {
    async fn begin(parts: &'a Parts) -> Self {
        Self { parts, order: parts.substitution.upstreams.order().await, state: Mutex::default() }
    }

    /// Returns those of some paths that neither the store nor a cache has.
    async fn missing(&self, paths: Vec<StorePath>) -> Result<Vec<StorePath>, Refusal> {
        touch(self.parts, &paths).await;
        let missing = self.parts.store.missing(&paths).await.map_err(|error| unavailable(&error))?;
        if self.order.is_empty() {
            return Ok(missing);
        }
        let unasked: BTreeSet<StorePath> = {
            let state = self.state();
            missing.iter().filter(|path| !state.found.contains_key(*path) && !state.nowhere.contains(*path)).cloned().collect()
        };
        let questions = stream::iter(unasked).map(|path| async move {
            let but = self.state().failed.get(&path).cloned().unwrap_or_default();
            (self.parts.substitution.upstreams.find(&self.order, &path, &but).await, path)
        });
        let mut answers = std::pin::pin!(questions.buffer_unordered(UPSTREAM_QUERIES_MAX));
        while let Some((found, path)) = answers.next().await {
            let mut state = self.state();
            match found {
                Some(found) => drop(state.found.insert(path, found)),
                None => drop(state.nowhere.insert(path)),
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
        let flights = self.parts.substitution.flights(&ordered);
        let takes = ordered.into_iter().zip(flights).map(|(path, flight)| async move { (self.take(&path, &flight).await, path) });
        let mut taken = std::pin::pin!(stream::iter(takes).buffered(UPSTREAM_FETCHES_MAX));
        let (mut is_whole, mut count, mut nar_bytes) = (true, 0_usize, 0_u64);
        while let Some((took, path)) = taken.next().await {
            let published = match took {
                Ok(endorsed) => {
                    nar_bytes += endorsed.info.nar_size_bytes;
                    self.publish(&endorsed).await?
                }
                Err(TakeError::Cache { path, cache, source }) => {
                    tracing::warn!(%path, cache, error = %Chain(source.as_ref()), "an upstream cache does not give what it has");
                    false
                }
                Err(error @ TakeError::Own(_)) => return Err(refuse::unavailable("take from upstream caches", &error)),
            };
            match published {
                true => {
                    count += 1;
                    // The store has it from here on.
                    self.state().found.remove(&path);
                }
                false => {
                    is_whole = false;
                    self.fail(path);
                }
            }
        }
        if count > 0 {
            tracing::info!(paths = count, nar_bytes, "took paths from upstream caches");
        }
        Ok(is_whole)
    }

    async fn take(&self, path: &StorePath, flight: &Flight) -> Result<Endorsed, TakeError> {
        let found = self.state().found.get(path).cloned().expect("the closure holds what was found");
        flight.get_or_try_init(|| self.parts.substitution.upstreams.take(&self.parts.store, &found)).await.cloned()
    }

    /// Makes a path valid; returns whether all that it refers to is.
    async fn publish(&self, endorsed: &Endorsed) -> Result<bool, Refusal> {
        match intake::publish(self.parts, endorsed).await {
            // One that was built meanwhile, with another content, is as good.
            Ok(()) | Err(IntakeError::Differs { .. }) => Ok(true),
            Err(IntakeError::Store(StoreError::MissingReference { .. })) => Ok(false),
            Err(error) => Err(refuse::unavailable("submit", &error)),
        }
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

/// Returns those of a closure that cannot be valid because something is nowhere, and what that is.
fn unattainable(closure: &BTreeMap<StorePath, BTreeSet<StorePath>>, nowhere: BTreeSet<StorePath>) -> BTreeSet<StorePath> {
    let mut users: BTreeMap<&StorePath, Vec<&StorePath>> = BTreeMap::new();
    for (path, references) in closure {
        references.iter().for_each(|reference| users.entry(reference).or_default().push(path));
    }
    let mut waiting: Vec<StorePath> = nowhere.iter().cloned().collect();
    let mut lost = nowhere;
    while let Some(path) = waiting.pop() {
        for user in users.get(&path).into_iter().flatten() {
            if lost.insert((*user).clone()) {
                waiting.push((*user).clone());
            }
        }
    }
    lost
}

/// Returns the paths of a closure, each after those of it that it refers to, and those that refer to themselves through others.
fn in_order(closure: &BTreeMap<StorePath, BTreeSet<StorePath>>) -> (Vec<StorePath>, BTreeSet<StorePath>) {
    let mut users: BTreeMap<&StorePath, Vec<&StorePath>> = BTreeMap::new();
    let mut left: BTreeMap<&StorePath, usize> = BTreeMap::new();
    for (path, references) in closure {
        let within = references.iter().filter(|reference| closure.contains_key(*reference));
        left.insert(path, within.clone().count());
        within.for_each(|reference| users.entry(reference).or_default().push(path));
    }
    let mut ready: Vec<&StorePath> = left.iter().filter(|(_, count)| **count == 0).map(|(path, _)| *path).collect();
    let mut ordered = Vec::with_capacity(closure.len());
    while let Some(path) = ready.pop() {
        left.remove(path);
        ordered.push(path.clone());
        for user in users.get(path).into_iter().flatten() {
            let count = left.get_mut(*user).expect("it waits for this one");
            *count -= 1;
            if *count == 0 {
                ready.push(user);
            }
        }
    }
    (ordered, left.into_keys().cloned().collect())
}

fn unavailable(error: &StoreError) -> Refusal {
    refuse::unavailable("submit", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: char) -> StorePath {
        StorePath::parse(&format!("{}-x", name.to_string().repeat(32))).expect("a path")
    }

    /// Reads `a>bc d>` as: a refers to b and c, d to nothing.
    fn closure(text: &str) -> BTreeMap<StorePath, BTreeSet<StorePath>> {
        let one = |(user, used): (&str, &str)| (path(user.chars().next().expect("a name")), used.chars().map(path).collect());
        text.split(' ').filter_map(|one| one.split_once('>')).map(one).collect()
    }

    fn names<'a>(paths: impl IntoIterator<Item = &'a StorePath>) -> String {
        paths.into_iter().filter_map(|path| path.as_str().chars().next()).collect()
    }

    #[test]
    fn paths_come_after_what_they_refer_to_and_circles_are_named() {
        for (text, ordered, circular) in [
            ("", "", ""),
            ("a>b b>c c>", "cba", ""),
            ("a>bc b>d c>d d>", "dcba", ""),
            ("a>z", "a", ""),
            ("a>b b>a c>", "c", "ab"),
            ("a>b b>a c>a d>", "d", "abc"),
        ] {
            let (found, left) = in_order(&closure(text));
            assert_eq!(names(&left), circular, "{text}");
            assert_eq!(found.len(), ordered.len(), "{text}: {}", names(&found));
            let place = |name: char| found.iter().position(|known| *known == path(name));
            for (user, used) in closure(text).iter().filter(|(user, _)| found.contains(user)) {
                assert!(
                    used.iter().all(|used| !found.contains(used)
                        || place(names([used]).chars().next().expect("one")) < found.iter().position(|known| known == user)),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn what_refers_to_something_that_is_nowhere_is_lost_and_nothing_else() {
        for (text, nowhere, expected) in
            [("a>b b>c d>", "c", "abc"), ("a>b b> d>z", "z", "dz"), ("a>b b>a", "", ""), ("a>bz b>a", "z", "abz")]
        {
            assert_eq!(names(&unattainable(&closure(text), nowhere.chars().map(path).collect())), expected, "{text}");
        }
    }
}
