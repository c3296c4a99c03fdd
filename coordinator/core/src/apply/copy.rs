//! A second attempt at a job that runs far longer than its like: `Copy`, and what becomes of the slower one of two.
//!
//! Invariants: a job has two live leases at most, on two workers, and the younger one came by `Copy`; none once it is built. A failure of one
//! ends that one only: what follows from it is owed until the other has failed too, and forgotten if the other makes the outputs; the counts
//! of failures are not. Does not choose what is copied, nor where: the planner does. Source: ADR 0041.

use alloc::boxed::Box;

use kiln_wire::client::EventKind;
use kiln_wire::limits::COPY_SLOTS_PERCENT_MAX;
use kiln_wire::{AttemptId, Lease, LogIndex, Resources, Timestamp};

use super::refuse;
use crate::command::Placement;
use crate::effect::{Copied, Effect, Refused};
use crate::farm::{Effects, Farm};
use crate::health::Health;
use crate::job::{AttemptEnd, JobKey, Running, State};

impl Farm {
    /// Gives a second lease on a job, beside the attempt `of`. Everything is checked against the state as it is now.
    pub(super) fn copy(&mut self, index: LogIndex, of: AttemptId, placement: Placement, now: Timestamp, fx: &mut Effects) {
        let (key, granted) = match self.check_copy(of, &placement) {
            Ok(checked) => checked,
            Err(refused) => return refuse(refused, fx),
        };
        let Placement { derivation, worker, epoch, after, light: _, resources: _ } = placement;
        self.relieve(&worker, after);
        let attempt = AttemptId(index.0);
        let copy = Running::begun(attempt, (worker.clone(), epoch), granted, now);
        let limits = self.change(key, |job| {
            if let State::Running(running) = &mut job.state {
                running.copy = Some(Box::new(copy));
            }
            job.limits
        });
        let lease = Lease { derivation: derivation.clone(), attempt, worker: worker.clone(), epoch };
        fx.push(Effect::Dispatch { lease, resources: granted, limits });
        fx.push(Effect::Copied { derivation, copied: Copied::Begun { attempt, of } });
        self.notify(key, now, EventKind::Started { attempt, worker }, fx);
    }

    fn check_copy(&self, of: AttemptId, placement: &Placement) -> Result<(JobKey, Resources), Refused> {
        let derivation = &placement.derivation;
        let Some((key, job)) = self.find(derivation) else {
            return Err(Refused::NoSuchJob(derivation.clone()));
        };
        let running = job.running().filter(|running| running.attempt == of && running.worker != placement.worker);
        let is_free = running.is_some_and(|running| self.may_be_copied(key, running));
        let is_trusted = self.facts.health.get(&placement.worker).is_none_or(Health::is_used_whole);
        let may_go = !placement.light && is_trusted && !job.tries.failed_on.contains(&placement.worker);
        if !is_free || !may_go || !self.takes_copies(0) {
            return Err(Refused::NotCopied(derivation.clone()));
        }
        Ok((key, self.check_room(job, placement)?))
    }

    /// Returns whether a running job may get a second attempt: it has none, nothing is known of how it fails, it is no check and not over in a
    /// moment, and a build goes on that wants it.
    pub(crate) fn may_be_copied(&self, key: JobKey, running: &Running) -> bool {
        self.job(key).is_copyable(running) && self.is_wanted(key)
    }

    /// Returns whether fewer slots hold second attempts than may, so many more counted.
    pub(crate) fn takes_copies(&self, more: usize) -> bool {
        let copies = u64::try_from(self.index.copies.len() + more).unwrap_or(u64::MAX);
        copies < (self.index.fleet.whole.slots * COPY_SLOTS_PERCENT_MAX / 100).max(1)
    }

    /// One of two attempts has made the outputs: ends the other, which is charged to nobody and says nothing of its worker.
    pub(super) fn outrun(&mut self, key: JobKey, winner: AttemptId, now: Timestamp, fx: &mut Effects) {
        let job = self.job(key);
        let Some(slower) = job.leases().find(|running| running.attempt != winner).map(|running| job.lease_of(running)) else { return };
        let (derivation, by_copy) = (slower.derivation.clone(), job.is_copy(winner));
        self.close_attempt(key, slower.attempt, AttemptEnd::Outrun, None, now);
        fx.push(Effect::Revoke(slower));
        fx.push(Effect::Copied { derivation, copied: Copied::Won { attempt: winner, by_copy } });
    }
}

/// What is said of an attempt that was not the first of two.
pub(crate) const OUTRUN: &str = "another attempt at the job was faster";
