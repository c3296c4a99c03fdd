//! A worker is kept for the most urgent job that fits nowhere, and what is over before that starts runs there meanwhile.
//!
//! Invariants: nothing is placed on the kept worker that is expected to end after the job that it is kept for could start, and nothing at
//! all once something runs there for longer than was expected. Hence that time never moves back for as long as the same job waits, and the
//! job starts once what ran there has ended. Source: EASY, Lifka 1995; ADR 0037.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Reverse;

use kiln_wire::{Resources, Timestamp};

use super::{Planner, has_room};
use crate::farm::Farm;
use crate::fleet::{self, Free};
use crate::job::{JobKey, Needs};
use crate::late::on_worker_ms;
use crate::pool::Seat;
use crate::report::WaitReason;

/// A worker that is kept.
pub(super) struct Reservation {
    pub seat: Arc<Seat>,
    /// When the job could start there; none if nothing may run there meanwhile.
    until: Option<Timestamp>,
}

/// Whether a job may run on the kept worker.
pub(super) enum Backfill {
    Fits(Arc<Seat>, Free),
    /// There is room, and it would stay too long.
    Outlasts,
    NoRoom,
}

impl Planner<'_> {
    /// Says whether a job that fits nowhere else may run on the kept worker.
    pub(super) fn on_reserved(&self, able: &[usize], key: JobKey, needs: &Needs) -> Backfill {
        let Some(Reservation { seat, until: Some(until) }) = &self.reservation else { return Backfill::NoRoom };
        let suits = self.space.holds(able, seat);
        let Some((seat, free)) = self.space.named(&seat.id).filter(|(seat, free)| suits && has_room(seat, *free, needs)) else {
            return Backfill::NoRoom;
        };
        let takes_ms = on_worker_ms(self.space.farm.index.expected(key).wall_ms, seat.speed_per_mille);
        if self.now.after_ms(takes_ms) <= *until { Backfill::Fits(seat, free) } else { Backfill::Outlasts }
    }

    /// Keeps the worker on which a class that fits nowhere could start first, unless one is kept already. Returns why the class waits.
    pub(super) fn reserve(&mut self, able: &[usize], needs: &Needs) -> WaitReason {
        if let Some(Reservation { seat, .. }) = &self.reservation {
            let room = self.space.named(&seat.id).is_some_and(|(seat, free)| has_room(&seat, free, needs));
            return if room && self.space.holds(able, seat) { WaitReason::Reserved } else { WaitReason::Busy };
        }
        let (farm, now) = (self.space.farm, self.now);
        let open = self.space.first(able, CANDIDATES_MAX).into_iter();
        let could = open.filter(|(seat, _)| needs.resources.memory_mib <= seat.capacity.memory_mib);
        self.reservation = if farm.facts.estimates.is_empty() {
            // Guesses decide nothing: the worker with most left, and nothing else runs there.
            could
                .max_by(|(a, a_free), (b, b_free)| (a_free, Reverse(a)).cmp(&(b_free, Reverse(b))))
                .map(|(seat, _)| Reservation { seat, until: None })
        } else {
            let timed = could.map(|(seat, free)| {
                let (start, late) = farm.start_on(&seat, free, needs, now);
                (start, Reverse(free), seat, late)
            });
            timed.min().map(|(start, _, seat, late)| Reservation { seat, until: (!late).then_some(start) })
        };
        WaitReason::Busy
    }
}

impl Farm {
    /// Returns when a worker has room for a job, if nothing more is placed there, and whether something runs there for longer than was
    /// expected. What does so counts as ending when it should have: as long as it runs, nothing else is a better choice for it.
    fn start_on(&self, seat: &Seat, free: Free, needs: &Needs, now: Timestamp) -> (Timestamp, bool) {
        let running = self.index.loads.get(&seat.id).into_iter().flat_map(|load| &load.jobs).filter_map(|key| {
            let running = self.job(*key).leased_on(&seat.id).filter(|running| !running.light && !running.relieved)?;
            let takes_ms = on_worker_ms(self.index.expected(*key).wall_ms, seat.speed_per_mille);
            Some((running.started_at.after_ms(takes_ms), running.granted))
        });
        let mut ends: Vec<(Timestamp, Resources)> = running.collect();
        ends.sort_unstable_by_key(|(at, granted)| (*at, granted.cores, granted.memory_mib));
        let late = ends.first().is_some_and(|(at, _)| *at < now);
        let demand = fleet::grant(seat.capacity, needs);
        let (mut free, mut start) = (free, now);
        for (at, granted) in ends {
            if free.take(demand).is_some() {
                break;
            }
            free = free.give(granted);
            start = at;
        }
        (start, late)
    }
}

/// Workers that are looked at for a reservation, those with most left first: a bound on what it costs.
const CANDIDATES_MAX: usize = 32;
