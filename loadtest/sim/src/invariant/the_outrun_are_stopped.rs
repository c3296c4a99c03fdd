//! What another attempt outran is told to stop: it does not run on until it ends by itself.

use std::collections::BTreeMap;

use kiln_core::{Copied, Effect};
use kiln_wire::Lease;
use kiln_wire::worker::ToWorker;

use super::{Invariant, Look};
use crate::fact::Fact;

/// A leader needs so long at most, in microseconds, to hear that an entry is committed and to tell a worker.
const TOLD_US_MAX: u64 = 500_000;

#[derive(Default)]
pub(super) struct TheOutrunAreStopped {
    /// Attempts that were outrun and have not ended, and since when.
    outrun: BTreeMap<Lease, u64>,
}

impl Invariant for TheOutrunAreStopped {
    fn name(&self) -> &'static str {
        "what another attempt outran is told to stop"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        let options = look.options;
        // A worker that has another leader next hears from that one what goes on.
        let is_calm = !options.coordinators_fail && !options.coordinators_part && !options.members && !options.disks;
        if !is_calm || options.workers_fail || options.workers_part || options.loss > 0 {
            return Ok(());
        }
        match fact {
            Fact::Applied { effects, before, farm, .. } => {
                let won = effects.iter().filter_map(|effect| match effect {
                    Effect::Copied { derivation, copied: Copied::Won { attempt, .. } } => Some((derivation, attempt)),
                    _ => None,
                });
                for (derivation, winner) in won {
                    for lease in before.live_leases(derivation) {
                        if farm.is_live(&lease) {
                            return Err(format!("attempt {} at `{derivation}` holds a lease beside what is built", lease.attempt));
                        }
                        if lease.attempt != *winner {
                            self.outrun.insert(lease, look.now_us);
                        }
                    }
                }
                Ok(())
            }
            Fact::Told { message: ToWorker::Revoke { lease, .. } } => {
                self.outrun.remove(lease);
                Ok(())
            }
            Fact::Ended { lease } => match self.outrun.remove(*lease) {
                Some(since_us) if look.now_us - since_us > TOLD_US_MAX => Err(format!(
                    "attempt {} at `{}` was outrun {} ms ago, ends, and was never told to stop",
                    lease.attempt,
                    lease.derivation,
                    (look.now_us - since_us) / 1000
                )),
                Some(_) | None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}
