//! 19: a running job that nobody wants any more goes on for the period of grace.

use std::collections::BTreeMap;

use kiln_core::{Command, Effect};
use kiln_wire::limits::CANCEL_GRACE_MS;
use kiln_wire::{BuildId, Order};

use super::{Invariant, Look};
use crate::fact::Fact;
use crate::node::proposed_us;

#[derive(Default)]
pub(super) struct GraceIsGiven(BTreeMap<BuildId, u64>);

impl Invariant for GraceIsGiven {
    fn name(&self) -> &'static str {
        "an unwanted job runs on for its period of grace"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        let Fact::Applied { command, effects, before, .. } = fact else { return Ok(()) };
        // Where clocks jump the stamps decide, which the farm checks itself.
        if look.options.clocks {
            return Ok(());
        }
        if let Command::Cancel { build, .. } = command {
            self.0.entry(*build).or_insert(proposed_us(command));
        }
        // What makes room, or is outrun by another attempt, is no cancellation, and a job that is cancelled itself has failed: nobody's change of
        // mind saves it.
        if matches!(command, Command::Preempt { .. } | Command::Finish { .. } | Command::Steer { order: Order::Cancel, .. }) {
            return Ok(());
        }
        for effect in *effects {
            let Effect::Revoke(lease) = effect else { continue };
            let builds = before.job_view(&lease.derivation).map(|view| view.builds).unwrap_or_default();
            let since = builds.iter().filter_map(|build| self.0.get(build)).max().map_or(u64::MAX, |at| look.now_us - at);
            if since < CANCEL_GRACE_MS * 900 {
                return Err(format!("attempt {} at `{}` is stopped {since} us after the cancellation", lease.attempt, lease.derivation));
            }
        }
        Ok(())
    }
}
