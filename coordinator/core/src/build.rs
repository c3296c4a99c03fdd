//! Builds: what clients asked for, and how far each has come; and submissions on their way to becoming one.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use kiln_wire::client::JobView;
use kiln_wire::limits::{GROWTHS_PER_BUILD_MAX, JOBS_PER_BUILD_MAX};
use kiln_wire::{Account, BuildId, DrvPath, Evaluated, Evaluation, JobSpec, Priority, RequestId, Root, Timestamp};
use serde::{Deserialize, Serialize};

use crate::effect::{BuildRecord, Refused};
use crate::fair::Asker;
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
    /// How often jobs have joined it since.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub growths: u32,
    /// Who asks for it, if the farm was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asker: Option<Box<Asker>>,
    /// What is known of the evaluation that its roots come from, until it ends: then its record has that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Box<Evaluation>>,
    pub phase: Phase,
}

/// Whose a build is of which nobody said whose it is.
static NOBODYS: Account = Account { tenant: None, project: None };

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
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
    /// Returns whose builds it is counted among.
    pub fn account(&self) -> &Account {
        self.asker.as_ref().map_or(&NOBODYS, |asker| &asker.account)
    }

    /// Returns the attributes that a derivation is as a root of it.
    pub fn names(&self, derivation: &DrvPath) -> &[String] {
        self.evaluation().map(|evaluation| evaluation.names(&self.roots, derivation)).unwrap_or_default()
    }

    /// Returns what is known of its evaluation, for people.
    pub fn evaluated(&self, with_names: bool) -> Evaluated {
        self.evaluation().map(|evaluation| evaluation.shown(&self.roots, with_names)).unwrap_or_default()
    }

    /// Returns what is known of its evaluation: once it has ended, its record says that, with what it ended without.
    pub fn evaluation(&self) -> Option<&Evaluation> {
        self.record().map_or(&self.evaluation, |record| &record.evaluation).as_deref()
    }

    /// Returns its place among the builds of its account.
    pub fn priority(&self) -> Priority {
        self.asker.as_ref().map_or(Priority::NORMAL, |asker| asker.priority)
    }

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

    /// Checks that it may grow once more, by so many jobs.
    ///
    /// # Errors
    /// [`Refused::GrownTooFar`] names the limit.
    pub fn check_growth(&self, id: BuildId, more: usize) -> Result<(), Refused> {
        let jobs = self.jobs.len().saturating_add(more);
        if self.growths < GROWTHS_PER_BUILD_MAX && jobs <= JOBS_PER_BUILD_MAX {
            return Ok(());
        }
        Err(Refused::GrownTooFar { build: id, growths: self.growths, jobs: u64::try_from(jobs).unwrap_or(u64::MAX) })
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
    /// What is known of the evaluation that its roots come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Box<Evaluation>>,
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

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn a_build_does_not_grow_without_end() {
        let build = |growths, jobs: u32| Build {
            request: RequestId(1),
            name: String::new(),
            roots: Vec::new(),
            keep_going: false,
            submitted_at: Timestamp(0),
            jobs: (0..jobs).map(JobKey).collect(),
            growths,
            asker: None,
            evaluation: None,
            phase: Phase::Going,
        };
        let last = GROWTHS_PER_BUILD_MAX - 1;
        for (growths, more, may_grow) in [
            (0, 1, true),
            (last, 1, true),
            (GROWTHS_PER_BUILD_MAX, 1, false),
            (0, JOBS_PER_BUILD_MAX - 3, true),
            (0, JOBS_PER_BUILD_MAX - 2, false),
            (0, usize::MAX, false),
        ] {
            let checked = build(growths, 3).check_growth(BuildId(7), more);
            assert_eq!(checked.is_ok(), may_grow, "{growths} growths, {more} more");
            if let Err(refused) = checked {
                assert!(refused.to_string().contains("build 7"), "{refused}");
            }
        }
    }
}
