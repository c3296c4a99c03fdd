//! 3, 24: an attempt's number is never given twice, whatever is lost and whoever leads.

use std::collections::BTreeSet;

use kiln_core::Effect;
use kiln_wire::AttemptId;

use super::{Invariant, Look};
use crate::fact::Fact;

#[derive(Default)]
pub(super) struct AttemptsAreUnique(BTreeSet<AttemptId>);

impl Invariant for AttemptsAreUnique {
    fn name(&self) -> &'static str {
        "an attempt's number is given once"
    }

    fn see(&mut self, fact: &Fact<'_>, _look: &Look<'_>) -> Result<(), String> {
        let Fact::Applied { effects, .. } = fact else { return Ok(()) };
        for effect in *effects {
            if let Effect::Dispatch { lease, .. } = effect
                && !self.0.insert(lease.attempt)
            {
                return Err(format!("attempt {} is given again, for `{}`", lease.attempt, lease.derivation));
            }
        }
        Ok(())
    }
}
