//! 30: a farm without work neither proposes nor plans, but for a look at its workers' silence now and then.

use super::{Invariant, Look};
use crate::fact::Fact;

/// Looks at silent workers while nothing else happens: each is a plan, and there is room for a few.
const PLANS_MAX: u64 = 4;

#[derive(Default)]
pub(super) struct IdleFarmsRest(Option<u64>);

impl Invariant for IdleFarmsRest {
    fn name(&self) -> &'static str {
        "an idle farm neither proposes nor plans"
    }

    fn see(&mut self, fact: &Fact<'_>, _look: &Look<'_>) -> Result<(), String> {
        match fact {
            Fact::Over => {
                self.0 = Some(0);
                Ok(())
            }
            Fact::Proposed { command, .. } if self.0.is_some() => Err(format!("an idle farm proposes {command:?}")),
            Fact::Planned { .. } => match &mut self.0 {
                Some(plans) => {
                    *plans += 1;
                    if *plans > PLANS_MAX { Err(format!("an idle farm planned {plans} times")) } else { Ok(()) }
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}
