//! Why ready jobs wait. Every ready job is in the plan or in the report.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use kiln_wire::{Timestamp, WorkerId};

use crate::farm::Farm;
use crate::fleet::{self, Worker};
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
    /// The only room is kept for a more urgent job that needs more of it.
    Reserved,
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
            Self::Busy | Self::BackOff | Self::FailedThere | Self::Reserved | Self::PlanFull => false,
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
            Self::Reserved => f.write_str("the only room is kept for a more urgent job that needs more of it"),
            Self::PlanFull => f.write_str("has room, unless it is kept for a more urgent job: see the next plan"),
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
        let lacking = with_system().map(|offer| fleet::features_missing(offer, needs).cloned().collect::<BTreeSet<String>>());
        let Some(missing) = lacking.min_by_key(BTreeSet::len) else {
            return Some(WaitReason::LacksSystem(needs.system.clone()));
        };
        if !missing.is_empty() {
            return Some(WaitReason::LacksFeatures(missing));
        }
        let able = with_system().filter(|offer| fleet::features_missing(offer, needs).next().is_none());
        let largest_mib = able.map(|offer| offer.capacity.memory_mib).max().unwrap_or(0);
        let asked_mib = needs.resources.memory_mib;
        if asked_mib > largest_mib { Some(WaitReason::LacksMemory { asked_mib, largest_mib }) } else { Some(WaitReason::NoSlots) }
    }

    /// Returns why jobs with these needs, ready and without a back-off, do not run at this moment.
    pub(crate) fn class_reason(&self, needs: &Needs) -> WaitReason {
        let has_room = |(id, worker): (&WorkerId, &Worker)| {
            let granted = fleet::grant(&worker.offer, needs);
            fleet::could_run(&worker.offer, needs) && self.free_on(id).and_then(|free| free.take(granted)).is_some()
        };
        let lacking = self.unplaceable(needs);
        lacking.unwrap_or_else(|| if self.facts.workers.iter().any(has_room) { WaitReason::PlanFull } else { WaitReason::Busy })
    }

    /// Returns why each class of ready jobs does not run at this moment.
    pub(crate) fn class_reasons(&self) -> BTreeMap<Arc<Needs>, WaitReason> {
        self.index.ready.keys().map(|needs| (Arc::clone(needs), self.class_reason(needs))).collect()
    }

    /// Returns why a ready job does not run at this moment. `known` saves looking at its class again.
    pub(crate) fn wait_reason(&self, job: &Job, known: &BTreeMap<Arc<Needs>, WaitReason>) -> WaitReason {
        let needs = job.needs_next();
        if job.tries.retry_at.is_some() {
            return self.unplaceable(&needs).unwrap_or(WaitReason::BackOff);
        }
        known.get(&needs).cloned().unwrap_or_else(|| self.class_reason(&needs))
    }
}
