//! State changes, as the live stream tells them.

use kiln_wire::client::{Event, EventKind};
use kiln_wire::{BuildId, StoreDir};
use serde::Serialize;
use utoipa::ToSchema;

use crate::full;

/// `job`: a job is in another state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobEvent {
    /// When.
    pub at: u64,
    /// Which job.
    pub derivation: String,
    /// `ready`, `running`, `built`, `retried`, `failed`, `dependency-failed` or `cancelled`.
    pub state: String,
    /// Live builds that want it.
    pub builds: Vec<u64>,
    /// The worker that has it, of `running`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// The attempt, of `running`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u64>,
    /// Why it failed, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// `build`: a build was submitted, or has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildEvent {
    /// Which.
    pub build: u64,
    /// `submitted`, or how it ended: `built`, `failed`, `cancelled`.
    pub state: String,
}

/// `worker`: a worker came, went, or stands differently with the farm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkerEvent {
    /// Which.
    pub worker: String,
    /// `registered`, `lost`, `working`, `drained`, `resting`, `probation` or `quarantined`.
    pub state: String,
}

/// `leader`: another coordinator leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeaderEvent {
    /// Which.
    pub node: u64,
    /// In which term.
    pub term: u64,
}

/// `many`: more jobs changed at once than are told one by one. Ask anew for what is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ManyEvent {
    /// How many jobs changed that were not told of.
    pub jobs: u64,
}

/// `resync`: some events are lost to this client. Ask anew for everything that is shown; what comes follows on the id of this event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResyncEvent {
    /// Why, in words.
    pub reason: String,
}

/// `line`: a line of a log that is followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogLine {
    /// Where it begins in the log.
    pub offset_bytes: u64,
    /// Its text without the newline, as far as it is text.
    pub text: String,
    /// Whether a newline ends it; what is long, or not whole yet, goes on in the next event.
    pub ends: bool,
}

/// `end`: the attempt whose log is followed has ended, and its last line was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogEnd {
    /// Which attempt.
    pub attempt: u64,
    /// Bytes of its log.
    pub log_bytes: u64,
}

impl JobEvent {
    /// Returns what happened to a job.
    pub fn of(event: &Event, builds: &[BuildId], store_dir: &StoreDir) -> Self {
        let plain = |state: &str| Self {
            at: event.at.0,
            derivation: full(&event.derivation, store_dir),
            state: state.to_owned(),
            builds: builds.iter().map(|build| build.0).collect(),
            worker: None,
            attempt: None,
            message: None,
        };
        match &event.kind {
            EventKind::Ready => plain("ready"),
            EventKind::Started { attempt, worker } => {
                Self { worker: Some(worker.to_string()), attempt: Some(attempt.0), ..plain("running") }
            }
            EventKind::Built { .. } => plain("built"),
            EventKind::Retried { class, message } => Self { message: Some(format!("{class}: {message}")), ..plain("retried") },
            EventKind::Failed { class, message } => Self { message: Some(format!("{class}: {message}")), ..plain("failed") },
            EventKind::DependencyFailed { cause } => {
                Self { message: Some(format!("its input {} failed", full(cause, store_dir))), ..plain("dependency-failed") }
            }
            EventKind::Cancelled => plain("cancelled"),
        }
    }
}
