//! The farm's own invariants (`kiln_core`'s checker): indexes follow from facts, leases fit, references name jobs, and more (1, 5, 21).

use super::{Invariant, Look};
use crate::fact::Fact;

/// The whole check costs as much as many entries: it is made once in so many.
const EVERY: u64 = 16;

#[derive(Default)]
pub(super) struct FarmIsSound(u64);

impl Invariant for FarmIsSound {
    fn name(&self) -> &'static str {
        "the farm's state is sound"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        self.0 += u64::from(matches!(fact, Fact::Applied { .. }));
        let due = match fact {
            Fact::Applied { .. } => self.0.is_multiple_of(EVERY),
            Fact::Over => true,
            _ => false,
        };
        if due { look.farm.check_invariants().map_err(|violation| violation.to_string()) } else { Ok(()) }
    }
}
