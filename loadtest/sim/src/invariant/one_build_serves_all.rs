//! 25: however many clients ask for a derivation, one worker at a time holds its lease and builds it.

use std::collections::BTreeMap;

use kiln_wire::{Lease, WorkerId};

use super::{Invariant, Look};
use crate::fact::Fact;

#[derive(Default)]
pub(super) struct OneBuildServesAll(BTreeMap<Lease, WorkerId>);

impl Invariant for OneBuildServesAll {
    fn name(&self) -> &'static str {
        "no second worker starts what another holds the lease of"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        let Fact::Starts { worker, assignment, .. } = fact else { return Ok(()) };
        let lease = &assignment.lease;
        if !look.farm.is_live(lease) {
            return Ok(());
        }
        // A second attempt has a lease of its own, and there is no third.
        let leases = look.farm.live_leases(&lease.derivation).len();
        match self.0.insert(lease.clone(), (*worker).clone()) {
            Some(other) if other != **worker => {
                Err(format!("`{}` is started by {worker} and runs under the same lease on {other}", lease.derivation))
            }
            _ if leases > 2 => Err(format!("`{}` has {leases} leases", lease.derivation)),
            Some(_) | None => Ok(()),
        }
    }
}
