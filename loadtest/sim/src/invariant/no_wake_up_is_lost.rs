//! 22: whatever makes a job or a worker eligible leads to a plan: a leader at rest has nothing left to place.

use kiln_core::{Limits, plan_without};
use kiln_wire::Timestamp;

use super::{Invariant, Look};
use crate::fact::Fact;

pub(super) struct NoWakeUpIsLost;

impl Invariant for NoWakeUpIsLost {
    fn name(&self) -> &'static str {
        "a leader at rest has nothing left to place"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        let Fact::Rests { farm, away, now } = fact else { return Ok(()) };
        // Clocks that jump make a back-off end before its timer does; a moment's lag is the timer's own.
        if look.options.clocks {
            return Ok(());
        }
        // What would still have been over before a reservation a moment ago may not be by now.
        let at = |now| plan_without(farm, now, &Limits::STANDARD, away).0.placements.into_iter().next();
        match at(Timestamp(now.0.saturating_sub(50))).filter(|_| at(*now).is_some()) {
            Some(placement) => Err(format!("`{}` could run on {}", placement.derivation, placement.worker)),
            None => Ok(()),
        }
    }
}
