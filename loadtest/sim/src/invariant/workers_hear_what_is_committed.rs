//! 24: a leader tells workers only what entries of its own term say, once they are committed.

use std::collections::BTreeSet;

use kiln_core::Effect;
use kiln_wire::Lease;
use kiln_wire::worker::ToWorker;

use super::{Invariant, Look};
use crate::fact::Fact;

#[derive(Default)]
pub(super) struct WorkersHearWhatIsCommitted(BTreeSet<Lease>);

impl Invariant for WorkersHearWhatIsCommitted {
    fn name(&self) -> &'static str {
        "a worker is told only of leases that are committed"
    }

    fn see(&mut self, fact: &Fact<'_>, _look: &Look<'_>) -> Result<(), String> {
        match fact {
            Fact::Applied { effects, .. } => {
                for effect in *effects {
                    if let Effect::Dispatch { lease, .. } = effect {
                        self.0.insert(lease.clone());
                    }
                }
                Ok(())
            }
            Fact::Told { message: ToWorker::Dispatch(assignment) } if !self.0.contains(&assignment.lease) => {
                Err(format!("attempt {} at `{}` is dispatched and not committed", assignment.lease.attempt, assignment.lease.derivation))
            }
            _ => Ok(()),
        }
    }
}
