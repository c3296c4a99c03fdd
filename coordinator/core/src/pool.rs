//! Workers with room, in the order in which a plan takes them: what a plan costs does not depend on how many are idle.
//!
//! Part of the index: it follows from the registered workers and from the live leases. A pool is what workers of one shape have: the same
//! systems and features. Invariant: a worker is in its pool just while it has a free slot (or light slot) and does not finish.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use core::cmp::Reverse;

use kiln_wire::{Epoch, Resources, Timestamp, WorkerId};

use crate::fair::Whole;
use crate::farm::Facts;
use crate::fleet::{Free, Worker};
use crate::index::Index;

/// Which jobs a worker could run, but for memory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    pub systems: BTreeSet<String>,
    pub features: BTreeSet<String>,
}

/// A registered worker, as far as a plan looks at it. Ordered by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seat {
    pub id: WorkerId,
    pub epoch: Epoch,
    pub capacity: Resources,
    pub speed_per_mille: u32,
    pub fetch_mib_per_second: u32,
    pub shape: Arc<Shape>,
}

/// The order of workers: the fastest one last, then the one with most left, then the one whose name comes first.
pub(crate) type OpenEntry = (u32, Free, Reverse<Arc<Seat>>);

/// The same for light jobs: by light slots that are free.
pub(crate) type LightEntry = (u32, Reverse<Arc<Seat>>);

/// Workers of one shape with room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pool {
    pub open: BTreeSet<OpenEntry>,
    pub light: BTreeSet<LightEntry>,
}

/// The registered workers, and those with room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fleet {
    pub seats: BTreeMap<WorkerId, Arc<Seat>>,
    /// No empty pools.
    pub pools: BTreeMap<Arc<Shape>, Pool>,
    /// What all of them have.
    pub whole: Whole,
}

impl Index {
    /// Enters a registered worker. It must not be seated.
    pub fn seat(&mut self, facts: &Facts, id: &WorkerId) {
        let Some(worker) = facts.workers.get(id) else { return };
        let Worker { epoch, offer, .. } = worker;
        let shape = Shape { systems: offer.systems.clone(), features: offer.features.clone() };
        let shape = self.fleet.pools.get_key_value(&shape).map_or_else(|| Arc::new(shape), |(known, _)| Arc::clone(known));
        let seat = Seat {
            id: id.clone(),
            epoch: *epoch,
            capacity: offer.capacity,
            speed_per_mille: offer.speed_per_mille,
            fetch_mib_per_second: offer.fetch_mib_per_second,
            shape,
        };
        self.fleet.seats.insert(id.clone(), Arc::new(seat));
        self.fleet.whole = self.fleet.whole.changed(offer.capacity, offer.slots, u64::saturating_add);
        self.open(facts, id);
    }

    /// Takes a worker out, before it changes or leaves.
    pub fn unseat(&mut self, facts: &Facts, id: &WorkerId) {
        self.close(facts, id);
        if let Some(worker) = facts.workers.get(id) {
            self.fleet.whole = self.fleet.whole.changed(worker.offer.capacity, worker.offer.slots, u64::saturating_sub);
        }
        self.fleet.seats.remove(id);
    }

    /// Enters what a worker has free. Undoes [`Self::close`].
    pub fn open(&mut self, facts: &Facts, id: &WorkerId) {
        let Some((seat, free)) = self.seat_with_room(facts, id) else { return };
        let pool = self.fleet.pools.entry(Arc::clone(&seat.shape)).or_default();
        if free.slots > 0 {
            pool.open.insert((seat.speed_per_mille, free, Reverse(Arc::clone(&seat))));
        }
        if free.light > 0 {
            pool.light.insert((free.light, Reverse(seat)));
        }
    }

    /// Takes out what a worker has free, before that changes.
    pub fn close(&mut self, facts: &Facts, id: &WorkerId) {
        let Some((seat, free)) = self.seat_with_room(facts, id) else { return };
        let Some(pool) = self.fleet.pools.get_mut(&seat.shape) else { return };
        pool.open.remove(&(seat.speed_per_mille, free, Reverse(Arc::clone(&seat))));
        pool.light.remove(&(free.light, Reverse(Arc::clone(&seat))));
        if pool.open.is_empty() && pool.light.is_empty() {
            self.fleet.pools.remove(&seat.shape);
        }
    }

    fn seat_with_room(&self, facts: &Facts, id: &WorkerId) -> Option<(Arc<Seat>, Free)> {
        let seat = self.fleet.seats.get(id)?;
        let free = self.free_on(facts, id)?;
        (free.slots > 0 || free.light > 0).then(|| (Arc::clone(seat), free))
    }

    /// Returns what a registered worker's live leases leave free. A worker that finishes or rests has nothing free.
    pub fn free_on(&self, facts: &Facts, worker: &WorkerId) -> Option<Free> {
        let known = facts.workers.get(worker)?;
        if known.is_finishing {
            return Some(Free::NONE);
        }
        let began = |since: Timestamp| {
            let mut held =
                self.loads.get(worker).into_iter().flat_map(|load| &load.jobs).filter_map(|key| facts.jobs.get(key)?.leased_on(worker));
            held.any(|running| running.started_at >= since)
        };
        let bound = |free: Free| facts.health.get(worker).map_or(free, |health| health.bound(free, began));
        let whole = Free::whole(&known.offer);
        let Some(load) = self.loads.get(worker) else { return Some(bound(whole)) };
        let free = Free {
            cores: whole.cores.saturating_sub(load.used.cores),
            slots: whole.slots.saturating_sub(load.slots()),
            memory_mib: whole.memory_mib.saturating_sub(load.used.memory_mib),
            light: whole.light.saturating_sub(load.light),
        };
        Some(bound(free))
    }
}
