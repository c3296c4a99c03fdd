//! 20: a feature that a machine must have keeps a job off every other; one that is a hint does not.

use super::{Invariant, Look};
use crate::fact::Fact;

pub(super) struct HardFeaturesGate;

impl Invariant for HardFeaturesGate {
    fn name(&self) -> &'static str {
        "a job runs only where its features are"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        let Fact::Starts { worker, assignment, offer, .. } = fact else { return Ok(()) };
        let asked = &look.graph.of(&assignment.lease.derivation).spec.required_features;
        match asked.iter().find(|feature| *feature != "big-parallel" && !offer.features.contains(*feature)) {
            Some(feature) => Err(format!("worker {worker} starts `{}` without `{feature}`", assignment.lease.derivation)),
            None => Ok(()),
        }
    }
}
