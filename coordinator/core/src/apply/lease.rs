//! Leases begin and are withdrawn: `Assign`, `Revoke`.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use kiln_wire::client::EventKind;
use kiln_wire::{AttemptId, FailureClass, Lease, LogIndex, Resources, Timestamp, WorkerId};

use super::refuse;
use crate::command::Placement;
use crate::effect::{Effect, Refused};
use crate::farm::{Effects, Farm};
use crate::fleet;
use crate::job::{AttemptEnd, Job, JobKey, Running, Setback, State};

impl Farm {
    /// Gives leases. Each placement is checked against the state as it is now, not as the planner saw it.
    pub(super) fn assign(&mut self, index: LogIndex, placements: Vec<Placement>, now: Timestamp, fx: &mut Effects) {
        for placement in placements {
            match self.check_placement(&placement, now) {
                Ok((key, granted)) => self.give_lease(key, granted, AttemptId(index.0), placement, now, fx),
                Err(refused) => refuse(refused, fx),
            }
        }
    }

    fn check_placement(&self, placement: &Placement, now: Timestamp) -> Result<(JobKey, Resources), Refused> {
        let derivation = &placement.derivation;
        let Some((key, job)) = self.find(derivation) else {
            return Err(Refused::NoSuchJob(derivation.clone()));
        };
        let waits = matches!(job.state, State::Waiting) && self.index.unbuilt(key) == 0 && !job.is_unresolved();
        let wanted = self.live_builds_of(key).any(|(_, build)| build.is_going());
        if !waits || !wanted || job.tries.retry_at.is_some_and(|at| at > now) {
            return Err(Refused::NotReady(derivation.clone()));
        }
        Ok((key, self.check_room(job, placement)?))
    }

    /// Returns what a job is given of a worker that has room for it.
    pub(super) fn check_room(&self, job: &Job, placement: &Placement) -> Result<Resources, Refused> {
        let derivation = &placement.derivation;
        let Some(worker) = self.facts.workers.get(&placement.worker).filter(|known| known.epoch == placement.epoch) else {
            return Err(Refused::StaleEpoch { worker: placement.worker.clone(), epoch: placement.epoch });
        };
        let needs = job.needs_next(0);
        let granted = placement.resources.unwrap_or_else(|| fleet::grant(worker.offer.capacity, &needs));
        // One that has ended meanwhile has given its share back.
        let relieved = placement.after.and_then(|attempt| self.place_of(&placement.worker, attempt));
        let free = self.free_on(&placement.worker).map(|free| relieved.map_or(free, |(_, running)| free.give(running.granted)));
        let rest = free.and_then(|free| if placement.light { free.take_light(granted) } else { free.take(granted) });
        // What the planner grants is its own choice, but for what the job must have.
        let enough = granted.memory_mib >= needs.resources.memory_mib && (!placement.light || (job.is_light() && granted.cores == 0));
        if !fleet::could_run(&worker.offer, &needs) || rest.is_none() || !enough {
            return Err(Refused::DoesNotFit { derivation: derivation.clone(), worker: placement.worker.clone() });
        }
        Ok(granted)
    }

    fn give_lease(&mut self, key: JobKey, granted: Resources, attempt: AttemptId, placement: Placement, now: Timestamp, fx: &mut Effects) {
        let Placement { derivation, worker, epoch, light, after, resources: _ } = placement;
        self.relieve(&worker, after);
        let running = Running { light, ..Running::begun(attempt, (worker.clone(), epoch), granted, now) };
        let limits = self.change(key, |job| {
            job.tries.retry_at = None;
            job.state = State::Running(Box::new(running));
            job.limits
        });
        fx.push(Effect::Dispatch { lease: Lease { derivation, attempt, worker: worker.clone(), epoch }, resources: granted, limits });
        self.notify(key, now, EventKind::Started { attempt, worker }, fx);
    }

    /// Takes the place of an attempt that only uploads on a worker, if one is named and has it.
    pub(super) fn relieve(&mut self, worker: &WorkerId, after: Option<AttemptId>) {
        if let Some((earlier, running)) = after.and_then(|attempt| self.place_of(worker, attempt)) {
            let attempt = running.attempt;
            self.change(earlier, |job| job.relieve(attempt));
        }
    }

    /// Returns whether another attempt may have the place of one that only uploads on a worker.
    pub(crate) fn takes_successors(&self, worker: &WorkerId) -> bool {
        let known = self.facts.workers.get(worker);
        known.is_some_and(|known| !known.is_finishing) && self.facts.health.get(worker).is_none_or(|health| health.is_used_whole())
    }

    /// Returns an attempt that holds a slot of a worker, if another may have its place.
    fn place_of(&self, worker: &WorkerId, attempt: AttemptId) -> Option<(JobKey, &Running)> {
        if !self.takes_successors(worker) {
            return None;
        }
        let jobs = &self.index.loads.get(worker)?.jobs;
        let of = |key: &JobKey| Some((*key, self.job(*key).leased_on(worker).filter(|running| running.attempt == attempt)?));
        jobs.iter().find_map(of).filter(|(_, running)| !running.light && !running.relieved)
    }

    /// Ends a lease whose grace period is over, and that of the other attempt if there are two. Refused if somebody wants the job again, or the
    /// time has not come.
    pub(super) fn revoke(&mut self, lease: &Lease, now: Timestamp, fx: &mut Effects) {
        let held = self.find(&lease.derivation).filter(|(_, job)| job.holds(lease));
        let over = held.filter(|(_, job)| job.running().and_then(|running| running.revoke_at).is_some_and(|at| at <= now));
        let Some((key, _)) = over else {
            return refuse(Refused::StaleLease(lease.clone()), fx);
        };
        let end = AttemptEnd::Lost { class: FailureClass::Cancelled, message: String::from("no build wants it any more") };
        let owed = self.end_leases(key, &end, now, fx);
        // What one of two attempts found out holds for whoever wants the job next.
        match owed {
            Some(owed) => self.follow_up(key, *owed, now, fx),
            None => self.drop_if_unheld(key),
        }
    }

    /// Stops every attempt at a job. Returns what one of two owed.
    pub(super) fn end_leases(&mut self, key: JobKey, end: &AttemptEnd, now: Timestamp, fx: &mut Effects) -> Option<Box<Setback>> {
        while let Some(lease) = self.job(key).lease() {
            let ended = self.close_attempt(key, lease.attempt, end.clone(), None, now)?;
            fx.push(Effect::Revoke(lease));
            if !ended.goes_on {
                return ended.owed;
            }
        }
        None
    }
}
