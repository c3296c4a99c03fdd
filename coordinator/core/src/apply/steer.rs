//! What people do with builds and jobs that wait or run: `Steer`, and `Preempt`, which makes room for the security class.
//!
//! A bump moves a build, or a job with all that it needs, among those of its project. A restart lets what failed wait again, as if it had
//! never been tried, and a build that stops because of it goes on. A cancelled job fails, and with it what needs it; what it needs itself
//! goes on. Source: ADR 0039.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use kiln_wire::client::EventKind;
use kiln_wire::limits::{FAILURE_MESSAGE_BYTES_MAX, PREEMPTED_MS_MAX, PREEMPTIONS_PER_JOB_MAX};
use kiln_wire::{BuildId, DrvPath, FailureClass, Lease, Order, Priority, Subject, Timestamp};

use super::refuse;
use crate::build::Phase;
use crate::effect::{Effect, Refused};
use crate::farm::{Effects, Farm, cut};
use crate::job::{AttemptEnd, JobKey, Running, Setback, State};

impl Farm {
    /// Does with a build or a job what somebody asks for. `by` names them, for whoever wonders.
    pub(super) fn steer(&mut self, (subject, order, by): (Subject, Order, &str), now: Timestamp, fx: &mut Effects) {
        match (subject, order) {
            (Subject::Build(build), Order::Cancel) => self.cancel(build, now, fx),
            (Subject::Build(build), Order::Bump(priority)) => self.bump_build(build, priority, fx),
            (Subject::Build(build), Order::Restart) => self.restart_build(build, now, fx),
            (Subject::Job(job), Order::Bump(priority)) => self.bump_job(&job, priority, fx),
            (Subject::Job(job), Order::Restart) => self.restart_job(&job, now, fx),
            (Subject::Job(job), Order::Cancel) => self.cancel_job(&job, by, now, fx),
        }
    }

    fn bump_build(&mut self, id: BuildId, priority: Priority, fx: &mut Effects) {
        if self.facts.builds.get(&id).is_none_or(|build| build.record().is_some()) {
            return refuse(Refused::NoSuchBuild(id), fx);
        }
        self.change_build(id, |build| build.asker.get_or_insert_default().priority = priority);
    }

    /// What waits below a job decides when the job can start: all of it gets the priority.
    fn bump_job(&mut self, derivation: &DrvPath, priority: Priority, fx: &mut Effects) {
        let Some(key) = self.key_of(derivation) else { return refuse(Refused::NoSuchJob(derivation.clone()), fx) };
        let open: Vec<JobKey> = self.closure([key]).into_iter().filter(|key| !self.job(*key).is_built()).collect();
        for key in open {
            self.change(key, |job| job.priority = Some(priority));
        }
    }

    fn restart_build(&mut self, id: BuildId, now: Timestamp, fx: &mut Effects) {
        let Some(build) = self.facts.builds.get(&id).filter(|build| build.record().is_none()) else {
            return refuse(Refused::NoSuchBuild(id), fx);
        };
        let jobs: BTreeSet<JobKey> = build.jobs.iter().copied().collect();
        self.restart(jobs, now, fx);
    }

    fn restart_job(&mut self, derivation: &DrvPath, now: Timestamp, fx: &mut Effects) {
        let Some((key, job)) = self.find(derivation) else { return refuse(Refused::NoSuchJob(derivation.clone()), fx) };
        if !job.is_failed() && job.tries.retry_at.is_none() {
            return refuse(Refused::NotFailed(derivation.clone()), fx);
        }
        self.restart(self.closure([key]), now, fx);
    }

    /// Lets those of some jobs wait again that failed, and does not let those wait that back off.
    fn restart(&mut self, jobs: BTreeSet<JobKey>, now: Timestamp, fx: &mut Effects) {
        for key in &jobs {
            if self.job(*key).tries.retry_at.is_some() {
                self.change(*key, |job| job.tries.retry_at = None);
            }
        }
        let failed: Vec<JobKey> = jobs.into_iter().filter(|key| self.job(*key).is_failed()).collect();
        let concerned: BTreeSet<BuildId> = failed.iter().flat_map(|key| self.watchers(*key)).collect();
        let behind: BTreeSet<JobKey> = failed.iter().flat_map(|key| self.behind(*key)).collect();
        self.revive(failed);
        for id in concerned {
            self.go_on(id);
        }
        for key in behind {
            let waits = matches!(self.job(key).state, State::Waiting) && self.index.unbuilt(key) == 0 && self.is_wanted(key);
            if waits && !self.job(key).is_unresolved() {
                self.notify(key, now, EventKind::Ready, fx);
            }
            fx.extend(self.resolution_owed(key));
        }
    }

    /// Lets a build go on that stops, if nothing of it has failed any more.
    fn go_on(&mut self, id: BuildId) {
        let Some(build) = self.facts.builds.get(&id) else { return };
        let stops = matches!(build.phase, Phase::Stopping { .. });
        if !stops || build.jobs.iter().any(|key| self.job(*key).is_failed()) {
            return;
        }
        let running: Vec<JobKey> = build.jobs.iter().copied().filter(|key| self.job(*key).running().is_some()).collect();
        self.change_build(id, |build| build.phase = Phase::Going);
        for key in running {
            // It awaits them again.
            self.change(key, |job| {
                if let State::Running(running) = &mut job.state {
                    running.revoke_at = None;
                }
            });
        }
    }

    fn cancel_job(&mut self, derivation: &DrvPath, by: &str, now: Timestamp, fx: &mut Effects) {
        let Some((key, job)) = self.find(derivation) else { return refuse(Refused::NoSuchJob(derivation.clone()), fx) };
        if job.is_final() {
            return refuse(Refused::HasEnded(derivation.clone()), fx);
        }
        let message = cut(&format!("cancelled by {by}"), FAILURE_MESSAGE_BYTES_MAX);
        self.end_leases(key, &AttemptEnd::Lost { class: FailureClass::Cancelled, message: message.clone() }, now, fx);
        self.fail_for_good(key, FailureClass::Cancelled, message, now, fx);
    }

    /// Ends a young lease so that something of the security class has room, or a second attempt for whatever is ready. It is no failure: a job
    /// that runs nowhere else waits again at once.
    pub(super) fn preempt(&mut self, lease: &Lease, now: Timestamp, fx: &mut Effects) {
        let held = self.find(&lease.derivation);
        let Some((key, job, running)) = held.and_then(|(key, job)| Some((key, job, job.leased(lease)?))) else {
            return refuse(Refused::StaleLease(lease.clone()), fx);
        };
        let is_copy = job.is_copy(lease.attempt);
        let may_end = if is_copy {
            !self.index.ready.is_empty() || self.index.delayed.first().is_some_and(|(at, _)| *at <= now)
        } else {
            let is_urgent = self.index.ready.values().flat_map(|lines| lines.keys()).any(|party| party.security);
            is_urgent && self.may_be_preempted(key, running, now)
        };
        if !may_end {
            return refuse(Refused::NotPreempted(lease.derivation.clone()), fx);
        }
        let (class, message) = (FailureClass::Cancelled, String::from(if is_copy { YIELDED } else { PREEMPTED }));
        let end = if is_copy { AttemptEnd::Lost { class, message: message.clone() } } else { AttemptEnd::Preempted };
        let Some(ended) = self.close_attempt(key, lease.attempt, end, None, now) else { return };
        fx.push(Effect::Revoke(lease.clone()));
        self.set_back(key, ended, Setback { class, message, granted_mib: 0, peak_mib: 0 }, now, fx);
    }

    /// Returns whether a live lease may end for the security class: it is young, nobody of that class wants it, it is no check, and it did not
    /// make room the last time, nor too often.
    pub(crate) fn may_be_preempted(&self, key: JobKey, running: &Running, now: Timestamp) -> bool {
        let job = self.job(key);
        let is_urgent = self.live_builds_of(key).any(|(_, build)| build.asker.as_ref().is_some_and(|asker| asker.security));
        let ended = &job.tries.ended;
        let times = ended.iter().filter(|attempt| attempt.end == AttemptEnd::Preempted).count();
        let again = ended.last().is_some_and(|attempt| attempt.end == AttemptEnd::Preempted);
        !is_urgent && !job.check && !again && times < PREEMPTIONS_PER_JOB_MAX && now.since_ms(running.started_at) < PREEMPTED_MS_MAX
    }
}

/// What is said of an attempt that made room.
pub(crate) const PREEMPTED: &str = "made room for a build of the security class; it is tried again, and this is charged to nobody";

/// What is said of a second attempt that made room.
const YIELDED: &str = "made room for a job that was ready; the other attempt goes on";
