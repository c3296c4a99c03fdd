//! What follows from the facts and is kept at hand: who waits for whom, which jobs are ready, what each worker holds.
//!
//! Never in a snapshot: [`Index::of`] makes it from the facts alone, and the invariant checker compares. [`Index::attach`] and
//! [`Index::detach`] are each other's inverse, so that a job's change is: detach, change, attach.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Reverse;

use kiln_wire::client::JobCounts;
use kiln_wire::{Account, BuildId, DrvPath, RequestId, Resources, StorePath, Timestamp, WorkerId};

use crate::build::Build;
use crate::estimate::{self, Expected, Topic};
use crate::fair::{Amount, Party};
use crate::farm::Facts;
use crate::job::{Job, JobKey, Needs, Running, State};
use crate::pool::Fleet;

/// Everything derived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    pub by_path: BTreeMap<DrvPath, JobKey>,
    pub links: BTreeMap<JobKey, Links>,
    /// Ready jobs by class, then by whose they are, each in the order in which they are planned. No empty classes, and no empty lines.
    pub ready: BTreeMap<Arc<Needs>, Lines>,
    /// Ready jobs that failed before and wait until a time.
    pub delayed: BTreeSet<(Timestamp, JobKey)>,
    /// Running jobs that nobody wants, by the time at which they may be revoked.
    pub grace: BTreeSet<(Timestamp, JobKey)>,
    /// Workers that rest, by the time at which that is over.
    pub rests: BTreeSet<(Timestamp, WorkerId)>,
    /// What workers hold. No idle workers.
    pub loads: BTreeMap<WorkerId, Load>,
    /// Committed outputs and the jobs that made them (a changed fixed-output recipe keeps its output path).
    pub paths: BTreeSet<(StorePath, JobKey)>,
    pub requests: BTreeMap<RequestId, BuildId>,
    pub tallies: BTreeMap<BuildId, Tally>,
    /// How many jobs of the farm are in which state.
    pub counts: Counts,
    /// Jobs by what may be learned of them.
    pub topics: BTreeSet<(Topic, JobKey)>,
    /// Registered workers, and which of them have room.
    pub fleet: Fleet,
    /// Whose jobs those of a build are that no other build wants.
    pub parties: BTreeMap<BuildId, Arc<Party>>,
    /// What accounts hold of the fleet. None that hold nothing.
    pub held: BTreeMap<Account, Amount>,
    /// Jobs that run in two places.
    pub copies: BTreeSet<JobKey>,
    /// Jobs that run and might get a second attempt: when they have run for long enough for that to be thought of.
    pub late: BTreeSet<(Timestamp, JobKey)>,
    /// Running jobs, by when what needs them would be built if all took as long as is expected.
    pub ends: BTreeSet<(Timestamp, JobKey)>,
}

/// The ready jobs of a class, by whose they are.
pub(crate) type Lines = BTreeMap<Arc<Party>, BTreeSet<ReadyEntry>>;

/// The order of a class: highest upward rank first, ties by derivation path.
pub(crate) type ReadyEntry = (Reverse<u64>, Arc<DrvPath>, JobKey);

/// How a job hangs together with others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Links {
    /// Jobs that need it.
    pub dependents: BTreeSet<JobKey>,
    /// Inputs that are not built.
    pub unbuilt: u32,
    /// Builds that hold it, sorted.
    pub builds: Vec<BuildId>,
    /// What the job is expected to take.
    pub expected: Expected,
    /// Its upward rank: see [`crate::rank`].
    pub rank_ms: u64,
    /// Expected milliseconds from its start to the end of the longest chain that needs it, without a surprise.
    pub path_ms: u64,
}

/// What a worker's live leases hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub jobs: BTreeSet<JobKey>,
    pub used: Resources,
    /// Light leases among them.
    pub light: u32,
    /// Leases among them that hold nothing: others took their place.
    pub relieved: u32,
}

impl Load {
    fn enter(&mut self, key: JobKey, running: &Running) {
        self.jobs.insert(key);
        if running.relieved {
            self.relieved += 1;
            return;
        }
        self.used.cores = self.used.cores.saturating_add(running.granted.cores);
        self.used.memory_mib = self.used.memory_mib.saturating_add(running.granted.memory_mib);
        self.light += u32::from(running.light);
    }

    fn leave(&mut self, key: JobKey, running: &Running) {
        self.jobs.remove(&key);
        if running.relieved {
            self.relieved -= 1;
            return;
        }
        self.used.cores = self.used.cores.saturating_sub(running.granted.cores);
        self.used.memory_mib = self.used.memory_mib.saturating_sub(running.granted.memory_mib);
        self.light -= u32::from(running.light);
    }

    /// Returns how many slots are held, the light ones aside.
    pub fn slots(&self) -> u32 {
        u32::try_from(self.jobs.len()).unwrap_or(u32::MAX).saturating_sub(self.light).saturating_sub(self.relieved)
    }
}

/// How far a build's jobs are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Jobs that are not final.
    pub open: u32,
    /// Built jobs whose outputs are not published.
    pub unpublished: u32,
    /// How many of its jobs are in which state.
    pub counts: Counts,
}

/// How many jobs are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub blocked: u32,
    pub ready: u32,
    pub running: u32,
    pub built: u32,
    pub failed: u32,
}

impl Counts {
    /// Returns the count that a job is in.
    fn of(&mut self, job: &Job, unbuilt: u32) -> &mut u32 {
        match &job.state {
            State::Waiting if unbuilt > 0 || job.is_unresolved() => &mut self.blocked,
            State::Waiting => &mut self.ready,
            State::Running(_) => &mut self.running,
            State::Built { .. } => &mut self.built,
            State::Failed { .. } | State::DependencyFailed { .. } => &mut self.failed,
        }
    }
}

impl From<Counts> for JobCounts {
    fn from(counts: Counts) -> Self {
        let Counts { blocked, ready, running, built, failed } = counts;
        let [blocked, ready, running, built, failed] = [blocked, ready, running, built, failed].map(u64::from);
        Self { blocked, ready, running, built, failed }
    }
}

impl Index {
    /// Derives everything from the facts.
    pub fn of(facts: &Facts) -> Self {
        let mut index = Self::default();
        for id in facts.workers.keys() {
            index.seat(facts, id);
        }
        index.rests = facts.health.iter().filter_map(|(id, health)| Some((health.rests_until()?, id.clone()))).collect();
        for (id, build) in &facts.builds {
            index.add_build(*id, build);
        }
        for (key, job) in &facts.jobs {
            index.add_job(facts, *key, job);
        }
        index.rank_all(facts, facts.jobs.keys().rev().copied());
        for key in facts.jobs.keys() {
            index.attach(facts, *key);
        }
        index
    }

    /// Links a build to its jobs. These must be detached, or not be known yet.
    pub fn add_build(&mut self, id: BuildId, build: &Build) {
        self.requests.insert(build.request, id);
        self.tallies.insert(id, Tally::default());
        self.name_party(id, build);
        for key in &build.jobs {
            let builds = &mut self.links.entry(*key).or_default().builds;
            if let Err(at) = builds.binary_search(&id) {
                builds.reserve_exact(1);
                builds.insert(at, id);
            }
        }
    }

    /// Undoes [`Self::add_build`].
    pub fn remove_build(&mut self, id: BuildId, build: &Build) {
        self.requests.remove(&build.request);
        self.tallies.remove(&id);
        self.parties.remove(&id);
        for key in &build.jobs {
            if let Some(links) = self.links.get_mut(key) {
                links.builds.retain(|other| *other != id);
            }
        }
    }

    /// Links a job to its inputs; its state is then attached apart.
    pub fn add_job(&mut self, facts: &Facts, key: JobKey, job: &Job) {
        self.by_path.insert((*job.derivation).clone(), key);
        let mut unbuilt = 0;
        for input in &job.inputs {
            self.links.entry(*input).or_default().dependents.insert(key);
            unbuilt += u32::from(!facts.jobs.get(input).is_some_and(Job::is_built));
        }
        self.topics.extend(estimate::topics_of(job).map(|topic| (topic, key)));
        let links = self.links.entry(key).or_default();
        links.unbuilt = unbuilt;
        links.expected = if job.is_built() { Expected::default() } else { facts.estimates.expected(job) };
    }

    /// Undoes [`Self::add_job`]; the job must be detached and nothing may depend on it.
    pub fn remove_job(&mut self, key: JobKey, job: &Job) {
        self.by_path.remove(&*job.derivation);
        for topic in estimate::topics_of(job) {
            self.topics.remove(&(topic, key));
        }
        self.links.remove(&key);
        for input in &job.inputs {
            if let Some(links) = self.links.get_mut(input) {
                links.dependents.remove(&key);
            }
        }
    }

    /// Returns the jobs that need `key`.
    pub fn dependents(&self, key: JobKey) -> impl Iterator<Item = JobKey> + '_ {
        self.links.get(&key).into_iter().flat_map(|links| links.dependents.iter().copied())
    }

    /// Returns the jobs of which something may be learned under a topic.
    pub fn jobs_of(&self, topic: Topic) -> impl Iterator<Item = JobKey> + '_ {
        self.topics.range((topic, JobKey(0))..=(topic, JobKey(u32::MAX))).map(|(_, key)| *key)
    }

    /// Returns how many inputs of `key` are not built.
    pub fn unbuilt(&self, key: JobKey) -> u32 {
        self.links.get(&key).map_or(0, |links| links.unbuilt)
    }

    /// Enters what follows from a job's state.
    pub fn attach(&mut self, facts: &Facts, key: JobKey) {
        let Some(job) = facts.jobs.get(&key) else { return };
        self.tally(job, key, |count| *count += 1);
        match &job.state {
            State::Waiting => match self.spot(facts, key, job) {
                Spot::Ready => {
                    let entry = (Reverse(self.rank_ms(key)), Arc::clone(&job.derivation), key);
                    let party = self.party_of(facts, key, job);
                    self.ready.entry(self.needs_of(key, job)).or_default().entry(party).or_default().insert(entry);
                }
                Spot::Delayed(until) => {
                    self.delayed.insert((until, key));
                }
                Spot::Nowhere => {}
            },
            State::Running(running) => {
                for running in job.leases() {
                    self.close(facts, &running.worker);
                    self.loads.entry(running.worker.clone()).or_default().enter(key, running);
                    self.open(facts, &running.worker);
                    self.hold(facts, key, running);
                }
                self.grace.extend(running.revoke_at.map(|at| (at, key)));
                self.watch(facts, key, job, running);
            }
            State::Built { outputs, .. } => {
                self.paths.extend(outputs.iter().map(|output| (output.info.path.clone(), key)));
                if let Some(links) = self.links.get_mut(&key) {
                    (links.expected, links.rank_ms, links.path_ms) = (Expected::default(), 0, 0);
                }
            }
            State::Failed { .. } | State::DependencyFailed { .. } => {}
        }
    }

    /// Takes out what followed from a job's state. Call it before the state, the job's rank or its builds change.
    pub fn detach(&mut self, facts: &Facts, key: JobKey) {
        let Some(job) = facts.jobs.get(&key) else { return };
        self.tally(job, key, |count| *count -= 1);
        match &job.state {
            State::Waiting => match self.spot(facts, key, job) {
                Spot::Ready => self.remove_ready(facts, job, key),
                Spot::Delayed(until) => {
                    self.delayed.remove(&(until, key));
                }
                Spot::Nowhere => {}
            },
            State::Running(running) => {
                for running in job.leases() {
                    self.close(facts, &running.worker);
                    if let Some(load) = self.loads.get_mut(&running.worker) {
                        load.leave(key, running);
                        if load.jobs.is_empty() {
                            self.loads.remove(&running.worker);
                        }
                    }
                    self.open(facts, &running.worker);
                    self.release(facts, key, running);
                }
                if let Some(at) = running.revoke_at {
                    self.grace.remove(&(at, key));
                }
                self.unwatch(facts, key, job, running);
            }
            State::Built { outputs, .. } => {
                for output in outputs {
                    self.paths.remove(&(output.info.path.clone(), key));
                }
            }
            State::Failed { .. } | State::DependencyFailed { .. } => {}
        }
    }

    /// Notes that an input of `key` was built. Returns whether it was the last one missing.
    pub fn input_built(&mut self, facts: &Facts, key: JobKey) -> bool {
        self.detach(facts, key);
        let links = self.links.entry(key).or_default();
        links.unbuilt = links.unbuilt.saturating_sub(1);
        let last = links.unbuilt == 0;
        self.attach(facts, key);
        last
    }

    fn remove_ready(&mut self, facts: &Facts, job: &Job, key: JobKey) {
        let (needs, party) = (self.needs_of(key, job), self.party_of(facts, key, job));
        let rank_ms = self.rank_ms(key);
        let Some(class) = self.ready.get_mut(&needs) else { return };
        if let Some(line) = class.get_mut(&party) {
            line.remove(&(Reverse(rank_ms), Arc::clone(&job.derivation), key));
            if line.is_empty() {
                class.remove(&party);
            }
        }
        if class.is_empty() {
            self.ready.remove(&needs);
        }
    }

    /// Returns where a waiting job belongs. A job that no build wants started is nowhere.
    fn spot(&self, facts: &Facts, key: JobKey, job: &Job) -> Spot {
        let Some(links) = self.links.get(&key) else { return Spot::Nowhere };
        let wanted = links.builds.iter().any(|id| facts.builds.get(id).is_some_and(Build::is_going));
        if links.unbuilt > 0 || !wanted || job.is_unresolved() {
            return Spot::Nowhere;
        }
        job.tries.retry_at.map_or(Spot::Ready, Spot::Delayed)
    }

    /// Returns what the next attempt at a job needs of a worker, and how much memory it would like.
    pub fn needs_of(&self, key: JobKey, job: &Job) -> Arc<Needs> {
        job.needs_next(u64::from(self.expected(key).memory_mib))
    }

    fn tally(&mut self, job: &Job, key: JobKey, count: impl Fn(&mut u32)) {
        let open = !job.is_final();
        let unpublished = matches!(job.state, State::Built { published: false, .. });
        let links = self.links.get(&key);
        let unbuilt = links.map_or(0, |links| links.unbuilt);
        count(self.counts.of(job, unbuilt));
        for build in links.map(|links| links.builds.as_slice()).unwrap_or_default() {
            let Some(tally) = self.tallies.get_mut(build) else { continue };
            count(tally.counts.of(job, unbuilt));
            if open {
                count(&mut tally.open);
            } else if unpublished {
                count(&mut tally.unpublished);
            }
        }
    }
}

/// Where a waiting job belongs.
enum Spot {
    Ready,
    Delayed(Timestamp),
    Nowhere,
}
