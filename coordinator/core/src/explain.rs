//! Why a job is where it is, for `kiln explain`: its reason, what each worker is to it, and what on the way below holds it up.
//!
//! Asked for one job at a time: takes as long as a walk over what the job needs and what needs it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Reverse;

use kiln_wire::limits::{EXPLAINED_STEPS_MAX, EXPLAINED_WORKERS_MAX};
use kiln_wire::{DrvPath, Explanation, Step, Timestamp, WorkerId, WorkersFor};

use crate::farm::Farm;
use crate::fleet::{self, Worker};
use crate::job::{Job, JobKey, Needs, State};
use crate::report::WaitReason;

impl Farm {
    /// Returns why a job is where it is; none if the farm has no such job. `away` are the workers that take nothing new at present, or have
    /// no session with the leader.
    pub fn explanation(&self, derivation: &DrvPath, now: Timestamp, away: &BTreeSet<WorkerId>) -> Option<Explanation> {
        let (key, job) = self.find(derivation)?;
        let needs = self.index.needs_of(key, job);
        let reasons = self.class_reasons(away);
        let (behind, behind_ms) = self.way_behind(key, now);
        let mut view = self.live_view(key, job, &reasons);
        if self.is_ready(key, job) {
            view.reason = self.reason_now(job, &needs, now, away, &reasons).to_string();
        }
        Some(Explanation {
            job: view,
            expected_ms: self.index.expected(key).wall_ms,
            running_ms: job.running().map(|running| now.since_ms(running.started_at)),
            system: needs.system.clone(),
            features: needs.features.clone(),
            resources: needs.resources,
            memory_wish_mib: needs.memory_wish_mib,
            workers: self.workers_for(job, &needs, away),
            ahead: self.is_ready(key, job).then(|| self.ahead(key, job)),
            inputs_unbuilt: u64::from(self.index.unbuilt(key)),
            behind: behind.into_iter().take(EXPLAINED_STEPS_MAX).map(|key| self.step(key, &reasons)).collect(),
            behind_ms,
            dependents: count(self.index.dependents(key)),
            dependents_all: self.dependents_all(key),
        })
    }

    fn is_ready(&self, key: JobKey, job: &Job) -> bool {
        matches!(job.state, State::Waiting) && self.index.unbuilt(key) == 0 && !job.is_unresolved() && self.is_wanted(key)
    }

    /// Returns why a ready job does not run at this moment, its own failures looked at.
    fn reason_now(
        &self,
        job: &Job,
        needs: &Arc<Needs>,
        now: Timestamp,
        away: &BTreeSet<WorkerId>,
        reasons: &BTreeMap<Arc<Needs>, WaitReason>,
    ) -> WaitReason {
        if let Some(lacking) = self.unplaceable(needs) {
            return lacking;
        }
        if job.tries.retry_at.is_some_and(|at| at > now) {
            return WaitReason::BackOff;
        }
        let failed_on = &job.tries.failed_on;
        let mut open = self.with_room(needs).filter(|worker| !away.contains(*worker)).peekable();
        if open.peek().is_some() && open.all(|worker| failed_on.contains(worker)) {
            return WaitReason::FailedThere;
        }
        reasons.get(needs).cloned().unwrap_or_else(|| self.class_reason(needs, self.kept(), away))
    }

    /// Returns how many ready jobs have more waiting behind them, whoever they belong to.
    fn ahead(&self, key: JobKey, job: &Job) -> u64 {
        let entry = (Reverse(self.index.rank_ms(key)), job.derivation.clone(), key);
        self.index.ready.values().flat_map(|lines| lines.values()).map(|line| count(line.range(..&entry))).sum()
    }

    fn step(&self, key: JobKey, reasons: &BTreeMap<Arc<Needs>, WaitReason>) -> Step {
        let job = self.job(key);
        Step {
            derivation: (*job.derivation).clone(),
            state: String::from(self.state_word(key, job)),
            reason: self.reason(key, job, reasons),
            expected_ms: self.index.expected(key).wall_ms,
        }
    }

    /// Returns what is expected to be left of a job at some time.
    fn left_ms(&self, key: JobKey, now: Timestamp) -> u64 {
        let past_ms = self.job(key).running().map_or(0, |running| now.since_ms(running.started_at));
        self.index.expected(key).wall_ms.saturating_sub(past_ms)
    }

    /// Returns the unbuilt jobs from below `key` down to one whose inputs are built, each the input of the one before that is expected to be
    /// built last, and the time that is left of all of them, as far as is expected. An input that failed comes first: nothing else holds as long.
    fn way_behind(&self, key: JobKey, now: Timestamp) -> (Vec<JobKey>, u64) {
        // Inputs have lower keys than what needs them: from the lowest one upwards each is settled before it is asked for.
        let mut below: BTreeMap<JobKey, (u64, Option<JobKey>)> = BTreeMap::new();
        for reached in self.unbuilt_below(key) {
            let inputs = self.job(reached).inputs.iter().filter_map(|input| Some((below.get(input)?.0, *input)));
            let last = inputs.max_by_key(|(until_ms, input)| (*until_ms, Reverse(*input)));
            let own_ms = if self.job(reached).is_failed() { u64::MAX } else { self.left_ms(reached, now) };
            below.insert(reached, (last.map_or(0, |(ms, _)| ms).saturating_add(own_ms), last.map(|(_, input)| input)));
        }
        let next = |of: &JobKey| below.get(of).and_then(|(_, next)| *next);
        let way: Vec<JobKey> = core::iter::successors(next(&key), next).collect();
        let ms = way.iter().map(|key| self.left_ms(*key, now)).fold(0, u64::saturating_add);
        (way, ms)
    }

    /// Returns the job and the unbuilt ones that it needs, near and far, lowest key first.
    fn unbuilt_below(&self, key: JobKey) -> BTreeSet<JobKey> {
        self.reached(key, |from| self.job(from).inputs.iter().copied().filter(|input| !self.job(*input).is_built()).collect())
    }

    fn dependents_all(&self, key: JobKey) -> u64 {
        count(self.reached(key, |from| self.index.dependents(from).collect()).into_iter()) - 1
    }

    /// Returns what can be reached from a job, itself included.
    fn reached(&self, key: JobKey, step: impl Fn(JobKey) -> Vec<JobKey>) -> BTreeSet<JobKey> {
        let (mut reached, mut open) = (BTreeSet::from([key]), Vec::from([key]));
        while let Some(from) = open.pop() {
            open.extend(step(from).into_iter().filter(|to| reached.insert(*to)));
        }
        reached
    }

    fn workers_for(&self, job: &Job, needs: &Needs, away: &BTreeSet<WorkerId>) -> Vec<WorkersFor> {
        let mut groups: BTreeMap<Fit, Vec<&WorkerId>> = BTreeMap::new();
        for (id, worker) in &self.facts.workers {
            groups.entry(self.fit(id, worker, job, needs, away)).or_default().push(id);
        }
        let group = |(fit, workers): (Fit, Vec<&WorkerId>)| WorkersFor {
            what: fit.to_string(),
            count: count(workers.iter()),
            first: workers.into_iter().take(EXPLAINED_WORKERS_MAX).cloned().collect(),
        };
        groups.into_iter().map(group).collect()
    }

    fn fit(&self, id: &WorkerId, worker: &Worker, job: &Job, needs: &Needs, away: &BTreeSet<WorkerId>) -> Fit {
        let missing: BTreeSet<String> = fleet::features_missing(&worker.offer, needs).cloned().collect();
        if !fleet::has_system(&worker.offer, needs) {
            Fit::OtherSystem
        } else if !missing.is_empty() {
            Fit::Lacks(missing)
        } else if needs.resources.memory_mib > worker.offer.capacity.memory_mib {
            Fit::LittleMemory
        } else if worker.offer.slots == 0 {
            Fit::NoSlots
        } else if worker.is_finishing {
            Fit::Finishing
        } else if self.takes_nothing(id) {
            Fit::Ailing
        } else if away.contains(id) {
            Fit::Away
        } else if job.tries.failed_on.contains(id) {
            Fit::FailedThere
        } else if self.has_room_for(id, worker, needs) {
            Fit::Room
        } else {
            Fit::Full
        }
    }

    fn has_room_for(&self, id: &WorkerId, worker: &Worker, needs: &Needs) -> bool {
        let granted = fleet::grant(worker.offer.capacity, needs);
        self.free_on(id)
            .is_some_and(|free| free.take(granted).is_some() || (needs.light && free.take_light(fleet::light(granted)).is_some()))
    }
}

/// What a worker is to a job: best first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Room,
    Full,
    FailedThere,
    Away,
    Ailing,
    Finishing,
    NoSlots,
    LittleMemory,
    Lacks(BTreeSet<String>),
    OtherSystem,
}

impl core::fmt::Display for Fit {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let words = match self {
            Self::Room => "have room",
            Self::Full => "are full",
            Self::FailedThere => "it failed there before",
            Self::Away => "take nothing new at present, or are not connected",
            Self::Ailing => "rest after failures of their own, are quarantined, or are drained",
            Self::Finishing => "finish what they have and take nothing new",
            Self::NoSlots => "have 0 slots",
            Self::LittleMemory => "have too little memory",
            Self::Lacks(features) => {
                return write!(f, "lack {}", features.iter().cloned().collect::<Vec<_>>().join(", "));
            }
            Self::OtherSystem => "run other systems",
        };
        f.write_str(words)
    }
}

fn count<T>(items: impl Iterator<Item = T>) -> u64 {
    u64::try_from(items.count()).unwrap_or(u64::MAX)
}
