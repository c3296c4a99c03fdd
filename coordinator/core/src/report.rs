//! Why ready jobs wait. Every ready job is in the plan or in the report.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use kiln_wire::Timestamp;

use crate::farm::Farm;
use crate::fleet;
use crate::job::{Job, Needs};
use crate::wake::WakeReason;

/// What a plan leaves out, and when planning is worth while again without a new command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanReport {
    /// Ready jobs that are not in the plan, by class and reason.
    pub waiting: Vec<Waiting>,
    /// The next time at which time alone changes something.
    pub wake: Option<(Timestamp, WakeReason)>,
}

/// Ready jobs of one class that wait for the same reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// What they need.
    pub needs: Needs,
    /// Why they wait.
    pub reason: WaitReason,
    /// How many.
    pub count: u64,
}

/// Why a ready job waits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WaitReason {
    /// Every worker that could run it is full.
    Busy,
    /// It failed for infrastructure reasons and its back-off is not over.
    BackOff,
    /// There is room only on workers on which it failed before, and another worker could run it.
    FailedThere,
    /// The plan holds as many placements as one plan may.
    PlanFull,
    /// No worker is registered.
    NoWorker,
    /// No registered worker runs this system.
    LacksSystem(String),
    /// No registered worker of the system has these features; the nearest one lacks them.
    LacksFeatures(BTreeSet<String>),
    /// No registered worker with system and features has this much memory, in MiB.
    LacksMemory {
        /// What the job asks for.
        asked_mib: u64,
        /// The most that such a worker has.
        largest_mib: u64,
    },
    /// The workers that could run it offer no slots.
    NoSlots,
}

impl WaitReason {
    /// Returns whether no registered worker could ever run the job. Such jobs must not count for scaling existing pools.
    pub fn is_unplaceable(&self) -> bool {
        match self {
            Self::Busy | Self::BackOff | Self::FailedThere | Self::PlanFull => false,
            Self::NoWorker | Self::LacksSystem(_) | Self::LacksFeatures(_) | Self::LacksMemory { .. } | Self::NoSlots => true,
        }
    }
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("every worker that could run it is full"),
            Self::BackOff => f.write_str("is tried again after an infrastructure failure"),
            Self::FailedThere => f.write_str("waits for a worker on which it has not failed"),
            Self::PlanFull => f.write_str("is in the next plan"),
            Self::NoWorker => f.write_str("no worker is registered"),
            Self::LacksSystem(system) => write!(f, "no worker runs system {system}"),
            Self::LacksFeatures(features) => {
                f.write_str("no worker has feature ")?;
                features.iter().enumerate().try_for_each(|(i, feature)| write!(f, "{}{feature}", if i == 0 { "" } else { ", " }))
            }
            Self::LacksMemory { asked_mib, largest_mib } => {
                write!(f, "needs {asked_mib} MiB of memory, the largest worker has {largest_mib} MiB")
            }
            Self::NoSlots => f.write_str("the workers that could run it offer no slots"),
        }
    }
}

impl Farm {
    /// Returns why no registered worker could ever run jobs with these needs; none if one could.
    pub fn unplaceable(&self, needs: &Needs) -> Option<WaitReason> {
        let offers = || self.facts.workers.values().map(|worker| &worker.offer);
        if offers().any(|offer| fleet::could_run(offer, needs)) {
            return None;
        }
        if offers().next().is_none() {
            return Some(WaitReason::NoWorker);
        }
        let with_system = || offers().filter(|offer| fleet::has_system(offer, needs));
        let lacking = with_system().map(|offer| needs.features.difference(&offer.features).cloned().collect::<BTreeSet<String>>());
        let Some(missing) = lacking.min_by_key(BTreeSet::len) else {
            return Some(WaitReason::LacksSystem(needs.system.clone()));
        };
        if !missing.is_empty() {
            return Some(WaitReason::LacksFeatures(missing));
        }
        let able = with_system().filter(|offer| needs.features.is_subset(&offer.features));
        let largest_mib = able.map(|offer| offer.capacity.memory_mib).max().unwrap_or(0);
        let asked_mib = needs.resources.memory_mib;
        if asked_mib > largest_mib { Some(WaitReason::LacksMemory { asked_mib, largest_mib }) } else { Some(WaitReason::NoSlots) }
    }

    /// Returns why a ready job is not running at this moment.
    pub(crate) fn wait_reason(&self, job: &Job) -> WaitReason {
        let lacking = self.unplaceable(&job.needs_next());
        lacking.unwrap_or(if job.tries.retry_at.is_some() { WaitReason::BackOff } else { WaitReason::Busy })
    }
}
