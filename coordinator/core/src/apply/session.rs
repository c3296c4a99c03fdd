//! Workers come and go: `Register`, `Lose`.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use kiln_wire::worker::Offer;
use kiln_wire::{Epoch, Lease, LogIndex, Timestamp, WorkerId};

use super::refuse;
use crate::effect::{Effect, Refused};
use crate::farm::{Effects, Farm};
use crate::fleet::{Free, Worker};
use crate::job::{JobKey, Running};

/// A worker that opened a session.
pub(super) struct Arrival {
    pub worker: WorkerId,
    pub offer: Offer,
    pub attempts: Vec<Lease>,
    pub since: Option<Epoch>,
    pub judge: bool,
}

impl Farm {
    /// Gives a worker a new epoch. Of its leases those go on that it names, that are live, and that fit what it offers.
    pub(super) fn register(&mut self, index: LogIndex, arrival: Arrival, now: Timestamp, fx: &mut Effects) {
        let Arrival { worker, offer, attempts, since, judge } = arrival;
        let (keep, kept_jobs) = self.kept_leases(&worker, &offer, attempts);
        let lost: Vec<JobKey> = self.jobs_on(&worker).into_iter().filter(|key| !kept_jobs.contains(key)).collect();
        let epoch = Epoch(index.0);
        let arrived = Worker { epoch, offer: offer.clone(), registered_at: now, is_finishing: false };
        let before = self.change_worker(&worker, |workers| workers.insert(worker.clone(), arrived));
        fx.push(Effect::Welcome { worker: worker.clone(), epoch, keep });
        let undelivered = |farm: &Self, key: JobKey| {
            let leased_at = farm.job(key).leased_on(&worker).map(|running| running.epoch);
            since.is_some_and(|since| leased_at >= Some(since))
        };
        if judge {
            let dropped: Vec<JobKey> = lost.iter().copied().filter(|key| !undelivered(self, *key)).collect();
            self.judge_lost(&dropped, &worker, "it came back without what it had been given", now, fx);
        }
        // It may have left those that it was like, and come to others.
        for offer in before.map(|before| before.offer).iter().chain([&offer]) {
            self.end_quarantines(offer, now, fx);
        }
        for key in lost {
            if undelivered(self, key) {
                self.end_undelivered_attempt(key, &worker, format!("the assignment never reached worker {worker}"), now, fx);
            } else {
                self.lose_lease(key, &worker, format!("worker {worker} came back without the attempt"), now, fx);
            }
        }
    }

    /// Ends a registration that was silent for too long, unless the worker has a later one.
    pub(super) fn lose(&mut self, worker: &WorkerId, epoch: Epoch, judge: bool, now: Timestamp, fx: &mut Effects) {
        if self.facts.workers.get(worker).is_none_or(|known| known.epoch != epoch) {
            return refuse(Refused::StaleEpoch { worker: worker.clone(), epoch }, fx);
        }
        if judge {
            let lost = self.jobs_on(worker);
            self.judge_lost(&lost, worker, "it was silent for too long while it had jobs", now, fx);
        }
        let gone = self.change_worker(worker, |workers| workers.remove(worker));
        gone.iter().for_each(|gone| self.end_quarantines(&gone.offer, now, fx));
        for key in self.jobs_on(worker) {
            self.lose_lease(key, worker, format!("worker {worker} was lost"), now, fx);
        }
    }

    fn lose_lease(&mut self, key: JobKey, worker: &WorkerId, message: String, now: Timestamp, fx: &mut Effects) {
        // A failure further up the graph does not touch running jobs, so each is still leased here.
        self.end_lost_attempt(key, worker, message, now, fx);
    }

    fn jobs_on(&self, worker: &WorkerId) -> Vec<JobKey> {
        self.index.loads.get(worker).map(|load| load.jobs.iter().copied().collect()).unwrap_or_default()
    }

    fn kept_leases(&self, worker: &WorkerId, offer: &Offer, attempts: Vec<Lease>) -> (Vec<Lease>, BTreeSet<JobKey>) {
        let mut free = Free::whole(offer);
        let mut kept_jobs = BTreeSet::new();
        let mut keep = Vec::new();
        for lease in attempts {
            let Some((key, job)) = self.find(&lease.derivation) else { continue };
            let Some(running) = job.leased(&lease).filter(|_| lease.worker == *worker) else { continue };
            let share = match running {
                Running { relieved: true, .. } => Some(free),
                Running { light: true, granted, .. } => free.take_light(*granted),
                Running { granted, .. } => free.take(*granted),
            };
            let Some(rest) = share else { continue };
            if kept_jobs.insert(key) {
                free = rest;
                keep.push(lease);
            }
        }
        (keep, kept_jobs)
    }
}
