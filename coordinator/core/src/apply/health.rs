//! Workers are judged by what fails on them: at `Finish`, `Lose` and `Register`; `Rouse` and `Drain` say what else changes.

use alloc::string::String;
use alloc::vec::Vec;

use kiln_wire::limits::{STRAIN_MESSAGE_BYTES_MAX, WORKER_REST_MS_MAX};
use kiln_wire::worker::Offer;
use kiln_wire::{FailureClass, JobKind, Lease, Outcome, Standing, Timestamp, WorkerId};

use super::finish::declared_outputs;
use super::refuse;
use crate::effect::{Effect, Refused};
use crate::farm::{Effects, Farm, cut};
use crate::health::{self, Health};
use crate::job::JobKey;

impl Farm {
    /// Judges a worker by a report of a live lease, before it is taken. A builder that fails says nothing of its worker.
    pub(super) fn judge(&mut self, lease: &Lease, outcome: &Outcome, now: Timestamp, fx: &mut Effects) {
        let Some((key, job)) = self.find(&lease.derivation) else { return };
        let Some(started_at) = job.leased(lease).map(|running| running.started_at) else { return };
        match outcome {
            // What is no whole output set is a failure of its builder, whatever was reported.
            Outcome::Built { outputs, .. } if declared_outputs(job, outputs.clone()).is_none() => {}
            Outcome::Built { .. } => {
                self.built_on(&lease.worker, started_at, fx);
                self.built_elsewhere(key, &lease.worker, now, fx);
            }
            Outcome::Failed { failure, .. } => match failure.class {
                FailureClass::Infrastructure => self.failed_on(key, &lease.worker, started_at, (&failure.message, now), fx),
                FailureClass::BuildFailure | FailureClass::OutOfMemory | FailureClass::LimitExceeded | FailureClass::Cancelled => {}
            },
        }
    }

    /// Judges a worker by leases that ended without a report. Whatever it ran, that is one failure: of the oldest job.
    pub(super) fn judge_lost(&mut self, lost: &[JobKey], worker: &WorkerId, message: &str, now: Timestamp, fx: &mut Effects) {
        let Some(key) = lost.iter().min().copied() else { return };
        let Some(started_at) = self.job(key).leased_on(worker).map(|running| running.started_at) else { return };
        self.failed_on(key, worker, started_at, (message, now), fx);
    }

    fn failed_on(&mut self, key: JobKey, worker: &WorkerId, started_at: Timestamp, (message, now): (&str, Timestamp), fx: &mut Effects) {
        let job = self.job(key);
        let others: Vec<WorkerId> = job.tries.failed_on.iter().filter(|other| *other != worker).cloned().collect();
        let derivation = (*job.derivation).clone();
        // A fetch by the worker itself fails for the server's sake, mostly; if another worker can, it counts all the same.
        let excused = !others.is_empty() || job.kind == JobKind::Builtin;
        // It is as likely to be the job's fault, or the store's.
        for other in &others {
            self.change_health(other, |health| health.failures.get_mut(&derivation).map(|excused| *excused = true));
        }
        self.change_health(worker, |health| {
            if health.counts(started_at) {
                health.failures.insert(derivation, excused);
                health.failed_at = health.failed_at.max(now);
                health.message = cut(message, STRAIN_MESSAGE_BYTES_MAX);
            }
        });
        self.rest_if_due(worker, now, fx);
    }

    /// A success wipes out what is held against a worker, unless it was begun before that was known.
    fn built_on(&mut self, worker: &WorkerId, started_at: Timestamp, fx: &mut Effects) {
        let Some(health) = self.facts.health.get(worker).filter(|health| health.counts(started_at) && started_at >= health.failed_at)
        else {
            return;
        };
        let (drained, ailed) = (health.drained, health.standing != Standing::Working);
        self.change_health(worker, |health| *health = Health { drained, ..Health::default() });
        if ailed {
            self.tell_health(worker, fx);
        }
    }

    /// What is built elsewhere was not to blame where it failed.
    fn built_elsewhere(&mut self, key: JobKey, worker: &WorkerId, now: Timestamp, fx: &mut Effects) {
        let job = self.job(key);
        let derivation = (*job.derivation).clone();
        let others: Vec<WorkerId> = job.tries.failed_on.iter().filter(|other| *other != worker).cloned().collect();
        for other in others {
            self.change_health(&other, |health| health.failures.get_mut(&derivation).map(|excused| *excused = false));
            self.rest_if_due(&other, now, fx);
        }
    }

    fn rest_if_due(&mut self, worker: &WorkerId, now: Timestamp, fx: &mut Effects) {
        if self.facts.health.get(worker).is_some_and(Health::is_due) {
            let may_be_quarantined = health::may_be_quarantined(&self.facts, worker);
            self.change_health(worker, |health| health.rest(may_be_quarantined, now));
            if let Some(health) = self.facts.health.get(worker).filter(|health| matches!(health.standing, Standing::Quarantined { .. })) {
                self.facts.outbox.quarantined(worker, &health.message, now);
            }
            self.tell_health(worker, fx);
        }
    }

    /// Ends a rest whose time has come.
    pub(super) fn rouse(&mut self, worker: &WorkerId, now: Timestamp, fx: &mut Effects) {
        let until = self.facts.health.get(worker).and_then(Health::rests_until);
        if until.is_some_and(|until| until <= now) {
            self.change_health(worker, |health| health.standing = Standing::Probation { since: now });
            self.tell_health(worker, fx);
        }
    }

    /// Ends quarantines of workers like this one, if too few are left beside them: they are tried again now and then, as the last one is.
    pub(super) fn end_quarantines(&mut self, offer: &Offer, now: Timestamp, fx: &mut Effects) {
        for worker in health::no_longer_quarantined(&self.facts, offer) {
            let until = now.after_ms(WORKER_REST_MS_MAX);
            self.change_health(&worker, |health| health.standing = Standing::Resting { until });
            self.tell_health(&worker, fx);
        }
    }

    /// Lets a worker take nothing new, or forgets whatever kept it from taking jobs.
    pub(super) fn drain(&mut self, worker: &WorkerId, drain: bool, now: Timestamp, fx: &mut Effects) {
        if !self.facts.workers.contains_key(worker) && !self.facts.health.contains_key(worker) {
            return refuse(Refused::NoSuchWorker(worker.clone()), fx);
        }
        self.change_health(worker, |health| {
            if drain {
                health.drained = true;
            } else {
                *health = Health { message: String::new(), ..Health::default() };
            }
        });
        self.tell_health(worker, fx);
        if let Some(offer) = self.facts.workers.get(worker).map(|known| known.offer.clone()) {
            self.end_quarantines(&offer, now, fx);
        }
    }

    fn tell_health(&self, worker: &WorkerId, fx: &mut Effects) {
        fx.push(Effect::Judged { worker: worker.clone(), ailing: self.facts.health.get(worker).map(Health::view) });
    }

    /// Changes what is held against a worker, and what follows from it.
    fn change_health<R>(&mut self, worker: &WorkerId, change: impl FnOnce(&mut Health) -> R) {
        let mut health = self.facts.health.get(worker).cloned().unwrap_or_default();
        change(&mut health);
        self.index.unseat(&self.facts, worker);
        self.index.rests.remove(&(self.facts.health.get(worker).and_then(Health::rests_until).unwrap_or_default(), worker.clone()));
        if health.is_spotless() {
            self.facts.health.remove(worker);
        } else {
            self.index.rests.extend(health.rests_until().map(|until| (until, worker.clone())));
            self.facts.health.insert(worker.clone(), health);
        }
        self.index.seat(&self.facts, worker);
        if let Some(gone) = health::forget_one(&self.facts) {
            let forgotten = self.facts.health.remove(&gone);
            self.index.rests.remove(&(forgotten.as_ref().and_then(Health::rests_until).unwrap_or_default(), gone));
        }
    }
}
