//! 25: however many clients ask for a derivation, one worker at a time holds its lease and builds it.

use std::collections::BTreeMap;

use kiln_core::Effect;
use kiln_wire::{DrvPath, WorkerId};

use super::{Invariant, Look};
use crate::fact::Fact;

#[derive(Default)]
pub(super) struct OneBuildServesAll(BTreeMap<DrvPath, WorkerId>);

impl Invariant for OneBuildServesAll {
    fn name(&self) -> &'static str {
        "no second worker starts what another holds the lease of"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        match fact {
            Fact::Starts { worker, assignment, .. } => {
                let lease = &assignment.lease;
                let live = look.farm.live_lease(&lease.derivation);
                if live.as_ref() == Some(lease)
                    && let Some(other) = self.0.get(&lease.derivation)
                    && other != *worker
                {
                    return Err(format!("`{}` is started by {worker} and runs under the same lease on {other}", lease.derivation));
                }
                if live.as_ref() == Some(lease) {
                    self.0.insert(lease.derivation.clone(), (*worker).clone());
                }
                Ok(())
            }
            Fact::Applied { effects, .. } => {
                for effect in *effects {
                    if let Effect::Dispatch { lease, .. } = effect {
                        self.0.remove(&lease.derivation);
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
