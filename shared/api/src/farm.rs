//! The farm at a glance.

use kiln_wire::client;
use serde::Serialize;
use utoipa::ToSchema;

use crate::build::{Build, JobCounts};

/// The farm at a glance, with its live builds, as `kiln status --json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Farm {
    /// What is true of the farm as a whole.
    #[serde(flatten)]
    pub farm: FarmSummary,
    /// Live builds.
    pub builds: Vec<Build>,
}

/// The farm at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FarmSummary {
    /// The coordinator's version.
    pub version: String,
    /// The directory that store paths live in.
    pub store_dir: String,
    /// The public keys that sign the cache, as `trusted-public-keys` has them.
    pub public_key: String,
    /// Where the binary cache is served.
    #[schema(required)]
    pub cache_url: Option<String>,
    /// Raft's term.
    pub term: u64,
    /// The coordinator that leads, or led last.
    pub leader: u64,
    /// Workers with a live session.
    pub workers_connected: u64,
    /// How many jobs of the farm are in which state.
    pub jobs: JobCounts,
}

/// Who asks, and what they may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Viewer {
    /// The name of the token that was shown; none without one.
    #[schema(required)]
    pub token: Option<String>,
    /// `anonymous`, `reader`, `submitter` or `admin`.
    pub scope: String,
    /// Whose builds are seen and steered; none for everybody's.
    #[schema(required)]
    pub tenant: Option<String>,
    /// May steer builds and jobs.
    pub may_steer: bool,
    /// May do what concerns everybody: workers, and builds of others.
    pub may_administer: bool,
}

/// What was asked for is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Done {
    /// The number under which an ended build is built again; none of everything else.
    #[schema(required)]
    pub build: Option<u64>,
}

impl Farm {
    /// Returns the farm as `--json` prints it.
    pub fn of(view: &client::FarmView) -> Self {
        let builds = view.builds.iter().map(|build| Build::of(build, &view.store_dir)).collect();
        Self { farm: FarmSummary::of(view), builds }
    }
}

impl FarmSummary {
    /// Returns what is true of the farm as a whole.
    pub fn of(view: &client::FarmView) -> Self {
        Self {
            version: view.version.clone(),
            store_dir: view.store_dir.to_string(),
            public_key: view.public_key.clone(),
            cache_url: view.cache_url.clone(),
            term: view.leader.term,
            leader: view.leader.node.0,
            workers_connected: view.workers_connected,
            jobs: view.counts.into(),
        }
    }
}
