//! 18, 6: a build fails only if something that it needs does; one attempt's bad luck is nobody's failure.

use kiln_wire::client::BuildState;

use crate::event::Reply;

use super::{Invariant, Look};
use crate::fact::Fact;

pub(super) struct BuildsEndAsTheyMust;

impl Invariant for BuildsEndAsTheyMust {
    fn name(&self) -> &'static str {
        "a build ends as its derivations do"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        let Fact::Answered { client, reply: Reply::Ended(record) } = fact else { return Ok(()) };
        let sound = client.wants.iter().all(|place| look.graph.can_build(*place));
        match record.state {
            BuildState::Active => Err(format!("build {} is archived and goes on", record.build)),
            BuildState::Cancelled if client.cancelled => Ok(()),
            BuildState::Cancelled => Err(format!("build {} was cancelled by nobody", record.build)),
            // One that cannot be built serves all the same where another recipe made its output path.
            BuildState::Built if sound || look.graph.has_twins() => Ok(()),
            BuildState::Built => Err(format!("build {} is built, and something that it needs cannot be", record.build)),
            BuildState::Failed if record.failures.is_empty() => Err(format!("build {} failed without a failure", record.build)),
            BuildState::Failed if sound && !look.options.sound_work_may_fail() && !look.options.jobs_are_cancelled() => {
                Err(format!("build {} failed and is sound", record.build))
            }
            BuildState::Failed => Ok(()),
        }
    }
}
