//! Lanes: the ready jobs of one class; and their lines: those of one party, in the order in which they are placed.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::iter::Peekable;

use kiln_wire::{Timestamp, WorkerId};

use crate::fair::Party;
use crate::farm::Farm;
use crate::index::{Lines, ReadyEntry};
use crate::job::Needs;
use crate::report::{WaitReason, Waiting};

/// The ready jobs of one class.
pub(super) struct Lane {
    pub needs: Arc<Needs>,
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

/// The ready jobs of one class and one party, in order.
pub(super) struct Line<'a> {
    /// The class, by its place among the lanes.
    pub lane: usize,
    ready: Option<Peekable<alloc::collections::btree_set::Iter<'a, ReadyEntry>>>,
    /// Jobs that were looked at and not taken yet, in order.
    ahead: VecDeque<ReadyEntry>,
    /// Jobs whose back-off is over, last one first.
    retried: Vec<ReadyEntry>,
}

/// The ready jobs of a farm, as one plan takes them.
pub(super) struct Lanes<'a> {
    pub lanes: Vec<Lane>,
    pub lines: Vec<Line<'a>>,
    /// By line.
    pub parties: Vec<Arc<Party>>,
    /// Ready jobs whose back-off lasts.
    pub waiting: Vec<Waiting>,
}

impl Line<'_> {
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
}

impl Lane {
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

/// Returns the classes with ready jobs and the lines of each, and those ready jobs whose back-off lasts.
pub(super) fn lanes(farm: &Farm, now: Timestamp) -> Lanes<'_> {
    let mut retried: BTreeMap<Arc<Needs>, BTreeMap<Arc<Party>, BTreeSet<ReadyEntry>>> = BTreeMap::new();
    let mut backing_off: BTreeMap<Arc<Needs>, u64> = BTreeMap::new();
    for (at, key) in &farm.index.delayed {
        let job = farm.job(*key);
        let needs = farm.index.needs_of(*key, job);
        if *at <= now {
            let entry = (Reverse(farm.index.rank_ms(*key)), Arc::clone(&job.derivation), *key);
            let party = farm.index.party_of(&farm.facts, *key, job);
            retried.entry(needs).or_default().entry(party).or_default().insert(entry);
        } else {
            *backing_off.entry(needs).or_default() += 1;
        }
    }
    let waiting = backing_off.into_iter().map(|(needs, count)| Waiting { needs: (*needs).clone(), reason: WaitReason::BackOff, count });
    let mut lanes = Lanes { lanes: Vec::new(), lines: Vec::new(), parties: Vec::new(), waiting: waiting.collect() };
    for (needs, ready) in &farm.index.ready {
        let again = retried.remove(needs).unwrap_or_default();
        lanes.enter(needs, Some(ready), again);
    }
    for (needs, again) in retried {
        lanes.enter(&needs, None, again);
    }
    lanes
}

impl<'a> Lanes<'a> {
    fn enter(&mut self, needs: &Arc<Needs>, ready: Option<&'a Lines>, mut retried: BTreeMap<Arc<Party>, BTreeSet<ReadyEntry>>) {
        let mut left = 0;
        for (party, ready) in ready.into_iter().flatten() {
            let again = retried.remove(party).unwrap_or_default();
            left += ready.len() + again.len();
            self.line(party, Some(ready), again);
        }
        for (party, again) in retried {
            left += again.len();
            self.line(&party, None, again);
        }
        self.lanes.push(Lane { needs: Arc::clone(needs), left, failed_there: 0, outlasting: 0, full: false, closed: None, able: None });
    }

    /// Enters a line of the class that is entered next.
    fn line(&mut self, party: &Arc<Party>, ready: Option<&'a BTreeSet<ReadyEntry>>, retried: BTreeSet<ReadyEntry>) {
        let (ready, retried) = (ready.map(|ready| ready.iter().peekable()), retried.into_iter().rev().collect());
        self.lines.push(Line { lane: self.lanes.len(), ready, ahead: VecDeque::new(), retried });
        self.parties.push(Arc::clone(party));
    }
}
