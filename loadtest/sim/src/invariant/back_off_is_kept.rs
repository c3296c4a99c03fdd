//! 7: how often a job failed and until when it waits outlives every leader.

use std::collections::BTreeMap;

use kiln_core::{Command, Effect};
use kiln_wire::client::EventKind;
use kiln_wire::limits::{RETRY_BACKOFF_MS_MAX, RETRY_BACKOFF_MS_MIN};
use kiln_wire::{DrvPath, FailureClass, Order, Subject};

use super::{Invariant, Look};
use crate::fact::Fact;
use crate::node::proposed_us;

#[derive(Default)]
pub(super) struct BackOffIsKept(BTreeMap<DrvPath, (u32, u64)>);

impl Invariant for BackOffIsKept {
    fn name(&self) -> &'static str {
        "a job waits for its back-off, whoever leads"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        let Fact::Applied { command, before, effects, .. } = fact else { return Ok(()) };
        // Where clocks jump the stamps decide, which the farm checks itself.
        if look.options.clocks {
            return Ok(());
        }
        for effect in *effects {
            match effect {
                Effect::Notify { event, .. } => {
                    if let EventKind::Retried { class: FailureClass::Infrastructure, .. } = event.kind {
                        let (count, until) = self.0.entry(event.derivation.clone()).or_default();
                        *count += 1;
                        let waits_ms = (RETRY_BACKOFF_MS_MIN << (*count - 1).min(16)).min(RETRY_BACKOFF_MS_MAX);
                        *until = proposed_us(command) + waits_ms * 900;
                    }
                }
                Effect::Dispatch { lease, .. } => match self.0.get(&lease.derivation) {
                    Some((count, until)) if look.now_us < *until => {
                        return Err(format!(
                            "`{}` failed {count} times and is leased {} ms early",
                            lease.derivation,
                            (until - look.now_us) / 1000
                        ));
                    }
                    _ => {}
                },
                _ => {}
            }
        }
        // A new submission gives what failed for good another chance, from the start.
        if let Command::Submit { .. } = command {
            self.0.retain(|derivation, _| before.job_view(derivation).is_some_and(|view| view.state != "failed"));
        }
        // So does a restart, to what its builds hold.
        if let Command::Steer { subject, order: Order::Restart, .. } = command {
            let builds_of = |derivation: &DrvPath| before.job_view(derivation).map(|view| view.builds).unwrap_or_default();
            let concerned = match subject {
                Subject::Build(build) => vec![*build],
                Subject::Job(derivation) => builds_of(derivation),
            };
            self.0.retain(|derivation, _| builds_of(derivation).iter().all(|build| !concerned.contains(build)));
        }
        Ok(())
    }
}
