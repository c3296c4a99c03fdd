//! Attempts that take far longer than their like, and those on which what is left of a build hangs.
//!
//! Part of the index: when a running job is first looked at follows from the facts. Whether it is late in earnest is settled by the planner,
//! which looks at how far its like spreads.

use kiln_wire::limits::COPIED_MS_MIN;
use kiln_wire::worker::SPEED_STANDARD;
use kiln_wire::{Timestamp, WorkerId};

use crate::farm::Facts;
use crate::index::Index;
use crate::job::{Job, JobKey, Running};

impl Index {
    /// Enters when a running job might be late, and when what needs it should be built.
    pub fn watch(&mut self, facts: &Facts, key: JobKey, job: &Job, running: &Running) {
        self.ends.insert((running.started_at.after_ms(self.path_ms(key)), key));
        self.late.extend(self.late_at(facts, key, job, running).map(|at| (at, key)));
        if running.copy.is_some() {
            self.copies.insert(key);
        }
    }

    /// Undoes [`Self::watch`].
    pub fn unwatch(&mut self, facts: &Facts, key: JobKey, job: &Job, running: &Running) {
        self.ends.remove(&(running.started_at.after_ms(self.path_ms(key)), key));
        if let Some(at) = self.late_at(facts, key, job, running) {
            self.late.remove(&(at, key));
        }
        self.copies.remove(&key);
    }

    /// Returns when a running job has taken twice what is expected of it; none if it gets no second attempt in any case.
    fn late_at(&self, facts: &Facts, key: JobKey, job: &Job, running: &Running) -> Option<Timestamp> {
        let expected = self.expected(key);
        let is_watched = expected.is_known && job.is_copyable(running);
        let twice_ms = on_worker_ms(expected.wall_ms.saturating_mul(2), speed_of(facts, &running.worker));
        is_watched.then(|| running.started_at.after_ms(twice_ms.max(COPIED_MS_MIN)))
    }
}

/// Returns how fast a worker is, in per mille of the standard.
pub(crate) fn speed_of(facts: &Facts, worker: &WorkerId) -> u32 {
    facts.workers.get(worker).map_or(SPEED_STANDARD, |worker| worker.offer.speed_per_mille)
}

/// Returns the milliseconds that a worker takes for what takes one of standard speed `wall_ms`.
pub(crate) fn on_worker_ms(wall_ms: u64, speed_per_mille: u32) -> u64 {
    wall_ms.saturating_mul(u64::from(SPEED_STANDARD)) / u64::from(speed_per_mille.max(1))
}
