//! Jobs, their attempts and their logs.

use kiln_wire::{BuiltOutput, StoreDir, client};
use serde::Serialize;
use utoipa::ToSchema;

use crate::full;

/// One job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    /// What is built.
    pub derivation: String,
    /// `blocked`, `ready`, `running`, `built`, `failed`, `dependency-failed` or `cancelled`.
    pub state: String,
    /// Why it is in that state, where there is something to say.
    pub reason: String,
    /// Builds that want it.
    pub builds: Vec<u64>,
    /// Expected milliseconds from its start to the end of the longest chain that needs it.
    pub upward_rank_ms: u64,
    /// Its tries, oldest first.
    pub attempts: Vec<Attempt>,
    /// The attributes that it is as a root of those builds.
    pub attributes: Vec<String>,
}

/// One try at a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Its number, which only grows.
    pub attempt: u64,
    /// Where.
    pub worker: String,
    /// Since when.
    pub started_at: u64,
    /// Until when; none while it runs.
    #[schema(required)]
    pub ended_at: Option<u64>,
    /// What kind of failure it ended with, if it failed.
    #[schema(required)]
    pub failure_class: Option<String>,
    /// How it failed, in words.
    #[schema(required)]
    pub failure: Option<String>,
    /// What it took, if its worker said so.
    #[schema(required)]
    pub usage: Option<Usage>,
}

/// What an attempt took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Milliseconds from the start of its builder to its end.
    pub wall_ms: u64,
    /// Milliseconds of processor time.
    pub cpu_ms: u64,
    /// Milliseconds for which it was kept from a processor that it wanted.
    #[schema(required)]
    pub cpu_throttled_ms: Option<u64>,
    /// Highest memory use.
    pub memory_peak_bytes: u64,
    /// Bytes that it wrote to disk.
    #[schema(required)]
    pub disk_write_bytes: Option<u64>,
    /// Bytes of its log.
    pub log_bytes: u64,
}

/// One job by itself: what the farm keeps of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobDetail {
    /// The job.
    #[serde(flatten)]
    pub job: Job,
    /// Its outputs; those without a path are not built.
    pub outputs: Vec<JobOutput>,
    /// The jobs of the farm that it names as inputs, at most 1000.
    pub inputs: Vec<String>,
    /// How many there are.
    pub inputs_count: u64,
    /// The derivation that is built in its place; none if that is its own.
    #[schema(required)]
    pub resolved: Option<String>,
}

/// One output of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobOutput {
    /// Its name: `out`, `dev`.
    pub name: String,
    /// Its path; none where only the build tells it.
    #[schema(required)]
    pub path: Option<String>,
    /// Bytes of its archive (NAR); none before it is built.
    #[schema(required)]
    pub nar_bytes: Option<u64>,
}

impl Job {
    /// Returns a job as `--json` prints it.
    pub fn of(view: &client::JobView, store_dir: &StoreDir) -> Self {
        Self {
            derivation: full(&view.derivation, store_dir),
            state: view.state.clone(),
            reason: view.reason.clone(),
            builds: view.builds.iter().map(|build| build.0).collect(),
            upward_rank_ms: view.upward_rank_ms,
            attempts: view.attempts.iter().map(Attempt::of).collect(),
            attributes: view.attributes.clone(),
        }
    }
}

impl Attempt {
    /// Returns an attempt as `--json` prints it.
    pub fn of(view: &client::AttemptView) -> Self {
        Self {
            attempt: view.attempt.0,
            worker: view.worker.to_string(),
            started_at: view.started_at.0,
            ended_at: view.ended_at.map(|at| at.0),
            failure_class: view.failure.as_ref().map(|(class, _)| class.to_string()),
            failure: view.failure.as_ref().map(|(_, message)| message.clone()),
            usage: view.usage.as_ref().map(Usage::of),
        }
    }
}

impl Usage {
    fn of(usage: &kiln_wire::Usage) -> Self {
        Self {
            wall_ms: usage.wall_ms,
            cpu_ms: usage.cpu_ms,
            cpu_throttled_ms: usage.cpu_throttled_ms,
            memory_peak_bytes: usage.memory_peak_bytes,
            disk_write_bytes: usage.disk_write_bytes,
            log_bytes: usage.log_bytes,
        }
    }
}

impl JobOutput {
    /// Returns an output that is built.
    pub fn built(output: &BuiltOutput, store_dir: &StoreDir) -> Self {
        Self { name: output.name.to_string(), path: Some(store_dir.join(&output.info.path)), nar_bytes: Some(output.info.nar_size_bytes) }
    }
}
