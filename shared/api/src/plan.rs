//! Why ready jobs wait.

use serde::Serialize;
use utoipa::ToSchema;

/// Why ready jobs wait at this moment, all of them counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// By reason, most jobs first; at most 256.
    pub waiting: Vec<WaitingJobs>,
    /// Ready jobs, whatever they wait for.
    pub waiting_count: u64,
    /// Jobs that wait a while before they are tried again, among them.
    pub delayed_count: u64,
}

/// Ready jobs that wait for the same reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WaitingJobs {
    /// Why, in words.
    pub reason: String,
    /// How many.
    pub count: u64,
    /// No registered worker could ever run them.
    pub unplaceable: bool,
    /// The systems that they need.
    pub systems: Vec<String>,
    /// Some of them, most urgent first; of a tenant's token, its own.
    pub first: Vec<String>,
}
