//! What a plan has left of the fleet: the pools as they are, and over them what the plan took.
//!
//! A pool is looked at from its top, and no further than it must: what was looked at is `seen`, the rest stays where it is.

use alloc::collections::btree_set::Iter;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::iter::{Peekable, Rev};

use kiln_wire::{AttemptId, Resources, WorkerId};

use super::succession::Succession;
use crate::farm::Farm;
use crate::fleet::{self, Free};
use crate::job::Needs;
use crate::pool::{LightEntry, OpenEntry, Seat, Shape};

/// The workers that a plan may use.
pub(super) struct Space<'a> {
    pub farm: &'a Farm,
    pub away: &'a BTreeSet<WorkerId>,
    pools: Vec<PoolSpace<'a>>,
    /// What is left of workers that the plan has used, or on which attempts only upload.
    used: Used<'a>,
    /// These attempts.
    successions: BTreeMap<&'a WorkerId, Succession>,
}

type Used<'a> = BTreeMap<&'a WorkerId, Free>;
type Rest<'a> = Peekable<Rev<Iter<'a, OpenEntry>>>;

struct PoolSpace<'a> {
    shape: &'a Arc<Shape>,
    /// Open workers that were looked at, as they are by now.
    seen: BTreeSet<OpenEntry>,
    /// Those that were not, as they were.
    rest: Rest<'a>,
    /// Workers with light slots, and how many of the first one's are left.
    light: Peekable<Rev<Iter<'a, LightEntry>>>,
    light_left: u32,
}

impl<'a> Space<'a> {
    pub fn of(farm: &'a Farm, away: &'a BTreeSet<WorkerId>, winding: &BTreeMap<WorkerId, BTreeSet<AttemptId>>) -> Self {
        let pools = farm.index.fleet.pools.iter().map(|(shape, pool)| PoolSpace {
            shape,
            seen: BTreeSet::new(),
            rest: pool.open.iter().rev().peekable(),
            light: pool.light.iter().rev().peekable(),
            light_left: 0,
        });
        let mut space = Self { farm, away, pools: pools.collect(), used: BTreeMap::new(), successions: BTreeMap::new() };
        for (worker, attempts) in winding {
            space.succeed(worker, attempts);
        }
        space
    }

    /// Counts what attempts hold that only upload as free.
    fn succeed(&mut self, worker: &WorkerId, attempts: &BTreeSet<AttemptId>) {
        let Some((id, seat)) = self.farm.index.fleet.seats.get_key_value(worker) else { return };
        let Some(succession) = Succession::of(self.farm, id, attempts) else { return };
        let at = self.pools.iter().position(|pool| *pool.shape == seat.shape).unwrap_or_else(|| {
            self.pools.push(PoolSpace::full(&seat.shape));
            self.pools.len() - 1
        });
        let shown = succession.shown();
        self.pools[at].seen.insert((seat.speed_per_mille, shown, Reverse(Arc::clone(seat))));
        self.used.insert(id, shown);
        self.successions.insert(id, succession);
    }

    /// Returns the pools whose workers could run a class, but for memory.
    pub fn able(&self, needs: &Needs) -> Vec<usize> {
        let suits = |(at, pool): (usize, &PoolSpace<'_>)| fleet::suits(&pool.shape.systems, &pool.shape.features, needs).then_some(at);
        self.pools.iter().enumerate().filter_map(suits).collect()
    }

    /// Returns whether a worker is of one of some pools.
    pub fn holds(&self, able: &[usize], seat: &Seat) -> bool {
        able.iter().any(|at| *self.pools[*at].shape == seat.shape)
    }

    /// Returns the first worker of some pools, best one first, that `fits`, with what it has free.
    pub fn best(&mut self, able: &[usize], fits: impl Fn(&Seat, Free) -> bool) -> Option<(Arc<Seat>, Free)> {
        let (away, used) = (self.away, &self.used);
        let found = able.iter().filter_map(|at| self.pools[*at].best(used, |seat, free| !away.contains(&seat.id) && fits(seat, free)));
        // The greatest one of the pools' greatest.
        found.max().map(|(_, free, Reverse(seat))| (seat, free))
    }

    /// Returns the workers of some pools with a free slot, best one first, at most `count` of each pool.
    pub fn first(&mut self, able: &[usize], count: usize) -> Vec<(Arc<Seat>, Free)> {
        let mut first = Vec::new();
        for at in able {
            let pool = &mut self.pools[*at];
            pool.see(&self.used, count);
            let open = pool.seen.iter().rev().filter(|(.., Reverse(seat))| !self.away.contains(&seat.id)).take(count);
            first.extend(open.map(|(_, free, Reverse(seat))| (Arc::clone(seat), *free)));
        }
        first
    }

    /// Returns what the plan has left of a worker by its name, if it has a session and may be used.
    pub fn named(&self, id: &WorkerId) -> Option<(Arc<Seat>, Free)> {
        let seat = self.farm.index.fleet.seats.get(id).filter(|_| !self.away.contains(id))?;
        let free = self.used.get(id).copied().or_else(|| self.farm.index.free_on(&self.farm.facts, id))?;
        Some((Arc::clone(seat), free))
    }

    /// Takes a share of a worker that has room for it. Returns the attempt whose place is taken, if there is none without.
    pub fn take(&mut self, seat: &Arc<Seat>, granted: Resources) -> Option<AttemptId> {
        let (id, known) = self.farm.index.fleet.seats.get_key_value(&seat.id)?;
        let free = self.used.get(id).copied().or_else(|| self.farm.index.free_on(&self.farm.facts, id)).unwrap_or(Free::NONE);
        let (rest, after) = match self.successions.get_mut(id) {
            Some(succession) => succession.take(granted),
            None => (free.take(granted).expect("whoever takes has looked whether it fits"), None),
        };
        self.used.insert(id, rest);
        let pool = self.pools.iter_mut().find(|pool| *pool.shape == seat.shape)?;
        // If it was not looked at yet, it is passed over where it lies.
        pool.seen.remove(&(seat.speed_per_mille, free, Reverse(Arc::clone(known))));
        if rest.slots > 0 {
            pool.seen.insert((seat.speed_per_mille, rest, Reverse(Arc::clone(known))));
        }
        after
    }

    /// Takes a light slot of a worker of one of some pools. Returns the worker.
    pub fn take_light(&mut self, able: &[usize], avoid: &BTreeSet<WorkerId>) -> Option<Arc<Seat>> {
        able.iter().find_map(|at| self.pools[*at].take_light(|seat| !self.away.contains(&seat.id) && !avoid.contains(&seat.id)))
    }
}

impl<'a> PoolSpace<'a> {
    /// A pool in which no worker has room.
    fn full(shape: &'a Arc<Shape>) -> Self {
        let (rest, light) = (Iter::default().rev().peekable(), Iter::default().rev().peekable());
        Self { shape, seen: BTreeSet::new(), rest, light, light_left: 0 }
    }

    fn best(&mut self, used: &Used<'_>, fits: impl Fn(&Seat, Free) -> bool) -> Option<OpenEntry> {
        let mut below: Option<OpenEntry> = None;
        loop {
            let seen = match &below {
                None => self.seen.last(),
                Some(below) => self.seen.range(..below.clone()).next_back(),
            };
            if next_unused(&mut self.rest, used).is_some_and(|rest| seen.is_none_or(|seen| rest > seen)) {
                self.seen.extend(self.rest.next().cloned());
                continue;
            }
            let entry = seen?.clone();
            if fits(&entry.2.0, entry.1) {
                return Some(entry);
            }
            below = Some(entry);
        }
    }

    /// Looks at `count` workers more, or at all that there are.
    fn see(&mut self, used: &Used<'_>, count: usize) {
        while self.seen.len() < count && next_unused(&mut self.rest, used).is_some() {
            self.seen.extend(self.rest.next().cloned());
        }
    }

    fn take_light(&mut self, may: impl Fn(&Seat) -> bool) -> Option<Arc<Seat>> {
        while let Some((count, Reverse(seat))) = self.light.peek() {
            if self.light_left == 0 {
                self.light_left = *count;
            }
            if !may(seat) {
                (self.light_left, _) = (0, self.light.next());
                continue;
            }
            let seat = Arc::clone(seat);
            self.light_left -= 1;
            if self.light_left == 0 {
                self.light.next();
            }
            return Some(seat);
        }
        None
    }
}

/// Returns the next worker that the plan has not used: those that it has are among the seen ones, if they have room.
fn next_unused<'a>(rest: &mut Rest<'a>, used: &Used<'_>) -> Option<&'a OpenEntry> {
    while rest.next_if(|(.., Reverse(seat))| used.contains_key(&seat.id)).is_some() {}
    rest.peek().copied()
}
