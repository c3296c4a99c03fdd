//! Orders of jobs that follow from the graph: paths to its ends, and dependents.

use super::workload::{JobNo, Workload};

/// Returns for each job the longest path from its start to an end of the graph, its own length included (HEFT's upward rank).
pub(crate) fn upward(load: &Workload, length: impl Fn(JobNo) -> u64) -> Vec<u64> {
    let mut rank = vec![0; load.tasks.len()];
    for job in load.numbers().rev() {
        let behind = load.task(job).dependents.iter().map(|dependent| rank[dependent.at()]).max().unwrap_or(0);
        rank[job.at()] = behind + length(job);
    }
    rank
}

/// Returns for each job the earliest time at which it can start: when it is asked for, or when the longest path before it ends.
pub(crate) fn heads(load: &Workload, length: impl Fn(JobNo) -> u64) -> Vec<u64> {
    let mut head: Vec<u64> = Vec::with_capacity(load.tasks.len());
    for job in load.numbers() {
        let before = load.task(job).inputs.iter().map(|input| head[input.at()] + length(*input)).max().unwrap_or(0);
        head.push(before.max(load.asked_ms(job)));
    }
    head
}
