//! Builds: what clients asked for, and how far each has come; and submissions on their way to becoming one.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use kiln_wire::client::JobView;
use kiln_wire::{DrvPath, JobSpec, RequestId, Root, Timestamp};
use serde::{Deserialize, Serialize};

use crate::effect::BuildRecord;
use crate::job::JobKey;

/// One build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Build {
    pub request: RequestId,
    pub name: String,
    pub roots: Vec<Root>,
    pub keep_going: bool,
    pub submitted_at: Timestamp,
    /// Every job of its closure that the farm had or got when it was submitted. Sorted, closed under inputs.
    pub jobs: Box<[JobKey]>,
    pub phase: Phase,
}

/// How far a build has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Wants all its jobs.
    Going,
    /// Something failed and it does not keep going: it waits for those of its jobs that ran at that time.
    Stopping {
        draining: BTreeSet<JobKey>,
        /// Why it stops: another build may give what failed a new chance before this one ends.
        #[serde(default)]
        failures: Vec<JobView>,
    },
    /// Over. What the archive will keep is settled.
    Ended(Box<BuildRecord>),
}

impl Build {
    /// Returns whether it wants its waiting jobs to be started.
    pub fn is_going(&self) -> bool {
        matches!(self.phase, Phase::Going)
    }

    /// Returns whether it waits for the end of a running job of its own.
    pub fn awaits(&self, job: JobKey) -> bool {
        match &self.phase {
            Phase::Going => true,
            Phase::Stopping { draining, .. } => draining.contains(&job),
            Phase::Ended(_) => false,
        }
    }

    /// Returns its record, once it has ended.
    pub fn record(&self) -> Option<&BuildRecord> {
        match &self.phase {
            Phase::Ended(record) => Some(record),
            Phase::Going | Phase::Stopping { .. } => None,
        }
    }
}

/// The jobs of a submission that is still being handed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stage {
    /// By derivation: a submission that is made again after its answer was lost is not twice as large.
    #[serde(with = "specs")]
    pub jobs: BTreeMap<DrvPath, JobSpec>,
    /// Jobs that are built although their outputs exist.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub check: BTreeSet<DrvPath>,
    /// When its last entry came.
    pub touched_at: Timestamp,
}

/// Writes specifications as a list, as they were kept first.
mod specs {
    use alloc::collections::BTreeMap;
    use alloc::vec::Vec;

    use kiln_wire::{DrvPath, JobSpec};
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(jobs: &BTreeMap<DrvPath, JobSpec>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(jobs.values())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<DrvPath, JobSpec>, D::Error> {
        let jobs: Vec<JobSpec> = Vec::deserialize(deserializer)?;
        Ok(jobs.into_iter().map(|job| (job.derivation.clone(), job)).collect())
    }
}
