//! 2: what an attempt needs is where its worker fetches from; a worker that looks for it finds it.

use super::{Invariant, Look};
use crate::fact::Fact;

pub(super) struct InputsCanBeFetched;

impl Invariant for InputsCanBeFetched {
    fn name(&self) -> &'static str {
        "a worker finds every input of an attempt in the store"
    }

    fn see(&mut self, fact: &Fact<'_>, _look: &Look<'_>) -> Result<(), String> {
        match fact {
            Fact::Fetched { worker, assignment, there: false } => {
                Err(format!("worker {worker} lacks an input of `{}`", assignment.lease.derivation))
            }
            _ => Ok(()),
        }
    }
}
