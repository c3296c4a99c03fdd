//! Why ready jobs wait. Every ready job is in the plan or in the report.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::fmt;

use kiln_wire::{Timestamp, WorkerId};

use crate::farm::Farm;
use crate::fleet::{self, Free, Worker};
use crate::health::Health;
use crate::index::ReadyEntry;
use crate::job::{Job, JobKey, Needs};
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
    /// As [`WaitReason::Busy`], and what frees goes to others first, who are further below their share or of the security class.
    OthersFirst,
    /// Every worker that has room for it takes nothing new at present, or has no session with the leader.
    Away,
    /// Every worker that could run it finishes what it has and takes nothing new.
    Finishing,
    /// Every worker that could run it finishes, rests after failures of its own, is quarantined, or is drained.
    Ailing,
    /// It failed for infrastructure reasons and its back-off is not over.
    BackOff,
    /// There is room only on workers on which it failed before, and another worker could run it.
    FailedThere,
    /// The only room is kept for a more urgent job that needs more of it.
    Reserved,
    /// The only room is kept for a more urgent job, and it would not be done before that can start.
    Outlasts,
    /// The plan holds as many placements as one plan may.
    PlanFull,
    /// There is room, and the next plan is about to fill it.
    Placing,
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
            Self::Busy
            | Self::OthersFirst
            | Self::Away
            | Self::Finishing
            | Self::Ailing
            | Self::BackOff
            | Self::FailedThere
            | Self::Reserved
            | Self::Outlasts
            | Self::PlanFull
            | Self::Placing => false,
            Self::NoWorker | Self::LacksSystem(_) | Self::LacksFeatures(_) | Self::LacksMemory { .. } | Self::NoSlots => true,
        }
    }
}

impl WaitReason {
    /// Returns the reason in one word, for counts: without what is lacking, which may be anything.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::OthersFirst => "others_first",
            Self::Away => "away",
            Self::Finishing => "finishing",
            Self::Ailing => "ailing",
            Self::BackOff => "back_off",
            Self::FailedThere => "failed_there",
            Self::Reserved => "reserved",
            Self::Outlasts => "outlasts",
            Self::PlanFull => "plan_full",
            Self::Placing => "placing",
            Self::NoWorker => "no_worker",
            Self::LacksSystem(_) => "lacks_system",
            Self::LacksFeatures(_) => "lacks_features",
            Self::LacksMemory { .. } => "lacks_memory",
            Self::NoSlots => "no_slots",
        }
    }
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("every worker that could run it is full"),
            Self::OthersFirst => f.write_str(
                "every worker that could run it is full, and what frees goes first to others, who are further below their share or more urgent",
            ),
            Self::Away => {
                f.write_str("every worker that has room for it takes nothing new at present, or is not connected; `kiln workers` says why")
            }
            Self::Finishing => f.write_str("every worker that could run it finishes what it has and takes nothing new"),
            Self::Ailing => f.write_str(
                "every worker that could run it rests after failures of its own, is quarantined, or is drained; `kiln workers` says why",
            ),
            Self::BackOff => f.write_str("waits a while before it is tried again, after an infrastructure failure"),
            Self::FailedThere => f.write_str("the only room is on workers on which it failed before; another could run it"),
            Self::Reserved => f.write_str("the only room is kept for a more urgent job that needs more of it"),
            Self::Outlasts => f.write_str("the only room is kept for a more urgent job, and it would not be done before that can start"),
            Self::PlanFull => f.write_str("more jobs are ready than are placed at once; its turn comes next"),
            Self::Placing => f.write_str("about to be placed, as far as there is room"),
            Self::NoWorker => f.write_str("the farm has no worker"),
            Self::LacksSystem(system) => write!(f, "no worker runs system {system}"),
            Self::LacksFeatures(features) => {
                f.write_str("no worker has all features that it needs, the nearest one lacks ")?;
                features.iter().enumerate().try_for_each(|(i, feature)| write!(f, "{}{feature}", if i == 0 { "" } else { ", " }))
            }
            Self::LacksMemory { asked_mib, largest_mib } => {
                write!(f, "needs {asked_mib} MiB of memory, the largest worker has {largest_mib} MiB")
            }
            Self::NoSlots => f.write_str("the workers that could run it have 0 slots for builds"),
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
    pub(crate) fn class_reason(&self, needs: &Needs, kept: Option<Kept<'_>>, away: &BTreeSet<WorkerId>) -> WaitReason {
        if let Some(lacking) = self.unplaceable(needs) {
            return lacking;
        }
        let overtakes = |kept: &Kept<'_>| self.first_of(needs).is_some_and(|first| first < kept.first);
        let closed = kept.filter(|kept| !overtakes(kept)).map(|kept| kept.on);
        let mut with_room = self.with_room(needs).filter(|worker| !away.contains(*worker)).peekable();
        if with_room.peek().is_none() {
            self.without_room(needs, away)
        } else if with_room.all(|worker| Some(worker) == closed) {
            WaitReason::Reserved
        } else {
            WaitReason::Placing
        }
    }

    /// Returns why jobs wait that could run and for which no worker has room.
    pub(crate) fn without_room(&self, needs: &Needs, away: &BTreeSet<WorkerId>) -> WaitReason {
        if self.able(needs).all(|(_, worker, _)| worker.is_finishing) {
            WaitReason::Finishing
        } else if self.able(needs).all(|(id, worker, _)| worker.is_finishing || self.takes_nothing(id)) {
            WaitReason::Ailing
        } else if self.with_room(needs).any(|worker| away.contains(worker)) {
            WaitReason::Away
        } else {
            WaitReason::Busy
        }
    }

    pub(crate) fn takes_nothing(&self, worker: &WorkerId) -> bool {
        self.facts.health.get(worker).is_some_and(Health::takes_nothing)
    }

    /// Returns the workers that have room for a job with these needs at this moment, whether or not they take it.
    pub(crate) fn with_room(&self, needs: &Needs) -> impl Iterator<Item = &WorkerId> {
        let fits = |worker: &Worker, free: Free| {
            let granted = fleet::grant(worker.offer.capacity, needs);
            free.take(granted).is_some() || (needs.light && free.take_light(fleet::light(granted)).is_some())
        };
        self.able(needs).filter(move |(_, worker, free)| fits(worker, *free)).map(|(id, ..)| id)
    }

    /// Returns the workers that could run a job with these needs, with what each has free.
    fn able(&self, needs: &Needs) -> impl Iterator<Item = (&WorkerId, &Worker, Free)> {
        let could = self.facts.workers.iter().filter(move |(_, worker)| fleet::could_run(&worker.offer, needs));
        could.filter_map(|(id, worker)| Some((id, worker, self.free_on(id)?)))
    }

    /// Returns the most urgent ready job with these needs.
    fn first_of(&self, needs: &Needs) -> Option<&ReadyEntry> {
        self.index.ready.get(needs)?.values().filter_map(BTreeSet::first).min()
    }

    /// Returns what the next plan keeps for the most urgent class that fits nowhere: as the plan chooses, before it places anything.
    pub(crate) fn kept(&self) -> Option<Kept<'_>> {
        let waiting = self.index.ready.iter().filter(|(needs, _)| self.with_room(needs).next().is_none());
        let kept = waiting.filter_map(|(needs, ready)| {
            let open = self.able(needs).filter(|(.., free)| free.slots > 0);
            let (_, Reverse(on)) = open.map(|(id, _, free)| (free, Reverse(id))).max()?;
            Some(Kept { first: ready.values().filter_map(BTreeSet::first).min()?, on })
        });
        kept.min_by_key(|kept| kept.first)
    }

    /// Returns why each class of ready jobs does not run at this moment.
    pub(crate) fn class_reasons(&self, away: &BTreeSet<WorkerId>) -> BTreeMap<Arc<Needs>, WaitReason> {
        let kept = self.kept();
        self.index.ready.keys().map(|needs| (Arc::clone(needs), self.class_reason(needs, kept, away))).collect()
    }

    /// Returns why a ready job does not run at this moment. `known` saves looking at its class again.
    pub(crate) fn wait_reason(&self, key: JobKey, job: &Job, known: &BTreeMap<Arc<Needs>, WaitReason>) -> WaitReason {
        let needs = self.index.needs_of(key, job);
        if job.tries.retry_at.is_some() {
            return self.unplaceable(&needs).unwrap_or(WaitReason::BackOff);
        }
        let reason = known.get(&needs).cloned().unwrap_or_else(|| self.class_reason(&needs, self.kept(), &NOBODY));
        let lines = self.index.ready.get(&needs).filter(|lines| reason == WaitReason::Busy && lines.len() > 1);
        let others = lines.is_some_and(|lines| self.others_first(&self.index.party_of(&self.facts, key, job), lines));
        if others { WaitReason::OthersFirst } else { reason }
    }
}

/// Where nobody is known to be away.
pub(crate) static NOBODY: BTreeSet<WorkerId> = BTreeSet::new();

/// A worker that is kept for a class without room, so that smaller jobs do not overtake it for ever.
#[derive(Clone, Copy)]
pub(crate) struct Kept<'a> {
    /// The class's most urgent job.
    first: &'a ReadyEntry,
    on: &'a WorkerId,
}
