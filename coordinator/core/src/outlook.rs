//! When builds are expected to end, and what holds them up: one walk over the farm's jobs that answers for all builds at once.
//!
//! The walk is for a cache that looks once in a while, not for each reader. What is asked of one build ([`Farm::critical_path`],
//! [`Farm::sketch`]) takes as long as what it returns and the edges around that.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::cmp::Reverse;

use kiln_wire::{BuildId, DrvPath, FailureClass, JobLimits, Timestamp, WorkerId};

use crate::farm::Farm;
use crate::job::{Job, JobKey, State};

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
    /// Jobs that are not built because of it, near and far.
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

/// What the walk adds up for one build.
#[derive(Clone, Copy, Default)]
struct Sum {
    chain_ms: u64,
    surprised_ms: u64,
    work_ms: u64,
    open: u64,
    measured: u64,
    head: Option<JobKey>,
}

impl Farm {
    /// Looks at every job once. O(jobs × builds that want each).
    pub fn survey(&self, now: Timestamp) -> Survey {
        let mut sums: BTreeMap<BuildId, Sum> = BTreeMap::new();
        let mut held: BTreeMap<JobKey, u64> = BTreeMap::new();
        let (mut failed, mut work_ms) = (Vec::new(), 0u64);
        for (key, job) in &self.facts.jobs {
            match &job.state {
                State::Built { .. } => {}
                State::Failed { class, .. } => failed.push((*key, *class)),
                State::DependencyFailed { cause } => *held.entry(*cause).or_default() += 1,
                State::Waiting | State::Running(_) => {
                    work_ms = work_ms.saturating_add(self.still_ms(*key, job, now));
                    for (id, build) in self.live_builds_of(*key).filter(|(_, build)| build.awaits(*key)) {
                        debug_assert!(build.record().is_none(), "live builds have not ended");
                        self.add(sums.entry(id).or_default(), *key, job, now);
                    }
                }
            }
        }
        let outlooks = sums.into_iter().map(|(id, sum)| (id, self.outlook(id, sum, work_ms))).collect();
        let failed = failed.into_iter().map(|(key, class)| self.failed_job(key, class, held.get(&key).copied().unwrap_or_default()));
        Survey { outlooks, failed: failed.collect() }
    }

    /// Returns the longest chain of a build: `head` is where what is left of it begins. At most `steps_max` jobs each way.
    pub fn critical_path(&self, id: BuildId, head: &DrvPath, steps_max: usize) -> CriticalPath {
        let Some(head) = self.key_of(head) else { return CriticalPath::default() };
        let left = self.ahead_of(id, head).take(steps_max).map(|key| self.critical_step(key)).collect();
        let mut past: Vec<DrvPath> = self.behind_of(head).take(steps_max).map(|key| (*self.job(key).derivation).clone()).collect();
        past.reverse();
        CriticalPath { past, left }
    }

    /// Returns what a person wants to see of a build's graph: all of it if it has at most `nodes_max` jobs; else its critical path, what runs,
    /// and `wanted`, as far as there is room.
    pub fn sketch(&self, id: BuildId, head: Option<&DrvPath>, wanted: &[DrvPath], nodes_max: usize) -> Option<Sketch> {
        let build = self.facts.builds.get(&id)?;
        let head = head.and_then(|head| self.key_of(head));
        let critical: Vec<JobKey> = head
            .into_iter()
            .flat_map(|head| self.ahead_of(id, head).chain(self.behind_of(head)))
            .take(nodes_max.saturating_mul(4))
            .collect();
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

    /// Returns the jobs that a job needs, and those that need it, each with its state in one word; of each at most `max`, and how many
    /// there are beyond those.
    pub fn neighbours(&self, derivation: &DrvPath, max: usize) -> Option<[(Vec<(DrvPath, &'static str)>, u64); 2]> {
        let (key, job) = self.find(derivation)?;
        let inputs: Vec<JobKey> = job.inputs.to_vec();
        let dependents: Vec<JobKey> = self.index.dependents(key).collect();
        Some([inputs, dependents].map(|keys| {
            let word = |key: &JobKey| (self.job(*key), self.state_word(*key, self.job(*key)));
            let named = keys.iter().take(max).map(word).map(|(job, word)| ((*job.derivation).clone(), word)).collect();
            (named, u64::try_from(keys.len().saturating_sub(max)).unwrap_or(u64::MAX))
        }))
    }

    fn add(&self, sum: &mut Sum, key: JobKey, job: &Job, now: Timestamp) {
        let expected = self.index.expected(key);
        let left_ms = self.still_ms(key, job, now);
        let past_ms = expected.wall_ms.saturating_sub(left_ms);
        let chain_ms = self.index.path_ms(key).saturating_sub(past_ms);
        let surprised_ms = self.index.rank_ms(key).saturating_sub(expected.surprise_ms).saturating_sub(past_ms);
        if sum.head.is_none() || chain_ms > sum.chain_ms {
            (sum.chain_ms, sum.head) = (chain_ms, Some(key));
        }
        sum.surprised_ms = sum.surprised_ms.max(surprised_ms);
        sum.work_ms = sum.work_ms.saturating_add(left_ms);
        sum.open += 1;
        sum.measured += u64::from(expected.surprise_ms == 0);
    }

    fn outlook(&self, id: BuildId, sum: Sum, work_ms: u64) -> Outlook {
        let slots: u64 = self.facts.workers.values().map(|worker| u64::from(worker.offer.slots)).sum();
        let spread_ms = sum.work_ms / slots.max(1);
        let before_ms = if self.is_security(id) { spread_ms } else { work_ms / slots.max(1) };
        let (low_ms, both_ms) = (sum.chain_ms.max(spread_ms), sum.chain_ms.saturating_add(spread_ms));
        Outlook {
            low_ms,
            likely_ms: low_ms + (both_ms - low_ms) / 2,
            high_ms: sum.surprised_ms.max(sum.chain_ms).saturating_add(before_ms),
            open: sum.open,
            measured: sum.measured,
            head: sum.head.map(|key| (*self.job(key).derivation).clone()),
        }
    }

    fn failed_job(&self, key: JobKey, class: FailureClass, holds_up: u64) -> FailedJob {
        let job = self.job(key);
        FailedJob {
            derivation: (*job.derivation).clone(),
            class,
            at: job.tries.ended.last().map(|attempt| attempt.ended_at),
            builds: self.index.links.get(&key).map(|links| links.builds.clone()).unwrap_or_default(),
            holds_up,
        }
    }

    /// Returns what is expected to be left of a job.
    fn still_ms(&self, key: JobKey, job: &Job, now: Timestamp) -> u64 {
        let past_ms = job.running().map_or(0, |running| now.since_ms(running.started_at));
        self.index.expected(key).wall_ms.saturating_sub(past_ms)
    }

    /// Returns a job and the chain of those of a build that need it, of each one's dependents the one with most behind it.
    fn ahead_of(&self, id: BuildId, head: JobKey) -> impl Iterator<Item = JobKey> + '_ {
        let is_of = move |key: &JobKey| self.index.links.get(key).is_some_and(|links| links.builds.contains(&id));
        core::iter::successors(Some(head), move |key| {
            let open = self.index.dependents(*key).filter(is_of).filter(|dependent| !self.job(*dependent).is_final());
            open.max_by_key(|dependent| (self.index.path_ms(*dependent), Reverse(*dependent)))
        })
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
