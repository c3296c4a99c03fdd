//! 16: a sign of life is no reason to plan.

use kiln_wire::worker::FromWorker;

use super::{Invariant, Look};
use crate::fact::Fact;

#[derive(Default)]
pub(super) struct HeartbeatsPlanNothing(Option<u64>);

impl Invariant for HeartbeatsPlanNothing {
    fn name(&self) -> &'static str {
        "a heartbeat leads to no plan"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        match fact {
            Fact::Heard { message, .. } => {
                self.0 = matches!(message, FromWorker::Heartbeat).then_some(look.now_us);
                Ok(())
            }
            Fact::AppliedAt { .. } => {
                self.0 = None;
                Ok(())
            }
            Fact::Planned { .. } if self.0 == Some(look.now_us) => Err("a plan follows a heartbeat".to_owned()),
            _ => Ok(()),
        }
    }
}
