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
    /// How long ended builds are kept.
    #[schema(required)]
    pub retention: Option<Retention>,
    /// Who is told by webhook, and how far each is.
    pub webhooks: Vec<Webhook>,
}

/// How long ended builds are kept, and with them their logs and what they made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// Of each name so many, the newest, however old.
    pub keep_builds: u32,
    /// Others as long as they are not older than so many days.
    pub keep_days: u32,
    /// Of those others so many at most; none if there is no bound.
    #[schema(required)]
    pub keep_builds_max: Option<u32>,
    /// Logs for so many days; none: as long as what they are of.
    #[schema(required)]
    pub keep_log_days: Option<u32>,
    /// The rest is deleted every so many hours; none: when `kiln gc` is asked to.
    #[schema(required)]
    pub every_hours: Option<u32>,
}

/// A receiver of webhooks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Webhook {
    /// What the configuration calls it.
    pub name: String,
    /// The host that it is at.
    pub host: String,
    /// Messages that it took, since the leader took over.
    pub delivered: u64,
    /// Messages that it will never get, since the leader took over.
    pub given_up: u64,
    /// Messages that wait for it.
    pub waiting: u64,
    /// Since when it fails to take the next one; none if it does not fail.
    #[schema(required)]
    pub failing_since: Option<u64>,
    /// How many tries of that one failed.
    pub failing_tries: u32,
    /// What became of the last one.
    #[schema(required)]
    pub error: Option<String>,
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
        let webhooks = view.receivers.iter().map(Webhook::of).collect();
        Self { farm: FarmSummary::of(view), builds, retention: view.retention.as_ref().map(Retention::of), webhooks }
    }
}

impl Retention {
    fn of(view: &kiln_wire::RetentionView) -> Self {
        let kiln_wire::RetentionView { keep_builds, keep_days, keep_builds_max, keep_log_days, every_hours } = *view;
        Self { keep_builds, keep_days, keep_builds_max, keep_log_days, every_hours }
    }
}

impl Webhook {
    fn of(view: &kiln_wire::ReceiverView) -> Self {
        let failing = view.failing.as_ref();
        Self {
            name: view.name.clone(),
            host: view.host.clone(),
            delivered: view.delivered,
            given_up: view.given_up,
            waiting: view.waiting,
            failing_since: failing.map(|failing| failing.since.0),
            failing_tries: failing.map_or(0, |failing| failing.tries),
            error: failing.map(|failing| failing.error.clone()),
        }
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
