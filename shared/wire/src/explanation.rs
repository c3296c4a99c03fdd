//! Why a job is where it is: what `kiln explain` tells people.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::client::JobView;
use crate::{DrvPath, Resources, WorkerId};

/// Why one job is where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The job, with the reason in words.
    pub job: JobView,
    /// Milliseconds that it is expected to take by itself; 0 once it is built.
    pub expected_ms: u64,
    /// Milliseconds for which it runs; none if it does not.
    pub running_ms: Option<u64>,
    /// The platform that it needs, or `builtin`.
    pub system: String,
    /// The features that it names.
    pub features: BTreeSet<String>,
    /// What its next attempt must have of a worker; memory 0 is a job that asks for none in particular.
    pub resources: Resources,
    /// Memory in MiB that it is given where there is as much, because builds of its like took it; 0 if nobody knows.
    pub memory_wish_mib: u64,
    /// What the registered workers are to it, best ones first.
    pub workers: Vec<WorkersFor>,
    /// Ready jobs that are more urgent; none if it is not ready.
    pub ahead: Option<u64>,
    /// Inputs that are not built.
    pub inputs_unbuilt: u64,
    /// The way from the job to what holds it up: of each job's inputs the one that is expected to be built last. At most
    /// `EXPLAINED_STEPS_MAX`, nearest first; empty if its inputs are built.
    pub behind: Vec<Step>,
    /// Milliseconds that the jobs on the whole of that way are expected to take, one after the other.
    pub behind_ms: u64,
    /// Jobs that name it as an input.
    pub dependents: u64,
    /// Jobs that cannot be built without it, near and far.
    pub dependents_all: u64,
}

/// A job on the way to what holds another one up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which.
    pub derivation: DrvPath,
    /// Its state in one word, as `JobView` has it.
    pub state: String,
    /// Why it is in that state, where there is something to say.
    pub reason: String,
    /// Milliseconds that it is expected to take.
    pub expected_ms: u64,
}

/// Workers that are the same to a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkersFor {
    /// What they are to it, in words: `have room`, `are full`, `lack kvm`.
    pub what: String,
    /// How many.
    pub count: u64,
    /// The first of them, at most `EXPLAINED_WORKERS_MAX`.
    pub first: Vec<WorkerId>,
}
