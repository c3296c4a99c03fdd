//! 17: a worker names every result that nobody has acknowledged when it comes back, also after a restart with its journal.

use std::collections::{BTreeMap, BTreeSet};

use kiln_wire::worker::FromWorker;
use kiln_wire::{Lease, WorkerId};

use super::{Invariant, Look};
use crate::fact::Fact;

#[derive(Default)]
pub(super) struct ResultsAreKept(BTreeMap<WorkerId, BTreeSet<Lease>>);

impl Invariant for ResultsAreKept {
    fn name(&self) -> &'static str {
        "a worker that comes back names every result that was not acknowledged"
    }

    fn see(&mut self, fact: &Fact<'_>, _look: &Look<'_>) -> Result<(), String> {
        match fact {
            Fact::Keeps { worker, lease } => {
                self.0.entry((*worker).clone()).or_default().insert((*lease).clone());
            }
            Fact::Forgets { worker, lease } => {
                self.0.entry((*worker).clone()).or_default().remove(*lease);
            }
            Fact::WorkerDied { worker, journal_lost: true } => {
                self.0.remove(*worker);
            }
            Fact::Says { worker, message: FromWorker::Hello(hello) } => {
                let kept = self.0.entry((*worker).clone()).or_default();
                if let Some(lease) = kept.iter().find(|lease| !hello.attempts.contains(lease)) {
                    return Err(format!("worker {worker} does not name attempt {} at `{}`", lease.attempt, lease.derivation));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
