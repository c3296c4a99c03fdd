//! 14: a stored NAR is written once, and what is published describes the stored bytes.

use kiln_wire::PathInfo;

use super::{Invariant, Look};
use crate::fact::Fact;

pub(super) struct BlobsAreWhatTheySay;

impl Invariant for BlobsAreWhatTheySay {
    fn name(&self) -> &'static str {
        "a published narinfo describes the stored bytes"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        let Fact::Published { outputs, .. } = fact else { return Ok(()) };
        // That they are there at all is what the next worker finds out.
        let differs = |info: &&PathInfo| look.store.holds(&info.nar_hash).is_some_and(|stored| *stored != info.blob);
        match outputs.iter().find(differs) {
            Some(info) => Err(format!("`{}` is published with the facts of other bytes than the stored ones", info.path)),
            None => Ok(()),
        }
    }
}
