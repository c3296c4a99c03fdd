//! 23: the end of an old session never takes away its successor.

use super::{Invariant, Look};
use crate::fact::Fact;

pub(super) struct SessionsEndAlone;

impl Invariant for SessionsEndAlone {
    fn name(&self) -> &'static str {
        "an old session's end leaves its successor alone"
    }

    fn see(&mut self, fact: &Fact<'_>, _look: &Look<'_>) -> Result<(), String> {
        match fact {
            Fact::SessionEnds { worker, ended, live_before, live_after } if **live_before != Some(*ended) && live_after != live_before => {
                Err(format!("the end of session {ended} of worker {worker} closed session {live_before:?}"))
            }
            _ => Ok(()),
        }
    }
}
