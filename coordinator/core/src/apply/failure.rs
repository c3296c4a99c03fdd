//! The failure policy: which failures are tried again, where, with what, and which are final.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use kiln_wire::client::EventKind;
use kiln_wire::limits::{
    ATTEMPTS_KEPT_MAX, FAILURE_MESSAGE_BYTES_MAX, INFRASTRUCTURE_WORKERS_MAX, RETRY_BACKOFF_MS_MAX, RETRY_BACKOFF_MS_MIN,
};
use kiln_wire::{AttemptId, BuildId, Epoch, Failure, FailureClass, Lease, Timestamp, Usage, WorkerId};

use crate::build::Phase;
use crate::farm::{Effects, Farm, cut};
use crate::job::{Attempt, AttemptEnd, JobKey, Setback, State, Tries};

/// Memory that a job without a request is taken to have had, in MiB, where the kernel did not tell its peak.
const MEMORY_MIB_ASSUMED: u64 = 1024;

/// An attempt that has just ended.
pub(super) struct Ended {
    pub worker: WorkerId,
    /// Another attempt at the job runs.
    pub goes_on: bool,
    /// How the other one of two failed before, if none is left.
    pub owed: Option<Box<Setback>>,
}

impl Farm {
    /// A worker reported that a live attempt at `key` made nothing.
    pub(super) fn end_failed_attempt(
        &mut self,
        key: JobKey,
        lease: &Lease,
        failure: Failure,
        usage: Usage,
        now: Timestamp,
        fx: &mut Effects,
    ) {
        let Some(granted) = self.job(key).leased(lease).map(|running| running.granted) else { return };
        let message = cut(&failure.message, FAILURE_MESSAGE_BYTES_MAX);
        let end = AttemptEnd::Failed { class: failure.class, message: message.clone() };
        let Some(ended) = self.close_attempt(key, lease.attempt, end, Some(usage), now) else { return };
        let class = match failure.class {
            // What a worker gave up in an earlier life is no fault of the job's either.
            FailureClass::Cancelled if !self.finishes(&lease.worker, lease.epoch) => FailureClass::Infrastructure,
            class => class,
        };
        let peak_mib = usage.memory_peak_bytes.div_ceil(1 << 20);
        self.set_back(key, ended, Setback { class, message, granted_mib: granted.memory_mib, peak_mib }, now, fx);
    }

    /// Notes that a worker gives jobs back which are still wanted; returns false if it has registered anew since.
    fn finishes(&mut self, worker: &WorkerId, epoch: Epoch) -> bool {
        self.change_worker(worker, |workers| {
            let known = workers.get_mut(worker).filter(|known| known.epoch == epoch);
            known.map(|known| known.is_finishing = true).is_some()
        })
    }

    /// The lease of `key` on a worker ended without a report.
    pub(super) fn end_lost_attempt(&mut self, key: JobKey, worker: &WorkerId, message: String, now: Timestamp, fx: &mut Effects) {
        self.end_unreported(key, worker, FailureClass::Infrastructure, message, now, fx);
    }

    /// The lease of `key` was given and its worker, which lives, never heard of it: a leader's or a link's end is charged to no job.
    pub(super) fn end_undelivered_attempt(&mut self, key: JobKey, worker: &WorkerId, message: String, now: Timestamp, fx: &mut Effects) {
        self.end_unreported(key, worker, FailureClass::Cancelled, message, now, fx);
    }

    fn end_unreported(&mut self, key: JobKey, worker: &WorkerId, class: FailureClass, message: String, now: Timestamp, fx: &mut Effects) {
        let Some(attempt) = self.job(key).leased_on(worker).map(|running| running.attempt) else { return };
        let end = AttemptEnd::Lost { class, message: message.clone() };
        if let Some(ended) = self.close_attempt(key, attempt, end, None, now) {
            self.set_back(key, ended, Setback { class, message, granted_mib: 0, peak_mib: 0 }, now, fx);
        }
    }

    /// Moves a live lease of `key` to its ended attempts. Another one that is left goes on as the only one.
    pub(super) fn close_attempt(
        &mut self,
        key: JobKey,
        attempt: AttemptId,
        end: AttemptEnd,
        usage: Option<Usage>,
        now: Timestamp,
    ) -> Option<Ended> {
        let running = self.job(key).leases().find(|running| running.attempt == attempt)?.clone();
        match &end {
            // What ended by itself was used, whatever came of it.
            AttemptEnd::Built | AttemptEnd::Failed { .. } => self.charge(key, &running, now),
            AttemptEnd::Lost { .. } | AttemptEnd::Differs | AttemptEnd::Preempted | AttemptEnd::Outrun | AttemptEnd::Same => {}
        }
        let worker = running.worker.clone();
        let attempt = Attempt {
            attempt: running.attempt,
            worker: running.worker,
            epoch: running.epoch,
            started_at: running.started_at,
            ended_at: now,
            end,
            usage,
        };
        let owed = self.change(key, |job| {
            let owed = job.part_with(attempt.attempt);
            let ended = &mut job.tries.ended;
            if ended.len() >= ATTEMPTS_KEPT_MAX {
                ended.remove(0);
            }
            ended.reserve_exact(1);
            ended.push(attempt);
            owed
        });
        Some(Ended { worker, goes_on: self.job(key).running().is_some(), owed })
    }

    /// An attempt has made nothing. What follows from that waits while another attempt at the job goes on, but for what is counted against the
    /// worker: it may yet be built.
    pub(super) fn set_back(&mut self, key: JobKey, ended: Ended, setback: Setback, now: Timestamp, fx: &mut Effects) {
        let Ended { worker, goes_on, owed } = ended;
        if setback.class == FailureClass::Infrastructure {
            self.change(key, |job| {
                job.tries.infrastructure_count = job.tries.infrastructure_count.saturating_add(1);
                job.tries.failed_on.insert(worker);
            });
        }
        if !goes_on {
            let setback = match owed {
                Some(owed) => setback.graver(*owed),
                None => setback,
            };
            return self.follow_up(key, setback, now, fx);
        }
        if setback.class != FailureClass::Cancelled {
            self.change(key, |job| job.owe(setback));
        }
    }

    /// No attempt at a job is left, and none made its outputs: fails it for good, or has it tried again.
    pub(super) fn follow_up(&mut self, key: JobKey, setback: Setback, now: Timestamp, fx: &mut Effects) {
        let Setback { class, message, granted_mib, peak_mib } = setback;
        match class {
            FailureClass::BuildFailure | FailureClass::LimitExceeded => return self.fail_for_good(key, class, message, now, fx),
            FailureClass::OutOfMemory | FailureClass::Infrastructure | FailureClass::Cancelled => {}
        }
        let failed_on = &self.job(key).tries.failed_on;
        if failed_on.len() >= INFRASTRUCTURE_WORKERS_MAX {
            let workers = failed_on.iter().map(WorkerId::as_str).collect::<Vec<_>>().join(", ");
            let text = format!("poisoned: failed on {INFRASTRUCTURE_WORKERS_MAX} different workers ({workers}); last: {message}");
            let message = cut(&text, FAILURE_MESSAGE_BYTES_MAX);
            return self.fail_for_good(key, FailureClass::Infrastructure, message, now, fx);
        }
        if class == FailureClass::OutOfMemory {
            return self.retry_with_memory(key, (granted_mib, peak_mib), message, now, fx);
        }
        if class == FailureClass::Infrastructure {
            self.change(key, |job| job.tries.retry_at = Some(now.after_ms(backoff_ms(job.tries.infrastructure_count))));
        }
        self.retried(key, class, message, now, fx);
    }

    /// `granted_mib` is what the attempt had that was killed; 0 if it had all that there was.
    fn retry_with_memory(&mut self, key: JobKey, (granted_mib, peak_mib): (u64, u64), message: String, now: Timestamp, fx: &mut Effects) {
        let had_mib = match (self.job(key).memory_next_mib().max(granted_mib), peak_mib) {
            (0, 0) => MEMORY_MIB_ASSUMED,
            (0, peak) => peak,
            (asked, _) => asked,
        };
        let largest_mib = self.facts.workers.values().map(|worker| worker.offer.capacity.memory_mib).max();
        let next_mib = match largest_mib {
            Some(largest) if had_mib >= largest => {
                let text = format!("{message}; no worker has more than {largest} MiB");
                return self.fail_for_good(key, FailureClass::OutOfMemory, cut(&text, FAILURE_MESSAGE_BYTES_MAX), now, fx);
            }
            Some(largest) => had_mib.saturating_mul(2).min(largest),
            None => had_mib.saturating_mul(2),
        };
        self.change(key, |job| job.tries.memory_mib = Some(next_mib));
        self.retried(key, FailureClass::OutOfMemory, message, now, fx);
    }

    /// The attempt is over and another will follow, unless nobody waits for it: builds that stop do not.
    pub(super) fn retried(&mut self, key: JobKey, class: FailureClass, message: String, now: Timestamp, fx: &mut Effects) {
        self.notify(key, now, EventKind::Retried { class, message }, fx);
        let builds = self.watchers(key);
        self.settle(Some(key), builds, now, fx);
        self.drop_if_unheld(key);
    }

    /// Fails a job for good, and with it every job that needs it.
    pub(super) fn fail_for_good(&mut self, key: JobKey, class: FailureClass, message: String, now: Timestamp, fx: &mut Effects) {
        self.change(key, |job| {
            job.tries.retry_at = None;
            job.state = State::Failed { class, message: message.clone() };
        });
        self.notify(key, now, EventKind::Failed { class, message }, fx);
        // A build that holds a dependent holds its inputs too: these are all the builds concerned.
        let builds = self.watchers(key);
        self.fail_behind(key, self.index.dependents(key).collect(), builds, now, fx);
        self.drop_if_unheld(key);
    }

    /// Fails waiting jobs because of one that has failed, and all that need them; `builds` are those concerned.
    pub(super) fn fail_behind(&mut self, key: JobKey, mut open: Vec<JobKey>, builds: Vec<BuildId>, now: Timestamp, fx: &mut Effects) {
        let cause = (*self.job(key).derivation).clone();
        while let Some(dependent) = open.pop() {
            if !matches!(self.job(dependent).state, State::Waiting) {
                continue;
            }
            self.change(dependent, |job| {
                job.tries.retry_at = None;
                job.state = State::DependencyFailed { cause: key };
            });
            self.notify(dependent, now, EventKind::DependencyFailed { cause: cause.clone() }, fx);
            open.extend(self.index.dependents(dependent));
        }
        let stop: Vec<BuildId> = builds.iter().copied().filter(|id| self.stops_on_failure(*id)).collect();
        for build in stop {
            self.stop(build);
        }
        self.settle(Some(key), builds, now, fx);
    }

    fn stops_on_failure(&self, build: BuildId) -> bool {
        self.facts.builds.get(&build).is_some_and(|build| build.is_going() && !build.keep_going)
    }

    /// Starts nothing more for a build; those of its jobs that run may end.
    fn stop(&mut self, build: BuildId) {
        let Some(jobs) = self.facts.builds.get(&build).map(|build| build.jobs.clone()) else { return };
        let draining = jobs.iter().copied().filter(|key| self.job(*key).running().is_some()).collect();
        let failures = self.facts.builds.get(&build).map(|build| self.failures_of(build)).unwrap_or_default();
        self.change_build(build, |build| build.phase = Phase::Stopping { draining, failures });
    }

    /// Makes failed jobs waiting again, as if they had never been tried, and with them the jobs that failed only because of them.
    pub(super) fn revive(&mut self, failed: Vec<JobKey>) {
        let mut open = failed;
        for key in &open {
            self.change(*key, |job| {
                job.tries = Tries::default();
                job.state = State::Waiting;
            });
        }
        while let Some(key) = open.pop() {
            let dependents: Vec<JobKey> = self.index.dependents(key).collect();
            open.extend(dependents.into_iter().filter(|dependent| self.reconsider(*dependent)));
        }
    }

    /// Looks again at why a job failed, after an input changed. Returns whether anything changed for the job.
    fn reconsider(&mut self, key: JobKey) -> bool {
        let State::DependencyFailed { cause } = self.job(key).state else { return false };
        let causes: Vec<JobKey> = self.job(key).inputs.iter().filter_map(|input| self.cause_through(*input)).collect();
        let state = match causes.first() {
            Some(_) if causes.contains(&cause) => return false,
            Some(other) => State::DependencyFailed { cause: *other },
            None => State::Waiting,
        };
        self.change(key, |job| job.state = state);
        true
    }

    pub(super) fn cause_through(&self, input: JobKey) -> Option<JobKey> {
        match &self.job(input).state {
            State::Failed { .. } => Some(input),
            State::DependencyFailed { cause } => Some(*cause),
            State::Waiting | State::Running(_) | State::Built { .. } => None,
        }
    }
}

/// Returns the back-off after the `count`th infrastructure failure, in milliseconds.
fn backoff_ms(count: u32) -> u64 {
    let doublings = count.saturating_sub(1).min(RETRY_BACKOFF_MS_MAX.ilog2());
    (RETRY_BACKOFF_MS_MIN << doublings).min(RETRY_BACKOFF_MS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_up_to_its_limit() {
        let table = [(1, 1_000), (2, 2_000), (3, 4_000), (9, 256_000), (10, 300_000), (1_000_000, 300_000), (u32::MAX, 300_000)];
        for (count, expect) in table {
            assert_eq!(backoff_ms(count), expect, "after {count} failures");
        }
    }
}
