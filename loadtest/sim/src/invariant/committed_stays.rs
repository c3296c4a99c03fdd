//! Of the log: what was committed once is what every later leader finds at that position.

use super::{Invariant, Look};
use crate::fact::Fact;

pub(super) struct CommittedStays;

impl Invariant for CommittedStays {
    fn name(&self) -> &'static str {
        "a committed entry stays what it is"
    }

    fn see(&mut self, fact: &Fact<'_>, _look: &Look<'_>) -> Result<(), String> {
        match fact {
            Fact::Committed { entry, truth: Some(truth) } if truth != entry => Err(format!(
                "entry {} was committed in term {} and is another in term {}",
                entry.index, truth.leader.term, entry.leader.term
            )),
            _ => Ok(()),
        }
    }
}
