//! 27: a worker that is heard of keeps its leases, however long its jobs take and wherever clocks jump.

use std::collections::BTreeMap;

use kiln_core::Command;
use kiln_wire::limits::WORKER_SILENCE_MS_MAX;
use kiln_wire::{NodeId, WorkerId};

use super::{Invariant, Look};
use crate::fact::Fact;

#[derive(Default)]
pub(super) struct TheLivingAreNotLost(BTreeMap<(NodeId, WorkerId), u64>);

impl Invariant for TheLivingAreNotLost {
    fn name(&self) -> &'static str {
        "a worker is given up only after its whole silence"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        match fact {
            Fact::Heard { node, worker, .. } => {
                self.0.insert((*node, (*worker).clone()), look.now_us);
                Ok(())
            }
            Fact::Proposed { node, command: Command::Lose { worker, .. } } => match self.0.get(&(*node, worker.clone())) {
                // A clock may run a little fast.
                Some(heard) if look.now_us - heard < WORKER_SILENCE_MS_MAX * 990 => {
                    Err(format!("node {node} gives up worker {worker} {} ms after it heard of it", (look.now_us - heard) / 1000))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}
