//! Workers of a replay, and what is free on them.

use std::collections::BTreeSet;

use kiln_wire::worker::Offer;
use kiln_wire::{Resources, WorkerId};

use super::workload::{Class, Task, Workload};

/// A worker's number in its fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WorkerNo(pub u32);

impl WorkerNo {
    /// Returns its place in [`Fleet::workers`].
    pub fn at(self) -> usize {
        self.0 as usize
    }
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Worker {
    pub id: WorkerId,
    pub offer: Offer,
}

/// All workers of a replay, and which classes each can run.
#[derive(Clone, Debug)]
pub(crate) struct Fleet {
    pub workers: Vec<Worker>,
    /// By class, then by worker.
    able: Vec<Vec<bool>>,
}

impl Fleet {
    /// Returns `count` equal workers that can run everything in the workload.
    pub fn uniform(load: &Workload, count: u32, slots: u32, capacity: Resources) -> Self {
        let systems: BTreeSet<String> = load.classes.iter().map(|class| class.system.clone()).collect();
        let features: BTreeSet<String> = load.classes.iter().flat_map(|class| class.features.clone()).collect();
        let offer = Offer { systems, features, capacity, slots, ..Offer::default() };
        Self::of(load, vec![offer; count as usize])
    }

    /// Returns a fleet with these offers.
    pub fn of(load: &Workload, offers: Vec<Offer>) -> Self {
        let name = |number: usize| WorkerId::parse(&format!("w{number:04}")).expect("a valid name");
        let workers: Vec<Worker> = offers.into_iter().enumerate().map(|(number, offer)| Worker { id: name(number), offer }).collect();
        let runs = |class: &Class| workers.iter().map(|worker| runs(&worker.offer, class)).collect();
        let able = load.classes.iter().map(runs).collect();
        Self { workers, able }
    }

    /// Returns whether a worker runs a class at all.
    pub fn is_able(&self, worker: WorkerNo, class: usize) -> bool {
        self.able[class][worker.at()]
    }

    /// Returns the workers that run a class.
    pub fn able(&self, class: usize) -> &[bool] {
        &self.able[class]
    }

    /// Returns the numbers of all workers.
    pub fn numbers(&self) -> impl Iterator<Item = WorkerNo> + use<> {
        (0..u32::try_from(self.workers.len()).expect("a fleet has fewer than 2^32 workers")).map(WorkerNo)
    }

    /// Returns how many jobs run at once at most.
    pub fn slots(&self) -> u64 {
        self.workers.iter().map(|worker| u64::from(worker.offer.slots)).sum()
    }
}

fn runs(offer: &Offer, class: &Class) -> bool {
    (class.system == kiln_core::SYSTEM_BUILTIN || offer.systems.contains(&class.system)) && class.features.is_subset(&offer.features)
}

/// What is free on a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Free {
    // In the order that decides which worker has most.
    pub cores: u32,
    pub slots: u32,
    pub memory_mib: u64,
}

impl Free {
    /// Returns what an idle worker has.
    pub fn whole(offer: &Offer) -> Self {
        Self { cores: offer.capacity.cores, slots: offer.slots, memory_mib: offer.capacity.memory_mib }
    }

    /// Takes a share, or returns none if it does not fit.
    pub fn take(self, share: Resources) -> Option<Self> {
        Some(Self {
            cores: self.cores.checked_sub(share.cores)?,
            slots: self.slots.checked_sub(1)?,
            memory_mib: self.memory_mib.checked_sub(share.memory_mib)?,
        })
    }

    /// Gives a share back.
    pub fn give(self, share: Resources) -> Self {
        Self { cores: self.cores + share.cores, slots: self.slots + 1, memory_mib: self.memory_mib + share.memory_mib }
    }
}

/// Returns what a job asks of a worker. Cores are a hint: one that asks for more than the worker has gets them all.
pub(crate) fn share(offer: &Offer, task: &Task) -> Resources {
    let asked = task.spec.resources;
    Resources { cores: asked.cores.min(offer.capacity.cores), memory_mib: asked.memory_mib }
}
