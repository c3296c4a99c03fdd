//! What hostile bytes may do to Kiln's readers: be read, or be refused. Nothing else.
//!
//! Each [`Target`] is a function from bytes to a [`Verdict`] that panics when a property is broken: readers of one format agree, what
//! is accepted is written back as the same bytes, and memory is bounded by the input's length. Two callers run them: the test in
//! `tests/replay.rs`, over every kept input, in each run of the tests; and libFuzzer (the workspace in `libfuzzer/`, started by
//! `ops/prove/fuzz`), which searches for inputs that break a property. Does not make inputs itself.

mod aterm;
mod blob;
mod daemon;
mod evaluated;
mod foreign;
mod frames;
mod hook;
mod launcher;
mod meter;
mod nar;
mod narinfo;
mod realisation;
mod restore;
mod shown;
// Pure, and a part of a crate that brings Raft and HTTP with it.
#[path = "../../../coordinator/src/tokens.rs"]
mod tokens;
mod words;

use std::path::Path;

use tempfile::TempDir;

/// What became of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was read.
    Accepted,
    /// It was refused with an error.
    Refused,
}

impl Verdict {
    fn of<T, E>(outcome: &Result<T, E>) -> Self {
        if outcome.is_ok() { Self::Accepted } else { Self::Refused }
    }
}

/// One reader, or several of one format, with what must hold of them.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: of its corpus, its dictionary and its program.
    pub name: &'static str,
    run: fn(&[u8]) -> Verdict,
    /// Bytes of heap that it may hold at a time whatever the input is.
    heap_bytes: usize,
    /// Bytes of heap that it may hold at a time for each byte of input.
    heap_per_byte: usize,
}

/// Every target.
pub const TARGETS: [Target; 14] = [
    daemon::TARGET,
    hook::TARGET,
    nar::TARGET,
    aterm::TARGET,
    shown::TARGET,
    evaluated::TARGET,
    narinfo::TARGET,
    realisation::TARGET,
    words::TARGET,
    frames::TARGET,
    launcher::TARGET,
    restore::TARGET,
    blob::TARGET,
    foreign::TARGET,
];

impl Target {
    /// Returns the target of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// Runs the target on one input.
    ///
    /// # Panics
    /// If a property is broken, or more memory was held than the input's length allows. That is a finding.
    pub fn check(&self, bytes: &[u8]) -> Verdict {
        let (verdict, held_bytes) = meter::measure(|| (self.run)(bytes));
        let allowed_bytes = self.heap_bytes + bytes.len() * self.heap_per_byte;
        assert!(held_bytes <= allowed_bytes, "{} bytes of input made {held_bytes} bytes of heap, {allowed_bytes} are allowed", bytes.len());
        verdict
    }
}

/// A directory that is gone with its value; in memory where the machine offers that.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary directory can be made")
}
