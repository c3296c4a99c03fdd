//! List scheduling by an order that is fixed or counted: the rivals, and the reference.
//!
//! Does not reserve: a job that fits nowhere waits, and those that ask for as much with it; others pass it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use kiln_wire::Resources;

use super::engine::{Placed, Policy, Span, View};
use super::fleet::{Free, WorkerNo, share};
use super::rank::upward;
use super::workload::{JobNo, Workload};

/// Which ready job goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Order {
    /// The one that was ready first.
    Fifo,
    /// The longest one, durations known exactly: Buildbarn's order.
    Longest,
    /// Of the submission that has used least of its share, the one on which most others depend: Hydra's default (lowest share used,
    /// then the number of direct dependents, then the older build).
    Hydra,
    /// The highest upward rank where every job counts 1.
    UnitRank,
    /// The highest upward rank with durations known exactly: the reference.
    Rank,
    /// The highest upward rank over estimates, with a guess by kind where there is none.
    EstimatedRank,
}

/// Class and, where that matters, submission of a queue's jobs.
type Of = (usize, usize);
/// Ready jobs by key, ties by number.
type Queue = BinaryHeap<(u64, Reverse<JobNo>)>;

/// Where a job goes, what it gets there, and what is left.
type Spot = (WorkerNo, Resources, Free);

/// Ready jobs that are looked at for one that lacks least, and how urgent they must be of the first one's rank.
const NEAR: usize = 64;
const NEARLY: (u64, u64) = (9, 10);

/// Jobs without room that are passed over for one that has it.
const PASSED_MAX: usize = 1_000;

/// A list scheduler.
pub(crate) struct List {
    order: Order,
    /// Looks at what workers have.
    locality: bool,
    /// By job; the highest first.
    keys: Vec<u64>,
    queues: BTreeMap<Of, Queue>,
    /// Milliseconds of work that ended, by submission.
    used_ms: Vec<u64>,
    readied: u64,
}

impl List {
    /// Returns a scheduler for a workload. Of the orders, those by ranked durations can heed `locality`: of the few most urgent jobs the one
    /// goes first that lacks least, to the worker that lacks least. The others are as their systems have them.
    pub fn new(load: &Workload, order: Order, locality: bool) -> Self {
        let keys = match order {
            Order::Fifo => Vec::new(),
            Order::Longest => load.tasks.iter().map(|task| task.duration_ms).collect(),
            Order::Hydra => load.tasks.iter().map(|task| task.dependents.len() as u64).collect(),
            Order::UnitRank => upward(load, |_| 1),
            Order::Rank => upward(load, |job| load.task(job).duration_ms),
            Order::EstimatedRank => upward(load, |job| load.task(job).expected_ms),
        };
        let used_ms = vec![0; load.submissions.len()];
        let locality = locality && matches!(order, Order::Rank | Order::EstimatedRank);
        Self { order, locality, keys, queues: BTreeMap::new(), used_ms, readied: 0 }
    }

    /// Returns the queue whose first job goes next, of those that are not closed.
    fn next_queue(&self, load: &Workload, closed: &[Of]) -> Option<Of> {
        let first = |(queue, jobs): (&Of, &Queue)| {
            let (key, job) = jobs.peek().filter(|_| !closed.contains(queue))?;
            Some((Reverse(self.share_used(load, queue.1)), *key, *job, *queue))
        };
        self.queues.iter().filter_map(first).max().map(|(.., queue)| queue)
    }

    fn share_used(&self, load: &Workload, submission: usize) -> u64 {
        match self.order {
            Order::Hydra => self.used_ms[submission] / u64::from(load.submissions[submission].weight.max(1)),
            Order::Fifo | Order::Longest | Order::UnitRank | Order::Rank | Order::EstimatedRank => 0,
        }
    }

    /// Takes the next job of a queue for which there is room. With locality, of the first few that are nearly as urgent as the first one it
    /// is the one that lacks least.
    fn choose(&mut self, view: &View<'_>, free: &[Free], queue: Of) -> Option<(JobNo, Spot)> {
        let looked_at = if self.locality { NEAR } else { 1 };
        let mut jobs = self.queues.remove(&queue)?;
        let mut passed = self.pass(view, free, &mut jobs);
        let first_key = jobs.peek().map_or(u64::MAX, |(key, _)| *key);
        let mut near = Vec::new();
        while near.len() < looked_at
            && let Some(entry) = jobs.peek().copied().filter(|(key, _)| key.saturating_mul(NEARLY.1) >= first_key.saturating_mul(NEARLY.0))
        {
            jobs.pop();
            near.push(entry);
        }
        let spot = |(at, (_, Reverse(job))): (usize, &(u64, Reverse<JobNo>))| {
            let spot = self.spot(view, free, *job)?;
            let lacking = if self.locality { view.caches.lacking_bytes(view.load, *job, spot.0) } else { 0 };
            Some((lacking, at, (*job, spot)))
        };
        let chosen = near.iter().enumerate().filter_map(spot).min_by_key(|(lacking, at, _)| (*lacking, *at));
        near.retain(|(_, Reverse(job))| chosen.is_none_or(|(.., (other, _))| other != *job));
        passed.extend(near);
        jobs.extend(passed);
        self.queues.insert(queue, jobs);
        chosen.map(|(.., chosen)| chosen)
    }

    /// Takes out the first jobs of a queue for which there is no room, until one comes for which there is.
    fn pass(&self, view: &View<'_>, free: &[Free], jobs: &mut Queue) -> Vec<(u64, Reverse<JobNo>)> {
        let (mut passed, mut no_room) = (Vec::new(), BTreeSet::new());
        while let Some((_, Reverse(job))) = jobs.peek().filter(|_| passed.len() < PASSED_MAX) {
            let asked = view.load.task(*job).spec.resources;
            if !no_room.contains(&asked) && self.spot(view, free, *job).is_some() {
                break;
            }
            no_room.insert(asked);
            passed.extend(jobs.pop());
        }
        passed
    }

    fn spot(&self, view: &View<'_>, free: &[Free], job: JobNo) -> Option<Spot> {
        let task = view.load.task(job);
        let fits = |worker: WorkerNo| {
            let share = share(&view.fleet.workers[worker.at()].offer, task);
            let rest = free[worker.at()].take(share).filter(|_| view.fleet.is_able(worker, task.class))?;
            let lacking = if self.locality { view.caches.lacking_bytes(view.load, job, worker) } else { 0 };
            Some(((Reverse(lacking), free[worker.at()], Reverse(worker)), (worker, share, rest)))
        };
        view.fleet.numbers().filter_map(fits).max_by_key(|(order, _)| *order).map(|(_, spot)| spot)
    }
}

impl Policy for List {
    fn arrive(&mut self, _: &Workload, _: usize, _: u64) {}

    fn ready(&mut self, load: &Workload, job: JobNo, _: u64) {
        self.readied += 1;
        let task = load.task(job);
        let submission = if self.order == Order::Hydra { task.submission } else { 0 };
        let key = self.keys.get(job.at()).copied().unwrap_or(u64::MAX - self.readied);
        self.queues.entry((task.class, submission)).or_default().push((key, Reverse(job)));
    }

    fn ended(&mut self, load: &Workload, span: &Span, now_ms: u64) {
        self.used_ms[load.task(span.job).submission] += now_ms - span.start_ms;
    }

    fn place(&mut self, view: &View<'_>) -> Placed {
        let mut free = view.free.to_vec();
        let mut closed = Vec::new();
        let mut placements = Vec::new();
        while free.iter().any(|free| free.slots > 0)
            && let Some(queue) = self.next_queue(view.load, &closed)
        {
            match self.choose(view, &free, queue) {
                Some((job, (worker, share, rest))) => {
                    free[worker.at()] = rest;
                    placements.push((job, worker, share));
                }
                None => closed.push(queue),
            }
        }
        Placed { placements, ..Placed::default() }
    }
}
