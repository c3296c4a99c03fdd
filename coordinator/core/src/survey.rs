//! The walk behind [`Survey`]: over every job, then over the open ones of each live build, a piece at a time, for commands wait meanwhile.
//!
//! For a cache that looks once in a while, not for each reader. What changes between two pieces is seen or not: a survey is of no one
//! moment, and names nothing that was not there.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::ops::Bound;

use kiln_wire::{BuildId, FailureClass, Timestamp};

use crate::farm::Farm;
use crate::job::{JobKey, State};
use crate::outlook::{FailedJob, Outlook, Survey};
use crate::rank::Chain;

/// A walk under way.
#[derive(Debug, Default)]
pub struct Surveying {
    at: Place,
    failed: BTreeMap<JobKey, FailedJob>,
    /// Jobs that failed because of another one.
    held: BTreeMap<JobKey, u64>,
    work_ms: u64,
    outlooks: BTreeMap<BuildId, Outlook>,
    sum: Sum,
}

/// Where a walk is.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Among all jobs, behind this one.
    Jobs(Option<JobKey>),
    /// Among a build's jobs, the last one first, before this one; of the build behind this one.
    Builds(Option<BuildId>, Option<JobKey>),
}

impl Default for Place {
    fn default() -> Self {
        Self::Jobs(None)
    }
}

/// What the walk adds up for one build.
#[derive(Debug, Default)]
struct Sum {
    /// What follows each of its open jobs within the build, and the next of the longest chain.
    chains: BTreeMap<JobKey, (Chain, Option<JobKey>)>,
    chain_ms: u64,
    surprised_ms: u64,
    work_ms: u64,
    open: u64,
    measured: u64,
    head: Option<JobKey>,
}

impl Surveying {
    /// Looks at some more jobs, at most `looked_max`; returns whether there are more.
    pub fn go_on(&mut self, farm: &Farm, now: Timestamp, looked_max: usize) -> bool {
        match self.at {
            Place::Jobs(after) => {
                let from = after.map_or(Bound::Unbounded, Bound::Excluded);
                let mut last = None;
                let keys = farm.facts.jobs.range((from, Bound::Unbounded)).take(looked_max).map(|(key, _)| *key);
                for key in keys {
                    self.job(farm, key, now);
                    last = Some(key);
                }
                self.at = last.map_or(Place::Builds(None, None), |last| Place::Jobs(Some(last)));
                true
            }
            Place::Builds(after, before) => {
                let from = after.map_or(Bound::Unbounded, Bound::Excluded);
                let Some((id, build)) = farm.facts.builds.range((from, Bound::Unbounded)).next() else { return false };
                let live = if build.record().is_none() { &*build.jobs } else { &[] };
                let end = before.map_or(live.len(), |before| live.partition_point(|key| *key < before));
                let mut last = None;
                for key in live[..end].iter().rev().take(looked_max) {
                    if build.awaits(*key) {
                        self.sum.add(farm, *key, now);
                    }
                    last = Some(*key);
                }
                self.at = match last {
                    Some(last) => Place::Builds(after, Some(last)),
                    None => {
                        let sum = core::mem::take(&mut self.sum);
                        if sum.open > 0 {
                            self.outlooks.insert(*id, farm.outlook(*id, &sum, self.work_ms));
                        }
                        Place::Builds(Some(*id), None)
                    }
                };
                true
            }
        }
    }

    /// Returns what was found.
    pub fn end(self) -> Survey {
        let Self { failed, held, outlooks, .. } = self;
        let failed = failed.into_iter().map(|(key, job)| FailedJob { holds_up: held.get(&key).copied().unwrap_or_default(), ..job });
        Survey { outlooks, failed: failed.collect() }
    }

    fn job(&mut self, farm: &Farm, key: JobKey, now: Timestamp) {
        let job = farm.job(key);
        match &job.state {
            State::Built { .. } => {}
            State::Failed { class, .. } => drop(self.failed.insert(key, farm.failed_job(key, *class))),
            State::DependencyFailed { cause } => *self.held.entry(*cause).or_default() += 1,
            State::Waiting | State::Running(_) => self.work_ms = self.work_ms.saturating_add(farm.still_ms(key, job, now)),
        }
    }
}

impl Sum {
    /// Adds an open job of the build, all of whose dependents were added before it.
    fn add(&mut self, farm: &Farm, key: JobKey, now: Timestamp) {
        let job = farm.job(key);
        if job.is_final() {
            return;
        }
        let expected = farm.index.expected(key);
        let left_ms = farm.still_ms(key, job, now);
        let past_ms = expected.wall_ms.saturating_sub(left_ms);
        let behind = || farm.index.dependents(key).filter_map(|key| self.chains.get(&key).map(|(chain, _)| (key, *chain)));
        let chain = Chain::of(expected, behind().map(|(_, chain)| chain));
        let next = behind().max_by_key(|(key, chain)| (chain.path_ms, Reverse(*key))).map(|(key, _)| key);
        let chain_ms = chain.path_ms.saturating_sub(past_ms);
        if self.head.is_none() || chain_ms >= self.chain_ms {
            (self.chain_ms, self.head) = (chain_ms, Some(key));
        }
        self.surprised_ms = self.surprised_ms.max(chain.surprised_ms.saturating_sub(past_ms));
        self.work_ms = self.work_ms.saturating_add(left_ms);
        self.open += 1;
        self.measured += u64::from(expected.surprise_ms == 0);
        self.chains.insert(key, (chain, next));
    }

    fn chain(&self) -> Vec<JobKey> {
        core::iter::successors(self.head, |key| self.chains.get(key).and_then(|(_, next)| *next)).take(CHAIN_MAX).collect()
    }
}

impl Farm {
    /// Looks at every job in one go. O(jobs × builds that want each): for a farm that nobody waits for.
    pub fn survey(&self, now: Timestamp) -> Survey {
        let mut walk = Surveying::default();
        while walk.go_on(self, now, usize::MAX) {}
        walk.end()
    }

    fn outlook(&self, id: BuildId, sum: &Sum, work_ms: u64) -> Outlook {
        let slots = self.usable_slots().max(1);
        let spread_ms = sum.work_ms / slots;
        let before_ms = if self.is_security(id) { spread_ms } else { work_ms / slots };
        let (low_ms, both_ms) = (sum.chain_ms.max(spread_ms), sum.chain_ms.saturating_add(spread_ms));
        Outlook {
            low_ms,
            likely_ms: low_ms + (both_ms - low_ms) / 2,
            high_ms: sum.surprised_ms.max(sum.chain_ms).saturating_add(before_ms).max(both_ms),
            open: sum.open,
            measured: sum.measured,
            head: sum.head.and_then(|key| self.facts.jobs.get(&key)).map(|job| (*job.derivation).clone()),
            chain: sum.chain(),
        }
    }

    /// Returns the slots of all workers.
    pub fn usable_slots(&self) -> u64 {
        self.facts.workers.values().map(|worker| u64::from(worker.offer.slots)).sum()
    }

    fn failed_job(&self, key: JobKey, class: FailureClass) -> FailedJob {
        let job = self.job(key);
        FailedJob {
            derivation: (*job.derivation).clone(),
            class,
            at: job.tries.ended.last().map(|attempt| attempt.ended_at),
            builds: self.index.links.get(&key).map(|links| links.builds.clone()).unwrap_or_default(),
            holds_up: 0,
        }
    }
}

/// Jobs of a chain that are remembered: more are no chain that a person reads.
const CHAIN_MAX: usize = 4096;
