//! 24: a worker never goes back below the highest leader that it obeyed, also not after a restart with its journal. What it starts is
//! that leader's: dispatched by it, or by one before it and kept by its welcome.

use std::collections::BTreeMap;

use kiln_wire::worker::{FromWorker, ToWorker};
use kiln_wire::{Leader, Lease, WorkerId};

use super::{Invariant, Look};
use crate::fact::Fact;

#[derive(Default)]
pub(super) struct LeadersOnlyRise {
    obeyed: BTreeMap<WorkerId, Leader>,
    /// The highest leader that dispatched or kept it.
    wanted_by: BTreeMap<Lease, Leader>,
}

impl LeadersOnlyRise {
    fn wants(&mut self, lease: &Lease, leader: Leader) {
        let highest = self.wanted_by.entry(lease.clone()).or_default();
        *highest = leader.max(*highest);
    }
}

impl Invariant for LeadersOnlyRise {
    fn name(&self) -> &'static str {
        "a worker obeys no leader below the highest that it has obeyed"
    }

    fn see(&mut self, fact: &Fact<'_>, _look: &Look<'_>) -> Result<(), String> {
        match fact {
            Fact::Obeys { worker, seen } => {
                let highest = self.obeyed.entry((*worker).clone()).or_default();
                if seen < highest {
                    return Err(format!("worker {worker} went from leader {highest:?} to {seen:?}"));
                }
                *highest = *seen;
                Ok(())
            }
            Fact::Told { message: ToWorker::Dispatch(assignment) } => {
                self.wants(&assignment.lease, assignment.leader);
                Ok(())
            }
            Fact::Told { message: ToWorker::Welcome { leader, keep, .. } } => {
                keep.iter().for_each(|lease| self.wants(lease, *leader));
                Ok(())
            }
            Fact::Starts { worker, assignment, .. } => match (self.obeyed.get(*worker), self.wanted_by.get(&assignment.lease)) {
                (Some(highest), wanted_by) if wanted_by < Some(highest) => {
                    Err(format!("worker {worker} starts an attempt of leader {:?} after {highest:?}", assignment.leader))
                }
                _ => Ok(()),
            },
            // What a process knows at its start shows in its first words.
            Fact::Says { worker, message: FromWorker::Hello(hello) } => match self.obeyed.get(*worker) {
                Some(highest) if hello.leader_seen < *highest => {
                    Err(format!("worker {worker} names leader {:?} after {highest:?}", hello.leader_seen))
                }
                _ => Ok(()),
            },
            Fact::WorkerDied { worker, journal_lost: true } => {
                self.obeyed.remove(*worker);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
