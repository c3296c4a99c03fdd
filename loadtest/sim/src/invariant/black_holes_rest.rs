//! 26: a worker on which everything fails is stopped from taking more, within a handful of jobs.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::{Command, Effect};
use kiln_wire::limits::{WORKER_FAILURES_MAX, WORKER_REST_MS_MIN};
use kiln_wire::{DrvPath, FailureClass, Lease, Outcome, WorkerId};

use super::{Invariant, Look};
use crate::fact::Fact;

/// What is known of one worker since its last success.
#[derive(Default)]
struct Known {
    /// Jobs that failed there and nowhere else.
    failed: BTreeSet<DrvPath>,
    /// When the last of them did, once they are enough.
    tripped_us: Option<u64>,
}

#[derive(Default)]
pub(super) struct BlackHolesRest {
    workers: BTreeMap<WorkerId, Known>,
    dispatched_us: BTreeMap<Lease, u64>,
}

impl BlackHolesRest {
    /// Elsewhere too: no worker is to blame.
    fn excuse(&mut self, derivation: &DrvPath) {
        for known in self.workers.values_mut() {
            known.failed.remove(derivation);
        }
    }

    fn failed(&mut self, lease: &Lease, elsewhere: bool, now_us: u64) {
        self.excuse(&lease.derivation);
        let known = self.workers.entry(lease.worker.clone()).or_default();
        // What it was given before it was known says nothing new.
        let given_us = self.dispatched_us.get(lease).copied().unwrap_or_default();
        if elsewhere || known.tripped_us.is_some_and(|at| given_us < at) {
            return;
        }
        known.failed.insert(lease.derivation.clone());
        known.tripped_us = (known.failed.len() >= WORKER_FAILURES_MAX).then_some(now_us);
    }
}

impl Invariant for BlackHolesRest {
    fn name(&self) -> &'static str {
        "a worker on which everything fails gets nothing more for a while"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        let Fact::Applied { command, before, effects, farm, .. } = fact else { return Ok(()) };
        // Where clocks jump the stamps decide how long a while is.
        if look.options.clocks {
            return Ok(());
        }
        match command {
            Command::Finish { lease, outcome, .. } if before.is_live(lease) => match outcome {
                Outcome::Built { .. } => {
                    self.workers.remove(&lease.worker);
                }
                Outcome::Failed { failure, .. } if failure.class == FailureClass::Infrastructure => {
                    let attempts = before.job_view(&lease.derivation).map(|view| view.attempts).unwrap_or_default();
                    let is_infrastructure = |failure: &Option<(FailureClass, String)>| {
                        failure.as_ref().is_some_and(|(class, _)| *class == FailureClass::Infrastructure)
                    };
                    let elsewhere = attempts.iter().any(|of| of.worker != lease.worker && is_infrastructure(&of.failure));
                    self.failed(lease, elsewhere, look.now_us);
                }
                Outcome::Failed { .. } => {}
            },
            Command::Lose { worker, .. } | Command::Register { worker, .. } => {
                // Whatever was lost there failed elsewhere too, where it did.
                let lost = before.leases_of(worker).into_iter().filter(|lease| !farm.is_live(lease));
                lost.for_each(|lease| self.excuse(&lease.derivation));
            }
            _ => {}
        }
        for effect in *effects {
            let Effect::Dispatch { lease, .. } = effect else { continue };
            self.dispatched_us.insert(lease.clone(), look.now_us);
            let tripped = self.workers.get(&lease.worker).and_then(|known| known.tripped_us);
            if tripped.is_some_and(|at| look.now_us < at + WORKER_REST_MS_MIN * 900) {
                return Err(format!(
                    "{} jobs failed on worker {} alone and it gets `{}`",
                    WORKER_FAILURES_MAX, lease.worker, lease.derivation
                ));
            }
        }
        Ok(())
    }
}
