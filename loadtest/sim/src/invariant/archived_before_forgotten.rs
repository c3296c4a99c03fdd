//! Of builds: one leaves the farm only when the archive holds it.

use kiln_core::Command;

use super::{Invariant, Look};
use crate::fact::Fact;

pub(super) struct ArchivedBeforeForgotten;

impl Invariant for ArchivedBeforeForgotten {
    fn name(&self) -> &'static str {
        "a build leaves the farm only when the archive holds it"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        let Fact::Applied { command: Command::Retire { build, .. }, farm, .. } = fact else { return Ok(()) };
        if farm.builds().any(|live| live == *build) || look.store.holds_build(*build) {
            Ok(())
        } else {
            Err(format!("build {build} is gone and not archived"))
        }
    }
}
