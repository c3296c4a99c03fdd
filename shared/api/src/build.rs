//! Builds: what clients asked for, and how far it is.

use std::collections::BTreeMap;

use kiln_wire::{DrvPath, Evaluated, OutputName, StoreDir, StorePath, client};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::full;
use crate::job::Job;

/// A build as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Build {
    /// Its number.
    pub build: u64,
    /// What people call it.
    pub name: String,
    /// Whether it goes on, and how it ended if not.
    pub state: BuildState,
    /// When it was submitted.
    pub submitted_at: u64,
    /// Expected milliseconds until it ends, if any job is left.
    #[schema(required)]
    pub remaining_ms: Option<u64>,
    /// How many of its jobs are in which state.
    pub jobs: JobCounts,
    /// The wanted outputs that are realised: by derivation, then by the output's name.
    pub outputs: BTreeMap<String, BTreeMap<String, String>>,
    /// Jobs that failed, with the reason.
    pub failures: Vec<Job>,
    /// The attributes that its roots are, by derivation; of a build that has ended.
    pub attributes: BTreeMap<String, Vec<String>>,
    /// Attributes of its set that do not evaluate, with what the evaluator said: the first 512 of them.
    pub evaluation_errors: BTreeMap<String, String>,
    /// How many do not evaluate.
    pub evaluation_errors_count: u64,
}

/// A build in a list, or by itself: how far it is, without its jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildSummary {
    /// Its number.
    pub build: u64,
    /// What people call it.
    pub name: String,
    /// Whether it goes on, and how it ended if not.
    pub state: BuildState,
    /// Who asked for it; none if nobody said.
    #[schema(required)]
    pub tenant: Option<String>,
    /// What it is for, as its tenant says.
    #[schema(required)]
    pub project: Option<String>,
    /// When it was submitted.
    pub submitted_at: u64,
    /// When it ended; none while it goes on.
    #[schema(required)]
    pub ended_at: Option<u64>,
    /// Expected milliseconds until it ends. Said of one build that goes on, not in lists.
    #[schema(required)]
    pub remaining_ms: Option<u64>,
    /// How many of its jobs are in which state.
    pub jobs: JobCounts,
    /// It has left the farm's state: its record is kept, with the jobs that failed.
    pub archived: bool,
    /// What was asked for, as derivations. Said of one build, not in lists.
    pub roots: Vec<String>,
    /// The wanted outputs that are realised: by derivation, then by the output's name. Said of one build, not in lists.
    pub outputs: BTreeMap<String, BTreeMap<String, String>>,
    /// How many attributes of its set do not evaluate.
    pub evaluation_errors_count: u64,
    /// Those of them of which it is kept what the evaluator said. Said of one build, not in lists.
    pub evaluation_errors: BTreeMap<String, String>,
    /// The attributes that its roots are, by derivation. Said of one build, not in lists.
    pub attributes: BTreeMap<String, Vec<String>>,
}

/// Whether a build goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BuildState {
    /// Jobs are left.
    Active,
    /// Every root is realised.
    Built,
    /// Something that a root needs failed.
    Failed,
    /// It was cancelled.
    Cancelled,
}

/// How many jobs are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobCounts {
    /// Wait for inputs.
    pub blocked: u64,
    /// Could run now.
    pub ready: u64,
    /// Leased to a worker.
    pub running: u64,
    /// Built.
    pub built: u64,
    /// Failed, or not built because an input failed.
    pub failed: u64,
}

impl Build {
    /// Returns a build as `--json` prints it.
    pub fn of(view: &client::BuildView, store_dir: &StoreDir) -> Self {
        Self {
            build: view.build.0,
            name: view.name.clone(),
            state: view.state.into(),
            submitted_at: view.submitted_at.0,
            remaining_ms: view.remaining_ms,
            jobs: view.counts.into(),
            outputs: outputs(&view.outputs, store_dir),
            failures: view.failures.iter().map(|job| Job::of(job, store_dir)).collect(),
            attributes: attributes(&view.evaluated, store_dir),
            evaluation_errors: view.evaluated.errors.clone(),
            evaluation_errors_count: view.evaluated.errors_count(),
        }
    }
}

/// Returns outputs as full paths, by derivation and name.
fn outputs(by_root: &ByRoot, store_dir: &StoreDir) -> BTreeMap<String, BTreeMap<String, String>> {
    let paths = |made: &BTreeMap<OutputName, StorePath>| made.iter().map(|(name, path)| (name.to_string(), store_dir.join(path))).collect();
    by_root.iter().map(|(derivation, made)| (full(derivation, store_dir), paths(made))).collect()
}

/// Returns the attributes of roots by their full paths.
fn attributes(evaluated: &Evaluated, store_dir: &StoreDir) -> BTreeMap<String, Vec<String>> {
    evaluated.attributes.iter().map(|(root, names)| (full(root, store_dir), names.clone())).collect()
}

impl BuildSummary {
    /// Returns the same with what is known of the evaluation that its roots come from.
    #[must_use]
    pub fn with_evaluation(self, evaluated: &Evaluated, store_dir: &StoreDir) -> Self {
        let (attributes, evaluation_errors) = (attributes(evaluated, store_dir), evaluated.errors.clone());
        Self { attributes, evaluation_errors, evaluation_errors_count: evaluated.errors_count(), ..self }
    }

    /// Returns the same with the realised outputs of its roots.
    #[must_use]
    pub fn with_outputs(self, by_root: &ByRoot, store_dir: &StoreDir) -> Self {
        Self { outputs: outputs(by_root, store_dir), ..self }
    }
}

/// Realised outputs, by root.
type ByRoot = BTreeMap<DrvPath, BTreeMap<OutputName, StorePath>>;

impl BuildState {
    /// Returns the state in one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Built => "built",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl From<client::BuildState> for BuildState {
    fn from(state: client::BuildState) -> Self {
        match state {
            client::BuildState::Active => Self::Active,
            client::BuildState::Built => Self::Built,
            client::BuildState::Failed => Self::Failed,
            client::BuildState::Cancelled => Self::Cancelled,
        }
    }
}

impl From<client::JobCounts> for JobCounts {
    fn from(counts: client::JobCounts) -> Self {
        let client::JobCounts { blocked, ready, running, built, failed } = counts;
        Self { blocked, ready, running, built, failed }
    }
}
