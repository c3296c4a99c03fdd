//! Figures of the farm for whoever watches it. No walk over all jobs: looked at are classes of ready jobs, running jobs, and the one job that an
//! event is about.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;

use kiln_wire::limits::HOLDERS_MAX;
use kiln_wire::{AttemptId, DrvPath, Timestamp, WorkerId};

use crate::farm::Farm;
use crate::job::{Job, JobKey, Needs};
use crate::page::Reasons;
use crate::report::WaitReason;

/// What ready jobs that are counted together have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Queued {
    /// The platform that they need.
    pub system: String,
    /// The features that they need, all of them.
    pub features: BTreeSet<String>,
    /// Why they wait, in one word.
    pub reason: &'static str,
    /// No registered worker could ever run them.
    pub is_unplaceable: bool,
}

/// Time that an attempt took, or that a job waited for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spent<'a> {
    /// The platform that the job needs.
    pub system: &'a str,
    /// How long.
    pub ms: u64,
}

/// Bytes of what a job needs of other jobs, as NARs. Outputs below `HELD_BYTES_MIN` are nobody's business.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InputBytes {
    /// What its worker has, as far as the farm knows.
    pub had: u64,
    /// What it must fetch.
    pub lacked: u64,
}

impl Farm {
    /// Returns how many ready jobs wait, by what they need and why. Of those that wait a while after a failure `delayed_max` are looked at; the
    /// number of the others is returned beside. O(classes × parties).
    pub fn queue(&self, reasons: &Reasons, delayed_max: usize) -> (BTreeMap<Queued, u64>, u64) {
        let mut queue: BTreeMap<Queued, u64> = BTreeMap::new();
        let mut add = |needs: &Needs, reason: &WaitReason, count: usize| {
            let (system, features) = (needs.system.clone(), needs.features.clone());
            let of = Queued { system, features, reason: reason.word(), is_unplaceable: reason.is_unplaceable() };
            *queue.entry(of).or_default() += u64::try_from(count).unwrap_or(u64::MAX);
        };
        self.lines_waiting(reasons).for_each(|(needs, _, line, reason)| add(needs, &reason, line.len()));
        let mut delayed: BTreeMap<Arc<Needs>, usize> = BTreeMap::new();
        for (_, key) in self.index.delayed.iter().take(delayed_max) {
            *delayed.entry(self.index.needs_of(*key, self.job(*key))).or_default() += 1;
        }
        for (needs, count) in delayed {
            add(&needs, &self.unplaceable(&needs).unwrap_or(WaitReason::BackOff), count);
        }
        let beyond = self.index.delayed.len().saturating_sub(delayed_max);
        (queue, u64::try_from(beyond).unwrap_or(u64::MAX))
    }

    /// Returns how many attempts run, by the platform that their jobs need. O(running jobs).
    pub fn running_by_system(&self) -> BTreeMap<&str, u64> {
        let mut running: BTreeMap<&str, u64> = BTreeMap::new();
        for key in self.index.loads.values().flat_map(|load| &load.jobs) {
            *running.entry(&self.job(*key).needs.system).or_default() += 1;
        }
        running
    }

    /// Returns how long a job has waited for an attempt that began just now: since it could have begun, which is when the first of the builds that
    /// await it was submitted, its last input was built, and its last attempt ended. None of a second attempt beside another.
    pub fn waited(&self, derivation: &DrvPath, attempt: AttemptId) -> Option<Spent<'_>> {
        let (key, job) = self.find(derivation)?;
        let running = job.running().filter(|running| running.attempt == attempt)?;
        let wanted = self.live_builds_of(key).map(|(_, build)| build.submitted_at).min()?;
        let built = job.inputs.iter().filter_map(|input| self.built_at(*input)).max();
        let tried = job.tries.ended.last().map(|attempt| attempt.ended_at);
        let ready = [built, tried].into_iter().flatten().fold(wanted, Timestamp::max);
        Some(Spent { system: &job.needs.system, ms: running.started_at.since_ms(ready) })
    }

    /// Returns how long the attempt at a job ran that ended at this moment; none if none did.
    pub fn ran(&self, derivation: &DrvPath, at: Timestamp) -> Option<Spent<'_>> {
        let (_, job) = self.find(derivation)?;
        let ended = job.tries.ended.last().filter(|attempt| attempt.ended_at == at)?;
        Some(Spent { system: &job.needs.system, ms: at.since_ms(ended.started_at) })
    }

    /// Returns how much of a job's inputs a worker has that is about to begin it. O(its inputs).
    pub fn input_bytes(&self, derivation: &DrvPath, worker: &WorkerId) -> InputBytes {
        let mut bytes = InputBytes::default();
        let inputs = self.find(derivation).map(|(_, job)| &*job.inputs).unwrap_or_default();
        for held in inputs.iter().filter_map(|input| self.job(*input).held.as_deref()) {
            // Once there are many holders, all count as having it.
            let has = held.by.len() >= HOLDERS_MAX || held.by.contains(worker);
            let of = if has { &mut bytes.had } else { &mut bytes.lacked };
            *of = of.saturating_add(held.bytes);
        }
        bytes
    }

    fn built_at(&self, input: JobKey) -> Option<Timestamp> {
        let job: &Job = self.job(input);
        job.tries.ended.last().filter(|_| job.is_built()).map(|attempt| attempt.ended_at)
    }
}
