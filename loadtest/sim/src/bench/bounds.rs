//! What no schedule can be shorter than.
//!
//! Three bounds, each valid alone: the longest path; the work on a resource over what the fleet has of it, for all jobs and for those that
//! only some of the workers run; and windows: what must lie between two moments fits between them. The window bound is the larger of
//! all three kinds, for it holds them as special cases. Source: Fernandez and Bussell 1973, with heads and tails instead of a deadline.

use std::collections::BTreeMap;

use super::fleet::{Fleet, share};
use super::rank::{heads, upward};
use super::workload::{JobNo, Workload};

/// Lower bounds of the makespan.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bounds {
    /// The longest path, from when its first job is asked for.
    pub path_ms: u64,
    /// The most loaded resource of the most loaded set of workers.
    pub work_ms: u64,
    /// Every resource of every set of workers that is the only one for some jobs.
    pub works: Vec<(String, u64)>,
    /// The window bound.
    pub window_ms: u64,
}

/// Returns all bounds. O(windows × jobs) for each resource of each set of workers.
pub(crate) fn bounds(load: &Workload, fleet: &Fleet) -> Bounds {
    let length = |job: JobNo| load.task(job).duration_ms;
    let (head, rank) = (heads(load, length), upward(load, length));
    let path_ms = load.numbers().map(|job| head[job.at()] + rank[job.at()]).max().unwrap_or(0);
    let mut by_tail: Vec<JobNo> = load.numbers().collect();
    by_tail.sort_by_key(|job| std::cmp::Reverse(rank[job.at()] - length(*job)));
    let starts = starts(&head);
    let (mut works, mut window_ms) = (Vec::new(), path_ms);
    for (able, name) in worker_sets(load, fleet) {
        let jobs: Vec<JobNo> = by_tail.iter().copied().filter(|job| within(fleet.able(load.task(*job).class), &able)).collect();
        for (resource, need, capacity) in demands(load, fleet, &able, &jobs) {
            let spread = |amount: u128| u64::try_from(amount.div_ceil(capacity)).unwrap_or(u64::MAX);
            let weighed: Vec<Weighed> = jobs
                .iter()
                .zip(&need)
                .map(|(job, need)| Weighed {
                    head_ms: head[job.at()],
                    tail_ms: rank[job.at()] - length(*job),
                    amount: u128::from(*need) * u128::from(length(*job)),
                })
                .filter(|weighed| weighed.amount > 0)
                .collect();
            works.push((format!("{resource} of {name}"), spread(weighed.iter().map(|weighed| weighed.amount).sum())));
            window_ms = window_ms.max(starts.iter().map(|start| window(*start, &weighed, spread)).max().unwrap_or(0));
        }
    }
    let work_ms = works.iter().map(|(_, ms)| *ms).max().unwrap_or(0);
    Bounds { path_ms, work_ms, works, window_ms }
}

/// A job, as windows see it.
struct Weighed {
    head_ms: u64,
    tail_ms: u64,
    /// Of the resource, times milliseconds.
    amount: u128,
}

/// Returns the best bound of windows that begin at `start_ms`: what cannot start before it and leaves at least `tail_ms` behind it runs
/// between the two. Jobs come with the longest tail first.
fn window(start_ms: u64, jobs: &[Weighed], spread: impl Fn(u128) -> u64) -> u64 {
    let (mut amount, mut best) = (0, 0);
    for job in jobs.iter().filter(|job| job.head_ms >= start_ms) {
        amount += job.amount;
        best = best.max(start_ms.saturating_add(spread(amount)).saturating_add(job.tail_ms));
    }
    best
}

/// Returns moments at which windows may begin. Any choice gives a bound; more of them a better one.
fn starts(head: &[u64]) -> Vec<u64> {
    let mut heads = head.to_vec();
    heads.sort_unstable();
    let last = heads.last().copied().unwrap_or(0);
    let by_job = (0..WINDOWS).filter_map(|at| heads.get(at * heads.len() / WINDOWS).copied());
    // The least head from there on: a window that begins between two heads is the worse for it.
    let by_time = (0..WINDOWS as u64).filter_map(|at| heads.get(heads.partition_point(|head| *head < last * at / WINDOWS as u64)).copied());
    let mut starts: Vec<u64> = by_job.chain(by_time).collect();
    starts.sort_unstable();
    starts.dedup();
    starts
}

/// Beginnings of windows by job and by time.
const WINDOWS: usize = 256;

/// Returns the sets of workers that are all there is for some class, each with a name.
fn worker_sets(load: &Workload, fleet: &Fleet) -> BTreeMap<Vec<bool>, String> {
    let mut sets: BTreeMap<Vec<bool>, Vec<String>> = BTreeMap::new();
    for (number, class) in load.classes.iter().enumerate() {
        let features: String = class.features.iter().map(|feature| format!("+{feature}")).collect();
        sets.entry(fleet.able(number).to_vec()).or_default().push(format!("{}{features}", class.system));
    }
    sets.into_iter().map(|(set, names)| (set, names.join(", "))).collect()
}

fn within(set: &[bool], other: &[bool]) -> bool {
    set.iter().zip(other).all(|(is, may)| !is || *may)
}

/// Returns for each resource what each job needs of it at least, and what the set of workers has.
fn demands(load: &Workload, fleet: &Fleet, set: &[bool], jobs: &[JobNo]) -> Vec<(&'static str, Vec<u64>, u128)> {
    let workers: Vec<_> = fleet.workers.iter().zip(set).filter(|(_, is)| **is).map(|(worker, _)| &worker.offer).collect();
    let whole = |of: &dyn Fn(&kiln_wire::worker::Offer) -> u64| workers.iter().map(|offer| u128::from(of(offer))).sum();
    let need = |of: &dyn Fn(kiln_wire::Resources) -> u64| {
        let least = |job: &JobNo| {
            let able = fleet.able(load.task(*job).class);
            let workers = fleet.workers.iter().zip(able).filter(|(_, is)| **is);
            workers.map(|(worker, _)| of(share(&worker.offer, load.task(*job)))).min().unwrap_or(0)
        };
        jobs.iter().map(least).collect::<Vec<u64>>()
    };
    let all = [
        ("slots", vec![1; jobs.len()], whole(&|offer| u64::from(offer.slots))),
        ("cores", need(&|share| u64::from(share.cores)), whole(&|offer| u64::from(offer.capacity.cores))),
        ("memory", need(&|share| share.memory_mib), whole(&|offer| offer.capacity.memory_mib)),
    ];
    all.into_iter().filter(|(_, need, capacity)| *capacity > 0 && need.iter().any(|need| *need > 0)).collect()
}
