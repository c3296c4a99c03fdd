//! The planner: which ready job goes to which worker. Reads the farm, changes nothing; `Assign` checks again.
//!
//! List scheduling by upward rank (HEFT: Topcuoglu, Hariri, Wu 2002), ties by derivation path, among the jobs of whoever's turn it is (see
//! [`crate::fair`]). Ready jobs are planned class by class, so that a class without room costs one look, however many jobs it has. The most urgent job that fits nowhere keeps a worker, on which
//! only what is done before it starts may run (EASY backfilling: Lifka 1995). Source: ADR 0037.

mod copying;
mod lane;
mod near;
mod preempting;
mod reservation;
mod space;
mod succession;
mod yielding;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use kiln_wire::limits::{PLACEMENTS_PER_PLAN_MAX, PREEMPTING_PER_PLAN_MAX};
use kiln_wire::{AttemptId, Lease, Resources, Timestamp, WorkerId};

use self::lane::{Lane, Lanes, Line, lanes};
use self::reservation::{Backfill, Reservation};
use self::space::Space;
use crate::command::Placement;
use crate::fair::Turns;
use crate::farm::Farm;
use crate::fleet::{self, Free, Worker};
use crate::health::Health;
use crate::index::ReadyEntry;
use crate::job::{JobKey, Needs};
use crate::pool::Seat;
use crate::report::{PlanReport, WaitReason};
use crate::wake::WakeReason;

/// Proposed leases, most urgent first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// At most `Limits::placements_max`.
    pub placements: Vec<Placement>,
    /// Leases that end early, so that jobs have room in the next plan: young ones for those of the security class, second attempts for any.
    pub preemptions: Vec<Lease>,
    /// Second attempts at jobs, each with the attempt beside which it runs.
    pub copies: Vec<(AttemptId, Placement)>,
}

/// Bounds of one plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Placements in one plan; what is left is in the next one.
    pub placements_max: usize,
    /// Workers are judged by what fails on them: only in a farm at a version that knows it.
    pub judges: bool,
    /// Jobs may run in two places: only in a farm at a version that knows it.
    pub copies: bool,
}

impl Limits {
    /// What a farm uses.
    pub const STANDARD: Self = Self { placements_max: PLACEMENTS_PER_PLAN_MAX, judges: false, copies: false };
}

impl Default for Limits {
    fn default() -> Self {
        Self::STANDARD
    }
}

/// Places ready jobs on free capacity. Reads the farm, changes nothing. Every ready job is in the plan, or in the report with a reason.
///
/// The security class goes first, then whoever is furthest below its share, then the highest upward rank, ties by derivation path; to the fastest worker, then the one with most free cores, then slots, then
/// memory, ties by its id, unless another one has so much of the inputs that fetching them takes longer. The most urgent job that fits
/// nowhere keeps one worker to itself. A worker on which the job failed for infrastructure reasons is passed over if a registered one is
/// left on which it did not.
pub fn plan(farm: &Farm, now: Timestamp, limits: &Limits) -> (Plan, PlanReport) {
    plan_without(farm, now, limits, &BTreeSet::new())
}

/// As [`plan`], and places nothing on the workers that are `away`: they take nothing new at present, or have no session with the leader, and
/// their next registration would end a lease that they were never told of. No job waits for one of these while another has room.
pub fn plan_without(farm: &Farm, now: Timestamp, limits: &Limits, away: &BTreeSet<WorkerId>) -> (Plan, PlanReport) {
    plan_beside(farm, now, limits, away, &BTreeMap::new())
}

/// As [`plan_without`], and places jobs as well where attempts are `winding` up: their builders have exited, they only upload.
pub fn plan_beside(
    farm: &Farm,
    now: Timestamp,
    limits: &Limits,
    away: &BTreeSet<WorkerId>,
    winding: &BTreeMap<WorkerId, BTreeSet<AttemptId>>,
) -> (Plan, PlanReport) {
    let Lanes { mut lanes, mut lines, parties, mut waiting } = lanes(farm, now);
    let mut turns = Turns::of(farm, now);
    let mut path_ms_max = 0;
    for (line, party) in lines.iter_mut().zip(&parties) {
        let (at, head) = (turns.enter(party), line.next());
        path_ms_max = head.as_ref().map_or(0, |(.., key)| farm.index.path_ms(*key)).max(path_ms_max);
        turns.put(at, head);
    }
    let space = Space::of(farm, away, winding);
    let mut planner = Planner { space, now, path_ms_max, reservation: None, outlasting: 0, looks_left: near::LOOKS_MAX };
    let (mut placements, mut urgent) = (Vec::new(), Vec::new());
    while placements.len() < limits.placements_max {
        let Some((at, entry)) = turns.next() else { break };
        let (line, key) = (&mut lines[at.0], entry.2);
        let lane = &mut lanes[line.lane];
        if lane.closed.is_some() {
            if parties[at.0].security && urgent.len() < PREEMPTING_PER_PLAN_MAX {
                urgent.push((line.lane, key));
                turns.put(at, line.next());
            }
            continue;
        }
        match planner.place(lane, line, entry) {
            Spot::On(placement, granted) => {
                lane.left -= 1;
                turns.charge(at, granted, placement.light);
                placements.push(placement);
            }
            Spot::FailedThere => {
                lane.left -= 1;
                lane.failed_there += 1;
            }
            Spot::Outlasts => {
                lane.left -= 1;
                lane.outlasting += 1;
            }
            Spot::None(reason) => {
                lane.closed = Some(reason);
                if !parties[at.0].security {
                    continue;
                }
                urgent.push((line.lane, key));
            }
        }
        turns.put(at, line.next());
    }
    for lane in &lanes {
        waiting.extend(lane.waiting(farm, away));
    }
    let urgent = urgent.into_iter().map(|(lane, key): (usize, JobKey)| (&*lanes[lane].needs, key));
    let mut preemptions = preempting::preemptions(&planner.space, now, urgent);
    yielding::yielding(&planner.space, &lanes, &mut preemptions);
    let (copies, look_at) = if limits.copies { planner.copies(&lanes) } else { Default::default() };
    let wake = farm.next_wake(now).into_iter().chain(look_at.map(|at| (at, WakeReason::Late))).min();
    (Plan { placements, preemptions, copies }, PlanReport { waiting, wake })
}

/// One plan in the making.
struct Planner<'a> {
    space: Space<'a>,
    now: Timestamp,
    /// The longest path of a class's most urgent job: about what is left of the critical path.
    path_ms_max: u64,
    /// The worker that is kept for the most urgent job without room, so that smaller jobs do not overtake it for ever.
    reservation: Option<Reservation>,
    /// Jobs that were passed over because they outlast the reservation.
    outlasting: usize,
    /// Jobs that it may still look at for one that lacks less.
    looks_left: usize,
}

/// Where a job can go.
enum Spot {
    /// There, with what it is given.
    On(Placement, Resources),
    /// Only where it failed before.
    FailedThere,
    /// Only on the worker that is kept, and not for long enough.
    Outlasts,
    None(WaitReason),
}

impl Planner<'_> {
    fn place(&mut self, lane: &mut Lane, line: &mut Line<'_>, entry: ReadyEntry) -> Spot {
        let able = lane.able.get_or_insert_with(|| self.space.able(&lane.needs)).clone();
        let (farm, needs, key) = (self.space.farm, Arc::clone(&lane.needs), entry.2);
        let failed_on = &farm.job(key).tries.failed_on;
        // What must have memory is held to it, and takes it from others: that is no light job.
        let light = needs.light && needs.resources.memory_mib == 0;
        if let Some(seat) = light.then(|| self.space.take_light(&able, failed_on)).flatten() {
            return Spot::On(Placement { light: true, ..placement(&seat, &entry, Some(Resources::default())) }, Resources::default());
        }
        let (seat, free) = match self.with_room(lane, &able, key, &needs) {
            Ok(found) => found,
            Err(spot) => return spot,
        };
        // On the worker that is kept runs what is over in time, and that was looked at for this job alone.
        let entry = if lane.full { entry } else { self.lacking_least(line, entry, &seat) };
        let key = entry.2;
        let asked = fleet::grant(seat.capacity, &needs);
        let granted = Resources { cores: self.cores(key, asked.cores, free), ..asked };
        let after = self.space.take(&seat, granted);
        // What a farm that learned nothing gives of itself need not be said.
        let said = granted != fleet::grant(seat.capacity, &farm.job(key).needs_next(0));
        Spot::On(Placement { after, ..placement(&seat, &entry, said.then_some(granted)) }, granted)
    }

    /// Finds the worker for a job, with what it has free.
    fn with_room(&mut self, lane: &mut Lane, able: &[usize], key: JobKey, needs: &Needs) -> Result<(Arc<Seat>, Free), Spot> {
        let farm = self.space.farm;
        let failed_on = &farm.job(key).tries.failed_on;
        let kept = self.reservation.as_ref().map(|reservation| reservation.seat.id.clone());
        let room = |seat: &Seat, free: Free| kept.as_ref() != Some(&seat.id) && has_room(seat, free, needs);
        // Once the class has found no room there is none for any of its jobs: plans only take.
        let fresh = if lane.full { None } else { self.space.best(able, |seat, free| room(seat, free) && !failed_on.contains(&seat.id)) };
        if let Some((seat, free)) = fresh {
            return Ok(self.nearer(able, key, needs, failed_on, &seat).unwrap_or((seat, free)));
        }
        let stale = if lane.full || failed_on.is_empty() { None } else { self.space.best(able, room) };
        if let Some(found) = stale {
            return if self.could_run_elsewhere(needs, failed_on) { Err(Spot::FailedThere) } else { Ok(found) };
        }
        lane.full = true;
        match self.on_reserved(able, key, needs) {
            Backfill::Fits(seat, free) if !failed_on.contains(&seat.id) => Ok((seat, free)),
            Backfill::Fits(..) | Backfill::Outlasts if self.outlasting < OUTLASTING_MAX => {
                self.outlasting += 1;
                Err(Spot::Outlasts)
            }
            Backfill::Fits(..) | Backfill::Outlasts | Backfill::NoRoom => Err(Spot::None(self.reserve(able, needs))),
        }
    }

    /// Returns whether a worker that takes jobs could run one with these needs that failed on others.
    fn could_run_elsewhere(&self, needs: &Needs, failed_on: &BTreeSet<WorkerId>) -> bool {
        let could = |worker: &Worker| !worker.is_finishing && fleet::could_run(&worker.offer, needs);
        let facts = &self.space.farm.facts;
        let takes = |id: &WorkerId| !facts.health.get(id).is_some_and(Health::takes_nothing);
        facts.workers.iter().any(|(id, worker)| could(worker) && takes(id) && !failed_on.contains(id) && !self.space.away.contains(id))
    }

    /// Returns the cores that a job gets. On the critical path a job that is known to use them gets more, as far as nobody has them.
    fn cores(&self, key: JobKey, asked: u32, free: Free) -> u32 {
        let index = &self.space.farm.index;
        let critical = index.path_ms(key) / 9 >= self.path_ms_max / 10;
        let busy = u64::from(index.expected(key).cores_hundredths);
        if asked < 2 || !critical || busy < u64::from(asked) * CORES_BUSY_PERCENT {
            return asked;
        }
        asked.max(free.cores.min(asked.saturating_mul(CORES_FACTOR)))
    }
}

fn has_room(seat: &Seat, free: Free, needs: &Needs) -> bool {
    free.take(fleet::grant(seat.capacity, needs)).is_some() && needs.resources.memory_mib <= seat.capacity.memory_mib
}

fn placement(seat: &Seat, entry: &ReadyEntry, resources: Option<Resources>) -> Placement {
    Placement { derivation: (*entry.1).clone(), worker: seat.id.clone(), epoch: seat.epoch, resources, light: false, after: None }
}

/// A job gets at most so many times the cores that it asks for.
const CORES_FACTOR: u32 = 4;

/// And only if it kept this share of those busy that it asks for.
const CORES_BUSY_PERCENT: u64 = 75;

/// Jobs that one plan passes over because they outlast a reservation: a bound on what it costs to look for a shorter one.
const OUTLASTING_MAX: usize = 64;
