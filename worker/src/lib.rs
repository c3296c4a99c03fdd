//! A Kiln worker: fetches the inputs of an attempt, runs its builder in a sandbox, and imports what it made.

pub mod cgroup;
pub mod sandbox;
