//! The planner: which ready job goes to which worker. Reads the farm, changes nothing; `Assign` checks again.
//!
//! List scheduling by upward rank (HEFT: Topcuoglu, Hariri, Wu 2002), ties by derivation path. Ready jobs are planned class by class,
//! so that a class without room costs one look, however many jobs it has: O(workers + classes + placements × free workers).

use alloc::collections::{BTreeMap, BTreeSet, BinaryHeap};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::iter::Peekable;

use kiln_wire::limits::PLACEMENTS_PER_PLAN_MAX;
use kiln_wire::{Epoch, Timestamp, WorkerId};

use crate::command::Placement;
use crate::farm::Farm;
use crate::fleet::{self, Free, Worker};
use crate::index::ReadyEntry;
use crate::job::{JobKey, Needs};
use crate::report::{PlanReport, WaitReason, Waiting};

/// Proposed leases, most urgent first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// At most `Limits::placements_max`.
    pub placements: Vec<Placement>,
}

/// Bounds of one plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Placements in one plan; what is left is in the next one.
    pub placements_max: usize,
}

impl Limits {
    /// What a farm uses.
    pub const STANDARD: Self = Self { placements_max: PLACEMENTS_PER_PLAN_MAX };
}

impl Default for Limits {
    fn default() -> Self {
        Self::STANDARD
    }
}

/// Places ready jobs on free capacity. Reads the farm, changes nothing. Every ready job is in the plan, or in the report with a reason.
///
/// The highest upward rank goes first, ties by derivation path; to the worker with most free cores, then slots, then memory, ties by
/// its id. The most urgent job that fits nowhere keeps one worker to itself. A worker on which the job failed for infrastructure reasons is passed over if a registered one is left on which it did not.
pub fn plan(farm: &Farm, now: Timestamp, limits: &Limits) -> (Plan, PlanReport) {
    plan_without(farm, now, limits, &BTreeSet::new())
}

/// As [`plan`], and places nothing on the workers that are `away`: they have no session with the leader, and their next registration
/// would end a lease that they were never told of.
pub fn plan_without(farm: &Farm, now: Timestamp, limits: &Limits, away: &BTreeSet<WorkerId>) -> (Plan, PlanReport) {
    let mut fleet = Fleet::of(farm, away);
    let (mut lanes, mut waiting) = lanes(farm, now);
    let mut heads: BinaryHeap<Reverse<(ReadyEntry, usize)>> = BinaryHeap::new();
    for (at, lane) in lanes.iter_mut().enumerate() {
        heads.extend(lane.next().map(|entry| Reverse((entry, at))));
    }
    let mut placements = Vec::new();
    while placements.len() < limits.placements_max {
        let Some(Reverse((entry, at))) = heads.pop() else { break };
        let lane = &mut lanes[at];
        match fleet.place(farm, lane, entry.2) {
            Spot::On(worker, epoch) => {
                lane.left -= 1;
                placements.push(Placement { derivation: (*entry.1).clone(), worker, epoch });
            }
            Spot::FailedThere => {
                lane.left -= 1;
                lane.passed += 1;
            }
            Spot::None(reason) => {
                lane.closed = Some(reason);
                continue;
            }
        }
        heads.extend(lane.next().map(|entry| Reverse((entry, at))));
    }
    for lane in &lanes {
        waiting.extend(lane.waiting(farm));
    }
    (Plan { placements }, PlanReport { waiting, wake: farm.next_wake(now) })
}

/// The ready jobs of one class, in order.
struct Lane<'a> {
    needs: Arc<Needs>,
    ready: Option<Peekable<alloc::collections::btree_set::Iter<'a, ReadyEntry>>>,
    /// Jobs whose back-off is over, last one first.
    retried: Vec<ReadyEntry>,
    /// Jobs that are not placed yet.
    left: usize,
    /// Jobs that were passed over because they failed wherever there is room.
    passed: usize,
    /// No worker has room for the class, and why.
    closed: Option<WaitReason>,
    /// Free workers that could run the class, by their place in the fleet.
    able: Option<Vec<usize>>,
}

impl Lane<'_> {
    fn next(&mut self) -> Option<ReadyEntry> {
        let ready = self.ready.as_mut().and_then(|ready| ready.peek().copied());
        match (ready, self.retried.last()) {
            (Some(first), Some(other)) if other < first => self.retried.pop(),
            (None, Some(_)) => self.retried.pop(),
            (Some(_), _) => self.ready.as_mut().and_then(|ready| ready.next().cloned()),
            (None, None) => None,
        }
    }

    fn waiting(&self, farm: &Farm) -> impl Iterator<Item = Waiting> {
        let full = match self.closed.clone().unwrap_or(WaitReason::PlanFull) {
            WaitReason::Busy => farm.without_room(&self.needs),
            other => other,
        };
        let entry = |reason: WaitReason, count: usize| Waiting {
            needs: (*self.needs).clone(),
            reason,
            count: u64::try_from(count).unwrap_or(u64::MAX),
        };
        let left = (self.left > 0).then(|| entry(farm.unplaceable(&self.needs).unwrap_or(full), self.left));
        let passed = (self.passed > 0).then(|| entry(WaitReason::FailedThere, self.passed));
        left.into_iter().chain(passed)
    }
}

/// Returns the classes with ready jobs, and those ready jobs whose back-off lasts.
fn lanes(farm: &Farm, now: Timestamp) -> (Vec<Lane<'_>>, Vec<Waiting>) {
    let mut retried: BTreeMap<Arc<Needs>, BTreeSet<ReadyEntry>> = BTreeMap::new();
    let mut backing_off: BTreeMap<Arc<Needs>, u64> = BTreeMap::new();
    for (at, key) in &farm.index.delayed {
        let job = farm.job(*key);
        if *at <= now {
            let entry = (Reverse(job.upward_rank_ms), Arc::clone(&job.derivation), *key);
            retried.entry(job.needs_next()).or_default().insert(entry);
        } else {
            *backing_off.entry(job.needs_next()).or_default() += 1;
        }
    }
    let mut lanes: Vec<Lane<'_>> = Vec::new();
    for (needs, ready) in &farm.index.ready {
        let again = retried.remove(needs).unwrap_or_default();
        lanes.push(lane(needs, Some(ready), again));
    }
    for (needs, again) in retried {
        lanes.push(lane(&needs, None, again));
    }
    let waiting = backing_off.into_iter().map(|(needs, count)| Waiting { needs: (*needs).clone(), reason: WaitReason::BackOff, count });
    (lanes, waiting.collect())
}

fn lane<'a>(needs: &Arc<Needs>, ready: Option<&'a BTreeSet<ReadyEntry>>, retried: BTreeSet<ReadyEntry>) -> Lane<'a> {
    let left = ready.map_or(0, BTreeSet::len) + retried.len();
    Lane {
        needs: Arc::clone(needs),
        ready: ready.map(|ready| ready.iter().peekable()),
        retried: retried.into_iter().rev().collect(),
        left,
        passed: 0,
        closed: None,
        able: None,
    }
}

/// Workers with a free slot, and what the plan has left of each.
struct Fleet<'a> {
    free: Vec<Candidate<'a>>,
    /// The worker that is kept for the most urgent job without room, so that smaller jobs do not overtake it for ever.
    reserved: Option<usize>,
}

struct Candidate<'a> {
    id: &'a WorkerId,
    worker: &'a Worker,
    free: Free,
}

/// Where a job can go.
enum Spot {
    On(WorkerId, Epoch),
    /// Only where it failed before.
    FailedThere,
    None(WaitReason),
}

impl<'a> Fleet<'a> {
    fn of(farm: &'a Farm, away: &BTreeSet<WorkerId>) -> Self {
        let free = farm.facts.workers.iter().filter(|(id, _)| !away.contains(*id)).filter_map(|(id, worker)| {
            let free = farm.free_on(id).filter(|free| free.slots > 0)?;
            Some(Candidate { id, worker, free })
        });
        Self { free: free.collect(), reserved: None }
    }

    fn place(&mut self, farm: &Farm, lane: &mut Lane<'_>, key: JobKey) -> Spot {
        let needs = &lane.needs;
        let able = lane.able.get_or_insert_with(|| {
            let could = |candidate: &Candidate<'_>| fleet::could_run(&candidate.worker.offer, needs);
            self.free.iter().enumerate().filter(|(_, candidate)| could(candidate)).map(|(at, _)| at).collect()
        });
        let failed_on = &farm.job(key).tries.failed_on;
        let mut best: Option<(bool, Free, usize, Free)> = None;
        for at in able.iter().copied().filter(|at| self.reserved != Some(*at)) {
            let candidate = &self.free[at];
            let Some(rest) = candidate.free.take(fleet::grant(&candidate.worker.offer, needs)) else { continue };
            let fresh = !failed_on.contains(candidate.id);
            if best.as_ref().is_none_or(|(other_fresh, free, ..)| (fresh, candidate.free) > (*other_fresh, *free)) {
                best = Some((fresh, candidate.free, at, rest));
            }
        }
        let Some((fresh, _, at, rest)) = best else { return Spot::None(self.reserve(lane)) };
        if !fresh && farm.could_run_elsewhere(needs, failed_on) {
            return Spot::FailedThere;
        }
        let candidate = &mut self.free[at];
        candidate.free = rest;
        Spot::On(candidate.id.clone(), candidate.worker.epoch)
    }

    /// Keeps the able worker with most left for a class that fits none, unless one is kept already. Returns why the class waits.
    fn reserve(&mut self, lane: &Lane<'_>) -> WaitReason {
        let able = lane.able.as_deref().unwrap_or_default().iter().copied().filter(|at| self.free[*at].free.slots > 0);
        match self.reserved {
            None => {
                self.reserved = able.max_by_key(|at| (self.free[*at].free, Reverse(*at)));
                WaitReason::Busy
            }
            Some(reserved) => {
                let candidate = &self.free[reserved];
                let room = candidate.free.take(fleet::grant(&candidate.worker.offer, &lane.needs)).is_some();
                if room && able.into_iter().any(|at| at == reserved) { WaitReason::Reserved } else { WaitReason::Busy }
            }
        }
    }
}

impl Farm {
    /// Returns what a registered worker's live leases leave free. A worker that finishes has nothing free.
    pub(crate) fn free_on(&self, worker: &WorkerId) -> Option<Free> {
        let known = self.facts.workers.get(worker)?;
        if known.is_finishing {
            return Some(Free { cores: 0, slots: 0, memory_mib: 0 });
        }
        let whole = Free::whole(&known.offer);
        let Some(load) = self.index.loads.get(worker) else { return Some(whole) };
        let held = u32::try_from(load.jobs.len()).unwrap_or(u32::MAX);
        Some(Free {
            cores: whole.cores.saturating_sub(load.used.cores),
            slots: whole.slots.saturating_sub(held),
            memory_mib: whole.memory_mib.saturating_sub(load.used.memory_mib),
        })
    }

    fn could_run_elsewhere(&self, needs: &Needs, failed_on: &BTreeSet<WorkerId>) -> bool {
        self.facts
            .workers
            .iter()
            .any(|(id, worker)| !worker.is_finishing && !failed_on.contains(id) && fleet::could_run(&worker.offer, needs))
    }
}
