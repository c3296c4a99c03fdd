//! What became of one target.

use std::collections::BTreeMap;

use kiln_wire::{OutputName, StorePath};

use super::encoder::Encoder;
use super::version::Version;

/// What became of one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildResult {
    /// In one word.
    pub status: Status,
    /// Why, if it was not made; for people.
    pub message: String,
    /// How often it was built.
    pub times_built: u64,
    /// When its last build began, in seconds since 1970; 0 if it was not built.
    pub started_at_seconds: u64,
    /// When that ended.
    pub ended_at_seconds: u64,
    /// Its outputs that were asked for.
    pub outputs: BTreeMap<OutputName, StorePath>,
}

/// What became of one target, in one word. Nix has more of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It was built.
    Built = 0,
    /// There was nothing to do.
    AlreadyValid = 2,
    /// Its builder failed, and will.
    PermanentFailure = 3,
    /// It may go well another time.
    TransientFailure = 6,
    /// It ran into a limit of time.
    TimedOut = 8,
    /// Something else.
    MiscFailure = 9,
    /// Something that it needs failed.
    DependencyFailed = 10,
    /// It was built again, and came out differently.
    NotDeterministic = 12,
    /// It is no derivation's output, and nobody has it.
    NoSubstituters = 14,
}

impl BuildResult {
    /// Adds the result to an answer.
    pub fn encode(&self, version: Version, to: &mut Encoder) {
        let is_deterministic_as_far_as_known = 0;
        to.number(self.status as u64).text(&self.message).number(self.times_built).number(is_deterministic_as_far_as_known);
        to.number(self.started_at_seconds).number(self.ended_at_seconds);
        if version >= Version::PROCESSOR_TIME_SINCE {
            // User and system time: not said.
            to.number(0).number(0);
        }
        to.list(&self.outputs, |to, (name, path)| {
            let id = format!("sha256:{UNSAID_HASH}!{name}");
            to.text(&id).text(realisation(&id, path))
        });
    }
}

/// Only names of outputs, paths and digits go in, none of which JSON would escape.
fn realisation(id: &str, path: &StorePath) -> String {
    format!(r#"{{"dependentRealisations":{{}},"id":"{id}","outPath":"{path}","signatures":[]}}"#)
}

/// Stands for the hash of the recipe, by which Nix keeps outputs whose path follows from their content. Of others it reads the name
/// and the path alone.
const UNSAID_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";
