//! 6: a derivation fails for good only by its own doing, or after it failed on as many workers as it may.

use std::collections::BTreeSet;

use kiln_core::{Command, Effect};
use kiln_wire::client::EventKind;
use kiln_wire::limits::INFRASTRUCTURE_WORKERS_MAX;
use kiln_wire::{FailureClass, Order};

use crate::graph::Nature;

use super::{Invariant, Look};
use crate::fact::Fact;

pub(super) struct FailuresAreGenuine;

impl Invariant for FailuresAreGenuine {
    fn name(&self) -> &'static str {
        "a derivation fails for good only by its own doing or on three workers"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        let Fact::Applied { command, effects, farm, .. } = fact else { return Ok(()) };
        for effect in *effects {
            let Effect::Notify { event, .. } = effect else { continue };
            let EventKind::Failed { class, .. } = &event.kind else { continue };
            let nature = look.graph.of(&event.derivation).nature;
            let genuine = match class {
                FailureClass::BuildFailure => nature == Nature::Fails,
                FailureClass::OutOfMemory | FailureClass::LimitExceeded => false,
                FailureClass::Cancelled => matches!(command, Command::Steer { order: Order::Cancel, .. }),
                FailureClass::Infrastructure => {
                    let attempts = farm.job_view(&event.derivation).map(|view| view.attempts).unwrap_or_default();
                    let workers: BTreeSet<_> =
                        attempts.into_iter().filter(|attempt| attempt.failure.is_some()).map(|attempt| attempt.worker).collect();
                    workers.len() >= INFRASTRUCTURE_WORKERS_MAX || farm.job_view(&event.derivation).is_none()
                }
            };
            if !genuine {
                return Err(format!("`{}` fails as {class} and is {nature:?}", event.derivation));
            }
        }
        Ok(())
    }
}
