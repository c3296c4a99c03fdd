//! The farm learns what builds take: from attempts that end, and from what was measured elsewhere. `Finish`, `ImportDurations`.
//!
//! Only the report of a live lease teaches anything: what comes late may be of a machine that was suspended for a day.

use alloc::boxed::Box;
use alloc::vec::Vec;

use kiln_wire::limits::{DURATIONS_PER_ENTRY_MAX, HELD_BYTES_MIN, HOLDERS_MAX};
use kiln_wire::worker::SPEED_STANDARD;
use kiln_wire::{FailureClass, Lease, Measured, Outcome, WorkerId};

use crate::estimate::Touched;
use crate::farm::Farm;
use crate::job::{Held, JobKey};

impl Farm {
    /// Learns from a report, before it is taken: the lease is still the live one.
    pub(super) fn learn(&mut self, lease: &Lease, outcome: &Outcome) {
        let Some((key, job)) = self.key_of(&lease.derivation).and_then(|key| self.facts.jobs.get_key_value(&key)) else { return };
        if !job.holds(lease) {
            return;
        }
        let (key, estimates) = (*key, &mut self.facts.estimates);
        match outcome {
            Outcome::Built { outputs, usage } => {
                let speed = self.facts.workers.get(&lease.worker).map_or(SPEED_STANDARD, |worker| worker.offer.speed_per_mille);
                let bytes = outputs.iter().fold(0u64, |sum, output| sum.saturating_add(output.info.nar_size_bytes));
                let touched = estimates.learn(job, usage, bytes, speed);
                self.learned(&touched);
                self.note_holder(key, &lease.worker, bytes);
            }
            Outcome::Failed { failure, usage } if failure.class == FailureClass::OutOfMemory => {
                let granted_mib = job.leased(lease).map_or(0, |running| running.granted.memory_mib);
                let touched = estimates.learn_memory_short(job, granted_mib.max(usage.memory_peak_bytes >> 20));
                self.learned(&touched);
            }
            Outcome::Failed { .. } => {}
        }
    }

    /// Notes that a worker has what it made, and the inputs that it fetched for it.
    fn note_holder(&mut self, key: JobKey, worker: &WorkerId, bytes: u64) {
        let inputs: Vec<JobKey> = self.job(key).inputs.iter().copied().take(INPUTS_NOTED_MAX).collect();
        for input in inputs {
            let held = self.facts.jobs.get_mut(&input).and_then(|job| job.held.as_deref_mut());
            if let Some(held) = held.filter(|held| held.by.len() < HOLDERS_MAX && !held.by.contains(worker)) {
                held.by.push(worker.clone());
            }
        }
        if let Some(job) = self.facts.jobs.get_mut(&key).filter(|_| bytes >= HELD_BYTES_MIN) {
            job.held = Some(Box::new(Held { bytes, by: Vec::from([worker.clone()]) }));
        }
    }

    /// Takes what was measured elsewhere, as if it had been built here.
    pub(super) fn import_durations(&mut self, durations: &[Measured]) {
        let mut touched = Touched::default();
        for measured in durations.iter().take(DURATIONS_PER_ENTRY_MAX) {
            let more = self.facts.estimates.import(measured);
            touched.topics.extend(more.topics);
            touched.all |= more.all;
        }
        touched.topics.sort_unstable();
        touched.topics.dedup();
        self.learned(&touched);
    }
}

/// Inputs of one job that are noted: a bound on what a report costs.
const INPUTS_NOTED_MAX: usize = 64;
