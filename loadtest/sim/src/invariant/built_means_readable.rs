//! 9, 2: who is told that a build is built can read every output that it wanted: those of its own derivations, whoever made them.

use kiln_wire::client::BuildState;

use crate::event::Reply;

use super::{Invariant, Look};
use crate::fact::Fact;

pub(super) struct BuiltMeansReadable;

impl Invariant for BuiltMeansReadable {
    fn name(&self) -> &'static str {
        "a build that is said to be built has every wanted output published"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        let Fact::Answered { client, reply: Reply::Ended(record) } = fact else { return Ok(()) };
        if record.state != BuildState::Built {
            return Ok(());
        }
        for place in &client.wants {
            for path in look.graph.recipes[*place].spec.outputs.values().flatten() {
                if look.store.published(path).is_none() {
                    return Err(format!("build {} is built and `{path}` is not published", record.build));
                }
            }
        }
        Ok(())
    }
}
