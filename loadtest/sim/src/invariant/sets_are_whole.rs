//! 4: outputs of one derivation become visible all at once.

use super::{Invariant, Look};
use crate::fact::Fact;

pub(super) struct SetsAreWhole;

impl Invariant for SetsAreWhole {
    fn name(&self) -> &'static str {
        "the whole output set of a derivation is published at once"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        let Fact::Published { derivation, outputs } = fact else { return Ok(()) };
        let declared = look.graph.of(derivation).spec.outputs.len();
        if outputs.len() == declared {
            Ok(())
        } else {
            Err(format!("{} of {declared} outputs of `{derivation}` are published", outputs.len()))
        }
    }
}
