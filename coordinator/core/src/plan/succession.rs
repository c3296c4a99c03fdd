//! Succession: a job takes the place of an attempt whose builder has exited, while that one uploads what it made.
//!
//! Which attempts these are the leader alone knows, from what workers say; `Assign` names the attempt, and from there on the facts say
//! that it holds nothing. One placement takes one place at most. Source: ADR 0045.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use kiln_wire::{AttemptId, Resources, WorkerId};

use crate::farm::Farm;
use crate::fleet::Free;

/// A worker on which attempts only upload.
pub(super) struct Succession {
    /// What it has without their places.
    plain: Free,
    /// Their shares, the next place last.
    places: Vec<(AttemptId, Resources)>,
}

impl Succession {
    /// Returns those of some attempts that hold a slot of a worker; none if there are none, or it takes nothing.
    pub fn of(farm: &Farm, worker: &WorkerId, attempts: &BTreeSet<AttemptId>) -> Option<Self> {
        if !farm.takes_successors(worker) {
            return None;
        }
        let running = farm.index.loads.get(worker)?.jobs.iter().filter_map(|key| farm.job(*key).leased_on(worker));
        let holds = running.filter(|running| !running.light && !running.relieved && attempts.contains(&running.attempt));
        let places: Vec<(AttemptId, Resources)> = holds.map(|running| (running.attempt, running.granted)).collect();
        (!places.is_empty()).then_some(Self { plain: farm.index.free_on(&farm.facts, worker)?, places })
    }

    /// Returns what the next placement finds free.
    pub fn shown(&self) -> Free {
        self.places.last().map_or(self.plain, |(_, share)| self.plain.give(*share))
    }

    /// Takes a share that fits what is shown: of what is free without a place if it can. Returns what is shown then, and whose place was
    /// taken.
    pub fn take(&mut self, granted: Resources) -> (Free, Option<AttemptId>) {
        if let Some(rest) = self.plain.take(granted) {
            self.plain = rest;
            return (self.shown(), None);
        }
        let shown = self.shown();
        let (attempt, _) = self.places.pop().expect("what does not fit without a place fits with one");
        self.plain = shown.take(granted).expect("whoever takes has looked whether it fits");
        (self.shown(), Some(attempt))
    }
}
