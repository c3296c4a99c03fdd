//! 29: a coordinator's death, partition, clock or disk is charged to no job and repeats no work.

use std::collections::BTreeMap;

use kiln_core::{Command, Effect};
use kiln_wire::client::EventKind;
use kiln_wire::{DrvPath, FailureClass};

use crate::graph::Nature;

use super::{Invariant, Look};
use crate::fact::Fact;

#[derive(Default)]
pub(super) struct FailoversCostNothing(BTreeMap<DrvPath, i64>);

impl Invariant for FailoversCostNothing {
    fn name(&self) -> &'static str {
        "trouble among coordinators repeats no work"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        if look.options.sound_work_may_fail() || look.options.cancels {
            return Ok(());
        }
        match fact {
            Fact::Applied { command: Command::Preempt { lease, .. }, .. } => {
                // It runs again because something more urgent came.
                self.0.remove(&lease.derivation);
                Ok(())
            }
            Fact::Applied { command: Command::Copy { placement, .. }, effects, .. } => {
                // It may run in two places, on purpose.
                if effects.iter().any(|effect| matches!(effect, Effect::Dispatch { .. })) {
                    *self.0.entry(placement.derivation.clone()).or_default() -= 1;
                }
                Ok(())
            }
            Fact::Applied { effects, .. } => {
                let charged = |effect: &Effect| match effect {
                    Effect::Notify { event, .. } => match &event.kind {
                        EventKind::Retried { class: FailureClass::Infrastructure, message } => {
                            Some(format!("`{}`: {message}", event.derivation))
                        }
                        _ => None,
                    },
                    _ => None,
                };
                effects.iter().find_map(charged).map_or(Ok(()), Err)
            }
            Fact::Starts { assignment, .. } => {
                let derivation = &assignment.lease.derivation;
                let count = self.0.entry(derivation.clone()).or_default();
                *count += 1;
                // What runs out of memory is tried again, and what fails is when another build asks for it.
                let recipe = look.graph.of(derivation);
                // A submission that is made again still brings what its first try staged, although that was published meanwhile: waste.
                let published = recipe.spec.outputs.values().flatten().all(|path| look.store.published(path).is_some());
                let once = matches!(recipe.nature, Nature::Builds | Nature::Varies) && !published;
                if once && *count > 1 {
                    Err(format!("`{derivation}` is started again as attempt {}", assignment.lease.attempt))
                } else {
                    Ok(())
                }
            }
            _ => Ok(()),
        }
    }
}
