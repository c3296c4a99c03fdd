//! 11, 28: every ready job is in the plan, or in the report with a reason.

use kiln_core::Command;

use super::{Invariant, Look};
use crate::fact::Fact;

pub(super) struct ReadyJobsWaitForAReason;

impl Invariant for ReadyJobsWaitForAReason {
    fn name(&self) -> &'static str {
        "every ready job is planned or waits for a reason"
    }

    fn see(&mut self, fact: &Fact<'_>, _look: &Look<'_>) -> Result<(), String> {
        let Fact::Planned { placements, report, farm } = fact else { return Ok(()) };

        let placed = placements.iter().filter(|command| matches!(command, Command::Assign { .. })).count();
        let told = u64::try_from(placed).unwrap_or(u64::MAX) + report.waiting.iter().map(|waiting| waiting.count).sum::<u64>();
        // A ready job that nobody wants started is in another state.
        let ready = farm.jobs().filter(|job| job.state == "ready").count();
        let expected = u64::try_from(ready).unwrap_or(u64::MAX);
        if told == expected { Ok(()) } else { Err(format!("{told} of {expected} ready jobs are told of")) }
    }
}
