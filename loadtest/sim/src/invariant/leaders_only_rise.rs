//! 24: a worker never goes back below the highest leader that it obeyed, also not after a restart with its journal.

use std::collections::BTreeMap;

use kiln_wire::{Leader, WorkerId};

use super::{Invariant, Look};
use crate::fact::Fact;

#[derive(Default)]
pub(super) struct LeadersOnlyRise(BTreeMap<WorkerId, Leader>);

impl Invariant for LeadersOnlyRise {
    fn name(&self) -> &'static str {
        "a worker obeys no leader below the highest that it has obeyed"
    }

    fn see(&mut self, fact: &Fact<'_>, _look: &Look<'_>) -> Result<(), String> {
        match fact {
            Fact::Obeys { worker, seen } => {
                let highest = self.0.entry((*worker).clone()).or_default();
                if seen < highest {
                    return Err(format!("worker {worker} went from leader {highest:?} to {seen:?}"));
                }
                *highest = *seen;
                Ok(())
            }
            Fact::Starts { worker, assignment, .. } => match self.0.get(*worker) {
                Some(highest) if assignment.leader < *highest => {
                    Err(format!("worker {worker} starts an attempt of leader {:?} after {highest:?}", assignment.leader))
                }
                _ => Ok(()),
            },
            Fact::WorkerDied { worker, journal_lost: true } => {
                self.0.remove(*worker);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
