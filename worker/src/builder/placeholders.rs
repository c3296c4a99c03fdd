//! Puts store paths in the place of the texts that stand for them: the derivation's own outputs, and the outputs of inputs whose
//! paths were not known when the derivation was written.

use std::collections::BTreeMap;

use kiln_nix::derivation::{placeholder, upstream_placeholder};
use kiln_wire::worker::Assignment;
use kiln_wire::{OutputName, StorePath};

/// Placeholders with the paths that they stand for.
pub(super) struct Placeholders {
    paths: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A slash and a SHA-256 in Nix's base 32.
const LENGTH: usize = 1 + 52;

impl Placeholders {
    pub(super) fn new(assignment: &Assignment, outputs: &BTreeMap<OutputName, StorePath>) -> Self {
        let full = |path: &StorePath| assignment.store_dir.join(path).into_bytes();
        let own = outputs.iter().map(|(name, path)| (placeholder(name).into_bytes(), full(path)));
        let inputs = assignment.input_outputs.iter().flat_map(|(input, outputs)| {
            outputs.iter().map(move |(name, path)| (upstream_placeholder(input, name).into_bytes(), full(path)))
        });
        Self { paths: own.chain(inputs).collect() }
    }

    /// Returns `bytes` with every placeholder replaced, in one pass.
    pub(super) fn replace(&self, bytes: &[u8]) -> Vec<u8> {
        let mut replaced = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        while let Some(slash) = rest.iter().position(|byte| *byte == b'/') {
            let (before, from_slash) = rest.split_at(slash);
            replaced.extend_from_slice(before);
            let path = from_slash.get(..LENGTH).and_then(|candidate| self.paths.get(candidate));
            let used = if let Some(path) = path {
                replaced.extend_from_slice(path);
                LENGTH
            } else {
                replaced.push(b'/');
                1
            };
            rest = &from_slash[used..];
        }
        replaced.extend_from_slice(rest);
        replaced
    }
}
