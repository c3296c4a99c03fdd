//! 19: a worker is told to stop only what holds no lease any more: nobody wants it, and the period of grace is over.

use kiln_wire::worker::ToWorker;

use super::{Invariant, Look};
use crate::fact::Fact;

pub(super) struct OnlyDeadLeasesAreStopped;

impl Invariant for OnlyDeadLeasesAreStopped {
    fn name(&self) -> &'static str {
        "a worker is told to stop only what holds no lease"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        let Fact::Told { message: ToWorker::Revoke { lease, .. } } = fact else { return Ok(()) };
        if look.farm.is_live(lease) {
            return Err(format!(
                "worker {} is told to stop attempt {} at `{}`, which holds its lease",
                lease.worker, lease.attempt, lease.derivation
            ));
        }
        Ok(())
    }
}
