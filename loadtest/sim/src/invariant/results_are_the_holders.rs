//! 3: only the holder of a lease reports: a success that is taken was made by just that attempt on just that worker.

use std::collections::BTreeSet;

use kiln_core::Command;
use kiln_wire::{Lease, Outcome};

use super::{Invariant, Look};
use crate::fact::Fact;

#[derive(Default)]
pub(super) struct ResultsAreTheHolders(BTreeSet<Lease>);

impl Invariant for ResultsAreTheHolders {
    fn name(&self) -> &'static str {
        "a success that is taken was made by the attempt that holds the lease"
    }

    fn see(&mut self, fact: &Fact<'_>, _look: &Look<'_>) -> Result<(), String> {
        match fact {
            Fact::Ended { lease } => {
                self.0.insert((*lease).clone());
                Ok(())
            }
            Fact::Applied { command: Command::Finish { lease, outcome: Outcome::Built { .. }, .. }, before, .. } => {
                let held = before.is_live(lease);
                if !held || self.0.contains(lease) {
                    Ok(())
                } else {
                    Err(format!("attempt {} at `{}` never ended on {}", lease.attempt, lease.derivation, lease.worker))
                }
            }
            _ => Ok(()),
        }
    }
}
