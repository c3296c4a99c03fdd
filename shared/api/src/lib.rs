//! The JSON of a farm: what the HTTP API answers and what `--json` prints, as types.
//!
//! Names are camelCase and stable; paths are full store paths; times are milliseconds since the Unix epoch; what has a unit says so in
//! its name. Pure: no clock, no files, no network. Does not decide who sees what (`kiln-coordinator` does).

mod build;
mod cluster;
mod duration;
mod error;
mod event;
mod explanation;
mod farm;
mod job;
mod page;
mod path;
mod plan;
mod share;
mod worker;

pub use build::{Build, BuildState, BuildSummary, JobCounts};
pub use cluster::{Cluster, Coordinator};
pub use duration::Package;
pub use error::{Error, ErrorBody, ErrorCode};
pub use event::{BuildEvent, JobEvent, LeaderEvent, LogEnd, LogLine, ManyEvent, ResyncEvent, WorkerEvent};
pub use explanation::{Explanation, Step, WorkersFor};
pub use farm::{Done, Farm, FarmSummary, Retention, Viewer, Webhook};
pub use job::{Attempt, Job, JobDetail, JobOutput, Usage};
pub use page::{Builds, Jobs, Packages, Shares, Workers};
pub use path::PathInfo;
pub use plan::{Plan, WaitingJobs};
pub use share::Share;
pub use worker::{Ailing, Worker};

use kiln_wire::{DrvPath, StoreDir};

/// Returns the full path of a derivation.
fn full(derivation: &DrvPath, store_dir: &StoreDir) -> String {
    store_dir.join(derivation.as_path())
}

#[cfg(test)]
mod tests {
    use kiln_wire::Timestamp;
    use kiln_wire::client::{BuildState, BuildView, JobCounts};

    use super::*;

    #[test]
    fn a_build_has_the_names_that_json_had_from_the_beginning() {
        let view = BuildView {
            build: kiln_wire::BuildId(7),
            name: "all".to_owned(),
            submitted_at: Timestamp(5),
            state: BuildState::Active,
            counts: JobCounts { ready: 1, ..JobCounts::default() },
            remaining_ms: None,
            outputs: Default::default(),
            failures: Vec::new(),
            running: Vec::new(),
            waiting: Default::default(),
            evaluated: Default::default(),
        };
        let shown = serde_json::to_value(Build::of(&view, &StoreDir::default())).expect("JSON");
        let counts = serde_json::json!({ "blocked": 0, "ready": 1, "running": 0, "built": 0, "failed": 0 });
        let expected = serde_json::json!({
            "build": 7, "name": "all", "state": "active", "submittedAt": 5, "remainingMs": null, "jobs": counts, "outputs": {}, "failures": [],
            "attributes": {}, "evaluationErrors": {}, "evaluationErrorsCount": 0,
        });
        assert_eq!(shown, expected);
    }
}
