//! 1, 2: a lease is given only when everything that the derivation needs is committed.

use std::collections::BTreeSet;

use kiln_core::Effect;
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
        let Fact::Applied { effects, .. } = fact else { return Ok(()) };
        for effect in *effects {
            match effect {
                Effect::Publish { derivation, .. } => {
                    self.0.insert(derivation.clone());
                }
                Effect::Dispatch { lease, .. } => {
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
                _ => {}
            }
        }
        Ok(())
    }
}
