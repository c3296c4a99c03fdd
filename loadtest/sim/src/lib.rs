//! A whole farm from a seed: the pure cores of coordinators and workers (`kiln_core`, `kiln_agent`) with their real commands and messages
//! on one event heap, among faults.
//!
//! Goals: whatever a seed draws, every invariant holds after every step, and once faults are over everything ends; a failing run is
//! named by its seed; the same seed gives the same run to the byte. Non-goals: openraft, quinn, disks and clocks as they are: the log
//! (`log`, `election`, `replication`), network, store and disks are models. Does not copy decisions of the product: it calls them.

pub mod bench;
mod bug;
mod client;
mod copying;
mod dice;
mod election;
mod event;
mod fact;
mod faults;
mod graph;
mod host;
mod invariant;
mod leading;
mod log;
mod net;
mod node;
mod options;
mod planted;
mod replication;
mod session;
mod steering;
mod store;
mod world;

pub use bug::Bug;
pub use options::Options;

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// From which seed.
    pub seed: u64,
    /// The invariant that broke, if one did.
    pub broken: Option<Broken>,
    /// Events that happened.
    pub events: u64,
    /// Simulated time, in microseconds.
    pub lasted_us: u64,
    /// Folds every event: runs with equal digests were the same.
    pub digest: u64,
    /// Every event in words, if that was asked for.
    pub trace: String,
}

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// What must hold.
    pub invariant: &'static str,
    /// Where it does not.
    pub subject: String,
    /// When, in microseconds of the run.
    pub at_us: u64,
}

/// Runs a seed, with a planted bug if one is given; `traced` keeps every event in words.
pub fn run(seed: u64, bug: Option<Bug>, traced: bool) -> Outcome {
    let mut world = world::World::new(seed, bug, traced);
    world.run();
    Outcome {
        seed,
        broken: world.broken.into_inner(),
        events: world.events,
        lasted_us: world.now,
        digest: world.digest,
        trace: world.trace.into_inner().unwrap_or_default(),
    }
}
