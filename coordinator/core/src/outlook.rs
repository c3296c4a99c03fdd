//! When builds are expected to end, and what holds them up, as a walk over the farm's jobs ([`crate::Surveying`]) found it. What is asked of one build ([`Farm::critical_path`],
//! [`Farm::sketch`]) takes as long as what it returns and the edges around that.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::cmp::Reverse;

use kiln_wire::{BuildId, DrvPath, FailureClass, JobLimits, Timestamp, WorkerId};

use crate::farm::Farm;
use crate::job::{Job, JobKey};

/// What one walk over the farm found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// What is expected of each live build that has jobs left.
    pub outlooks: BTreeMap<BuildId, Outlook>,
    /// Jobs that failed for good.
    pub failed: Vec<FailedJob>,
}

/// What is expected of a build, from the moment of the walk on.
///
/// `low_ms` is what no schedule on this fleet can be below, as far as expectations hold: the longest chain, or all work spread over all slots.
/// `high_ms` is what no schedule that keeps slots busy passes, other builds' work before it and one surprise on the chain counted: the chain and
/// the work one after the other. `likely_ms` is in the middle between the first and the second without surprise and others. Source: Graham, Bounds on
/// multiprocessing timing anomalies, 1969.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// If all goes well.
    pub low_ms: u64,
    /// Most likely.
    pub likely_ms: u64,
    /// If a job of a kind that nobody has measured takes long, and others go first.
    pub high_ms: u64,
    /// Jobs that are left.
    pub open: u64,
    /// Those of them of whose like something was measured.
    pub measured: u64,
    /// Where the longest chain that is left begins.
    pub head: Option<DrvPath>,
    /// That chain.
    pub(crate) chain: Vec<JobKey>,
}

/// A job that failed for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedJob {
    /// Which.
    pub derivation: DrvPath,
    /// Of which class the failure is.
    pub class: FailureClass,
    /// When its last attempt ended, if it had one.
    pub at: Option<Timestamp>,
    /// Builds that want it.
    pub builds: Vec<BuildId>,
    /// Jobs that failed because of it alone, or because of it first, near and far.
    pub holds_up: u64,
}

/// A job of a critical path that is still to be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CriticalStep {
    /// Which.
    pub derivation: DrvPath,
    /// Its state in one word.
    pub state: &'static str,
    /// Milliseconds that it is expected to take.
    pub expected_ms: u64,
    /// Since when and where it runs.
    pub running: Option<(Timestamp, WorkerId)>,
}

/// The longest chain of a build: what was built of it, and what is left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CriticalPath {
    /// What was built, the first one first: of each job's inputs the one that was built last.
    pub past: Vec<DrvPath>,
    /// What is left, in the order in which it can be built.
    pub left: Vec<CriticalStep>,
}

/// A part of a build's graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sketch {
    /// Its jobs, inputs before what needs them.
    pub nodes: Vec<SketchNode>,
    /// Jobs of the build that are not in it.
    pub left_out: u64,
}

/// A job of a sketch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SketchNode {
    /// Which.
    pub derivation: DrvPath,
    /// Its state in one word.
    pub state: &'static str,
    /// It is on the critical path.
    pub is_critical: bool,
    /// Which of the sketch it needs, by their places.
    pub inputs: Vec<usize>,
}

impl Farm {
    /// Returns the longest chain of a build, of which a walk found what is left. At most `steps_max` jobs each way.
    pub fn critical_path(&self, outlook: &Outlook, steps_max: usize) -> CriticalPath {
        let left: Vec<JobKey> = self.ahead_of(outlook).take(steps_max).collect();
        let behind = left.first().into_iter().flat_map(|head| self.behind_of(*head));
        let mut past: Vec<DrvPath> = behind.take(steps_max).map(|key| (*self.job(key).derivation).clone()).collect();
        past.reverse();
        CriticalPath { past, left: left.into_iter().map(|key| self.critical_step(key)).collect() }
    }

    /// Returns what a person wants to see of a build's graph: all of it if it has at most `nodes_max` jobs; else its critical path, what runs,
    /// and `wanted`, as far as there is room.
    pub fn sketch(&self, id: BuildId, outlook: Option<&Outlook>, wanted: &[DrvPath], nodes_max: usize) -> Option<Sketch> {
        let build = self.facts.builds.get(&id)?;
        let ahead = || outlook.into_iter().flat_map(|outlook| self.ahead_of(outlook));
        let behind = ahead().next().into_iter().flat_map(|head| self.behind_of(head));
        let critical: Vec<JobKey> = ahead().chain(behind).take(nodes_max.saturating_mul(4)).collect();
        let mut chosen: BTreeSet<JobKey> = BTreeSet::new();
        if build.jobs.len() <= nodes_max {
            chosen.extend(&build.jobs);
        } else {
            let running = self.index.loads.values().flat_map(|load| load.jobs.iter().copied());
            let wanted = wanted.iter().filter_map(|derivation| self.key_of(derivation));
            let near = critical.iter().copied().take(nodes_max / 2).chain(wanted.take(nodes_max / 4)).chain(running);
            for key in near.filter(|key| build.jobs.binary_search(key).is_ok()) {
                if chosen.len() == nodes_max {
                    break;
                }
                chosen.insert(key);
            }
        }
        let critical: BTreeSet<JobKey> = critical.into_iter().collect();
        let places: BTreeMap<JobKey, usize> = chosen.iter().enumerate().map(|(place, key)| (*key, place)).collect();
        let node = |key: &JobKey| {
            let job = self.job(*key);
            SketchNode {
                derivation: (*job.derivation).clone(),
                state: self.state_word(*key, job),
                is_critical: critical.contains(key),
                inputs: job.inputs.iter().filter_map(|input| places.get(input).copied()).collect(),
            }
        };
        let left_out = u64::try_from(build.jobs.len().saturating_sub(chosen.len())).unwrap_or(u64::MAX);
        Some(Sketch { nodes: chosen.iter().map(node).collect(), left_out })
    }

    /// Returns whether a build that has not left the farm is of the security class.
    pub fn is_security(&self, id: BuildId) -> bool {
        self.facts.builds.get(&id).and_then(|build| build.asker.as_ref()).is_some_and(|asker| asker.security)
    }

    /// Returns what stops an attempt at a job.
    pub fn limits_of(&self, derivation: &DrvPath) -> Option<JobLimits> {
        self.find(derivation).map(|(_, job)| job.limits)
    }

    /// Returns what is expected to be left of a job.
    pub(crate) fn still_ms(&self, key: JobKey, job: &Job, now: Timestamp) -> u64 {
        let past_ms = job.running().map_or(0, |running| now.since_ms(running.started_at));
        self.index.expected(key).wall_ms.saturating_sub(past_ms)
    }

    /// Returns what is still there of the chain that a walk found.
    fn ahead_of<'a>(&'a self, outlook: &'a Outlook) -> impl Iterator<Item = JobKey> + 'a {
        outlook.chain.iter().copied().filter(|key| self.facts.jobs.get(key).is_some_and(|job| !job.is_final()))
    }

    /// Returns the jobs that a job waited for last, the nearest first. What was not built here ends it.
    fn behind_of(&self, head: JobKey) -> impl Iterator<Item = JobKey> + '_ {
        let ended = |key: JobKey| {
            let job = self.job(key);
            job.tries.ended.last().filter(|_| job.is_built()).map(|attempt| attempt.ended_at)
        };
        let last = move |key: &JobKey| {
            let built = self.job(*key).inputs.iter().filter_map(|input| Some((ended(*input)?, Reverse(*input))));
            built.max().map(|(_, Reverse(input))| input)
        };
        core::iter::successors(last(&head), last)
    }

    fn critical_step(&self, key: JobKey) -> CriticalStep {
        let job = self.job(key);
        CriticalStep {
            derivation: (*job.derivation).clone(),
            state: self.state_word(key, job),
            expected_ms: self.index.expected(key).wall_ms,
            running: job.running().map(|running| (running.started_at, running.worker.clone())),
        }
    }
}
