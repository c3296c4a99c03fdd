//! The farm's state: what is replicated, and what follows from it.
//!
//! Invariant: [`Index`] is a function of [`Facts`]; it is kept up to date by [`Farm::change`] alone, never counted on its own.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use kiln_wire::{BuildId, DrvPath, Epoch, LogIndex, RequestId, Timestamp, WorkerId};
use serde::{Deserialize, Serialize};

use crate::build::{Build, Stage};
use crate::effect::Effect;
use crate::estimate::Estimates;
use crate::fair::Ledger;
use crate::fleet::{Free, Worker};
use crate::health::Health;
use crate::index::Index;
use crate::job::{Job, JobKey};
use crate::notice::Outbox;

/// Live work: jobs, leases, the fleet, builds. The same on every coordinator that applied the same log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Farm {
    pub(crate) facts: Facts,
    pub(crate) index: Index,
}

/// What is replicated. Everything here is in a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// The last applied entry.
    pub applied: Option<LogIndex>,
    /// The latest stamp of an applied command.
    #[serde(default)]
    pub latest: Timestamp,
    /// The next job's key; keys are not reused.
    pub job_next: u32,
    pub jobs: BTreeMap<JobKey, Job>,
    pub builds: BTreeMap<BuildId, Build>,
    pub workers: BTreeMap<WorkerId, Worker>,
    pub stages: BTreeMap<RequestId, Stage>,
    /// Submissions whose staged jobs were dropped, and when.
    pub dropped: BTreeMap<RequestId, Timestamp>,
    /// Submissions whose builds left the farm.
    pub retired: BTreeMap<BuildId, RequestId>,
    /// Workers against which something is held, registered or not.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub health: BTreeMap<WorkerId, Health>,
    /// What builds are expected to take.
    #[serde(default, skip_serializing_if = "Estimates::is_empty")]
    pub estimates: Estimates,
    /// Who has which share, and who used how much.
    #[serde(default, skip_serializing_if = "Ledger::is_empty")]
    pub ledger: Ledger,
    /// What receivers of webhooks are to be told.
    #[serde(default, skip_serializing_if = "Outbox::is_empty")]
    pub outbox: Outbox,
}

/// Effects of one command, in order.
pub(crate) type Effects = Vec<Effect>;

impl Farm {
    /// Returns a farm without jobs, builds or workers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the log index of the last applied command.
    pub fn applied(&self) -> Option<LogIndex> {
        self.facts.applied
    }

    /// Returns the latest stamp of an applied command. A new leader stamps nothing earlier.
    pub fn latest(&self) -> Timestamp {
        self.facts.latest
    }

    /// Returns registered workers with their registration. A new leader expects each to open a session, or to be lost.
    pub fn registrations(&self) -> impl Iterator<Item = (&WorkerId, Epoch)> {
        self.facts.workers.iter().map(|(worker, state)| (worker, state.epoch))
    }

    /// Returns the builds that have not left the farm.
    pub fn builds(&self) -> impl Iterator<Item = BuildId> + '_ {
        self.facts.builds.keys().copied()
    }

    /// Returns what receivers of webhooks are to be told.
    pub fn outbox(&self) -> &Outbox {
        &self.facts.outbox
    }

    pub(crate) fn key_of(&self, derivation: &DrvPath) -> Option<JobKey> {
        self.index.by_path.get(derivation).copied()
    }

    pub(crate) fn find(&self, derivation: &DrvPath) -> Option<(JobKey, &Job)> {
        let key = self.key_of(derivation)?;
        Some((key, self.job(key)))
    }

    /// Returns a job that an index, an edge or a build names.
    pub(crate) fn job(&self, key: JobKey) -> &Job {
        self.facts.jobs.get(&key).expect("indexes, edges and builds name live jobs only")
    }

    /// Changes one job and everything that follows from its state.
    pub(crate) fn change<R>(&mut self, key: JobKey, change: impl FnOnce(&mut Job) -> R) -> R {
        self.index.detach(&self.facts, key);
        let job = self.facts.jobs.get_mut(&key).expect("indexes, edges and builds name live jobs only");
        let result = change(job);
        self.index.attach(&self.facts, key);
        result
    }

    /// Changes a build's phase, and what follows from it for those of its jobs that are not final.
    pub(crate) fn change_build<R>(&mut self, build: BuildId, change: impl FnOnce(&mut Build) -> R) -> Option<R> {
        let jobs = self.facts.builds.get(&build)?.jobs.clone();
        for key in &jobs {
            self.index.detach(&self.facts, *key);
        }
        let result = self.facts.builds.get_mut(&build).map(change);
        if let Some(changed) = self.facts.builds.get(&build) {
            self.index.name_party(build, changed);
        }
        for key in &jobs {
            self.index.attach(&self.facts, *key);
        }
        result
    }

    /// Changes, enters or takes out one worker, and what follows from it.
    pub(crate) fn change_worker<R>(&mut self, id: &WorkerId, change: impl FnOnce(&mut BTreeMap<WorkerId, Worker>) -> R) -> R {
        // When they are late depends on the worker's speed.
        let jobs: Vec<JobKey> = self.index.loads.get(id).into_iter().flat_map(|load| &load.jobs).copied().collect();
        for key in &jobs {
            self.index.detach(&self.facts, *key);
        }
        self.index.unseat(&self.facts, id);
        let result = change(&mut self.facts.workers);
        self.index.seat(&self.facts, id);
        for key in &jobs {
            self.index.attach(&self.facts, *key);
        }
        result
    }

    /// Returns what a registered worker's live leases leave free.
    pub(crate) fn free_on(&self, worker: &WorkerId) -> Option<Free> {
        self.index.free_on(&self.facts, worker)
    }

    /// Returns the builds that have not ended and hold this job.
    pub(crate) fn live_builds_of(&self, key: JobKey) -> impl Iterator<Item = (BuildId, &Build)> {
        let builds = self.index.links.get(&key).map(|links| links.builds.as_slice()).unwrap_or_default();
        builds.iter().filter_map(|id| self.facts.builds.get(id).map(|build| (*id, build))).filter(|(_, build)| build.record().is_none())
    }

    /// Returns whether a build still waits for the end of this running job.
    pub(crate) fn is_awaited(&self, key: JobKey) -> bool {
        self.live_builds_of(key).any(|(_, build)| build.awaits(key))
    }

    /// Returns the builds to tell of an event of this job.
    pub(crate) fn watchers(&self, key: JobKey) -> Vec<BuildId> {
        self.live_builds_of(key).map(|(id, _)| id).collect()
    }

    /// Returns `roots` and everything they need, as far as the farm has it. Iterative.
    pub(crate) fn closure(&self, roots: impl IntoIterator<Item = JobKey>) -> BTreeSet<JobKey> {
        let mut open: Vec<JobKey> = roots.into_iter().collect();
        let mut closure: BTreeSet<JobKey> = open.iter().copied().collect();
        while let Some(key) = open.pop() {
            open.extend(self.job(key).inputs.iter().copied().filter(|input| closure.insert(*input)));
        }
        closure
    }
}

/// Returns `text` cut to at most `bytes_max` bytes, at a character's edge.
pub(crate) fn cut(text: &str, bytes_max: usize) -> String {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    String::from(&text[..end])
}
