//! Lanes: the ready jobs of one class, in the order in which they are placed.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::iter::Peekable;

use kiln_wire::{Timestamp, WorkerId};

use crate::farm::Farm;
use crate::index::ReadyEntry;
use crate::job::Needs;
use crate::report::{WaitReason, Waiting};

/// The ready jobs of one class, in order.
pub(super) struct Lane<'a> {
    pub needs: Arc<Needs>,
    ready: Option<Peekable<alloc::collections::btree_set::Iter<'a, ReadyEntry>>>,
    /// Jobs that were looked at and not taken yet, in order.
    ahead: VecDeque<ReadyEntry>,
    /// Jobs whose back-off is over, last one first.
    retried: Vec<ReadyEntry>,
    /// Jobs that are not placed yet.
    pub left: usize,
    /// Jobs that were passed over because they failed wherever there is room.
    pub failed_there: usize,
    /// Jobs that were passed over because they would keep a worker longer than it is free for.
    pub outlasting: usize,
    /// No worker has room for the class but the one that is kept.
    pub full: bool,
    /// No worker has room for the class, and why.
    pub closed: Option<WaitReason>,
    /// Pools of workers that could run the class, by their place in the plan's space.
    pub able: Option<Vec<usize>>,
}

impl Lane<'_> {
    /// Takes the next job.
    pub fn next(&mut self) -> Option<ReadyEntry> {
        self.ahead.pop_front().or_else(|| self.draw())
    }

    /// Returns those that come next, at most `count`, as far as they have at least this rank.
    pub fn ahead(&mut self, count: usize, rank_ms_min: u64) -> impl Iterator<Item = &ReadyEntry> {
        let near = move |entry: &ReadyEntry| entry.0.0 >= rank_ms_min;
        while self.ahead.len() < count && self.ahead.back().is_none_or(near) {
            let Some(entry) = self.draw() else { break };
            self.ahead.push_back(entry);
        }
        self.ahead.iter().take(count).take_while(move |entry| near(entry))
    }

    /// Puts a job back that was taken, and takes the one that comes at some place after it.
    pub fn swap(&mut self, entry: ReadyEntry, at: usize) -> Option<ReadyEntry> {
        let other = self.ahead.remove(at);
        self.ahead.push_front(entry);
        other
    }

    fn draw(&mut self) -> Option<ReadyEntry> {
        let ready = self.ready.as_mut().and_then(|ready| ready.peek().copied());
        match (ready, self.retried.last()) {
            (Some(first), Some(other)) if other < first => self.retried.pop(),
            (None, Some(_)) => self.retried.pop(),
            (Some(_), _) => self.ready.as_mut().and_then(|ready| ready.next().cloned()),
            (None, None) => None,
        }
    }

    /// Returns what is left, with the reasons.
    pub fn waiting(&self, farm: &Farm, away: &BTreeSet<WorkerId>) -> impl Iterator<Item = Waiting> {
        let full = match self.closed.clone().unwrap_or(WaitReason::PlanFull) {
            WaitReason::Busy => farm.without_room(&self.needs, away),
            other => other,
        };
        let entry = |reason: WaitReason, count: usize| Waiting {
            needs: (*self.needs).clone(),
            reason,
            count: u64::try_from(count).unwrap_or(u64::MAX),
        };
        let left = (self.left > 0).then(|| entry(farm.unplaceable(&self.needs).unwrap_or(full), self.left));
        let failed_there = (self.failed_there > 0).then(|| entry(WaitReason::FailedThere, self.failed_there));
        let outlasting = (self.outlasting > 0).then(|| entry(WaitReason::Outlasts, self.outlasting));
        left.into_iter().chain(failed_there).chain(outlasting)
    }
}

/// Returns the classes with ready jobs, and those ready jobs whose back-off lasts.
pub(super) fn lanes(farm: &Farm, now: Timestamp) -> (Vec<Lane<'_>>, Vec<Waiting>) {
    let mut retried: BTreeMap<Arc<Needs>, BTreeSet<ReadyEntry>> = BTreeMap::new();
    let mut backing_off: BTreeMap<Arc<Needs>, u64> = BTreeMap::new();
    for (at, key) in &farm.index.delayed {
        let job = farm.job(*key);
        if *at <= now {
            let entry = (Reverse(farm.index.rank_ms(*key)), Arc::clone(&job.derivation), *key);
            retried.entry(farm.index.needs_of(*key, job)).or_default().insert(entry);
        } else {
            *backing_off.entry(farm.index.needs_of(*key, job)).or_default() += 1;
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
        ahead: VecDeque::new(),
        retried: retried.into_iter().rev().collect(),
        left,
        failed_there: 0,
        outlasting: 0,
        full: false,
        closed: None,
        able: None,
    }
}
