//! Why a job is where it is.

use kiln_wire::StoreDir;
use serde::Serialize;
use utoipa::ToSchema;

use crate::full;
use crate::job::Job;

/// Why a job is where it is, as `kiln explain --json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The job, with the reason in words.
    pub job: Job,
    /// Milliseconds that it is expected to take by itself; 0 once it is built.
    pub expected_ms: u64,
    /// Milliseconds for which it runs; none if it does not.
    #[schema(required)]
    pub running_ms: Option<u64>,
    /// The system that it needs, or `builtin`.
    pub system: String,
    /// The features that it names.
    pub features: Vec<String>,
    /// Cores that its next attempt must have.
    pub cores: u32,
    /// Memory that its next attempt must have; 0 for none in particular.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: u64,
    /// Memory that it is given where there is as much; 0 if nobody knows.
    #[serde(rename = "memoryWishMiB")]
    pub memory_wish_mib: u64,
    /// What the registered workers are to it, best ones first.
    pub workers: Vec<WorkersFor>,
    /// Ready jobs that are more urgent; none if it is not ready.
    #[schema(required)]
    pub ahead: Option<u64>,
    /// Inputs that are not built.
    pub inputs_unbuilt: u64,
    /// The way from the job to what holds it up, nearest first.
    pub behind: Vec<Step>,
    /// Milliseconds that the jobs on the whole of that way are expected to take.
    pub behind_ms: u64,
    /// Jobs that name it as an input.
    pub dependents: u64,
    /// Jobs that cannot be built without it, near and far.
    pub dependents_all: u64,
}

/// A job on the way to what holds another one up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Which.
    pub derivation: String,
    /// Its state in one word, as a job has it.
    pub state: String,
    /// Why it is in that state, where there is something to say.
    pub reason: String,
    /// Milliseconds that it is expected to take.
    pub expected_ms: u64,
}

/// Workers that are the same to a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkersFor {
    /// What they are to it, in words.
    pub what: String,
    /// How many.
    pub count: u64,
    /// The first of them.
    pub first: Vec<String>,
}

impl Explanation {
    /// Returns an explanation as `--json` prints it.
    pub fn of(view: &kiln_wire::Explanation, store_dir: &StoreDir) -> Self {
        let step = |step: &kiln_wire::Step| Step {
            derivation: full(&step.derivation, store_dir),
            state: step.state.clone(),
            reason: step.reason.clone(),
            expected_ms: step.expected_ms,
        };
        let workers = |group: &kiln_wire::WorkersFor| WorkersFor {
            what: group.what.clone(),
            count: group.count,
            first: group.first.iter().map(ToString::to_string).collect(),
        };
        Self {
            job: Job::of(&view.job, store_dir),
            expected_ms: view.expected_ms,
            running_ms: view.running_ms,
            system: view.system.clone(),
            features: view.features.iter().cloned().collect(),
            cores: view.resources.cores,
            memory_mib: view.resources.memory_mib,
            memory_wish_mib: view.memory_wish_mib,
            workers: view.workers.iter().map(workers).collect(),
            ahead: view.ahead,
            inputs_unbuilt: view.inputs_unbuilt,
            behind: view.behind.iter().map(step).collect(),
            behind_ms: view.behind_ms,
            dependents: view.dependents,
            dependents_all: view.dependents_all,
        }
    }
}
