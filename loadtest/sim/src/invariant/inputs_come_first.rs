//! 1, 2: a lease is given only when everything that the derivation needs is committed.

use std::collections::BTreeSet;

use kiln_core::{Command, Effect};
use kiln_wire::{DerivedInput, DrvPath};

use super::{Invariant, Look};
use crate::fact::Fact;

#[derive(Default)]
pub(super) struct InputsComeFirst(BTreeSet<DrvPath>);

impl Invariant for InputsComeFirst {
    fn name(&self) -> &'static str {
        "a lease is given only when every input is committed"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        let Fact::Applied { effects, command, farm, .. } = fact else { return Ok(()) };
        if let Command::Finish { lease, .. } = command
            && farm.outputs_of(&lease.derivation).is_some()
        {
            self.0.insert(lease.derivation.clone());
        }
        for effect in *effects {
            let Effect::Dispatch { lease, .. } = effect else { continue };
            let spec = &look.graph.of(&lease.derivation).spec;
            // What another derivation made under the same path serves as well.
            let there = |input: &DerivedInput| {
                let paths = look.graph.of(&input.derivation).spec.outputs.values().flatten();
                self.0.contains(&input.derivation) || paths.into_iter().all(|path| look.store.published(path).is_some())
            };
            if let Some(input) = spec.inputs.iter().find(|input| !there(input)) {
                return Err(format!("`{}` is leased before `{}` is committed", lease.derivation, input.derivation));
            }
        }
        Ok(())
    }
}
