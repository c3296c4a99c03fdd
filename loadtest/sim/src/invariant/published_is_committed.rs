//! 4, 2: no narinfo before its outputs are committed, and none with other facts than the committed ones.

use std::collections::BTreeMap;

use kiln_core::Command;
use kiln_wire::{DrvPath, PathInfo};

use super::{Invariant, Look};
use crate::fact::Fact;

#[derive(Default)]
pub(super) struct PublishedIsCommitted(BTreeMap<DrvPath, Vec<PathInfo>>);

impl Invariant for PublishedIsCommitted {
    fn name(&self) -> &'static str {
        "what is published is what was committed"
    }

    fn see(&mut self, fact: &Fact<'_>, _look: &Look<'_>) -> Result<(), String> {
        match fact {
            Fact::Applied { command: Command::Finish { lease, .. }, farm, .. } => {
                if let Some(outputs) = farm.outputs_of(&lease.derivation) {
                    let infos = outputs.iter().map(|output| output.info.clone()).collect();
                    self.0.insert(lease.derivation.clone(), infos);
                }
                Ok(())
            }
            Fact::Published { derivation, outputs } => match self.0.get(*derivation) {
                None => Err(format!("`{derivation}` is published and not committed")),
                Some(committed) => {
                    let known = |info: &PathInfo| committed.iter().any(|other| other == info);
                    if outputs.iter().all(known) {
                        Ok(())
                    } else {
                        Err(format!("`{derivation}` is published with facts that were not committed"))
                    }
                }
            },
            _ => Ok(()),
        }
    }
}
