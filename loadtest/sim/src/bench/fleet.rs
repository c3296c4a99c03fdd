//! Workers of a replay, and what is free on them.

use std::collections::BTreeSet;

use kiln_wire::worker::Offer;
use kiln_wire::{Resources, WorkerId};

use super::workload::{Class, Task, Workload};
use crate::dice::Dice;

/// A worker's number in its fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WorkerNo(pub u32);

impl WorkerNo {
    /// Returns its place in [`Fleet::workers`].
    pub fn at(self) -> usize {
        self.0 as usize
    }
}

/// Which part of a fleet straggles, and by how much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stragglers {
    pub percent: u64,
    /// So many times as long builders take there.
    pub factor: u64,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Worker {
    pub id: WorkerId,
    pub offer: Offer,
    /// It straggles.
    pub slow: Option<Slow>,
}

/// How a worker straggles: from some moment on, and without saying so, builders take so many times as long there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slow {
    pub from_ms: u64,
    pub factor: u64,
}

impl Worker {
    /// Returns when a builder exits that begins at some time and takes so long elsewhere.
    pub fn exit_ms(&self, build_ms: u64, duration_ms: u64) -> u64 {
        let Some(Slow { from_ms, factor }) = self.slow else { return build_ms + duration_ms };
        let sound_ms = from_ms.saturating_sub(build_ms).min(duration_ms);
        build_ms + sound_ms + (duration_ms - sound_ms).saturating_mul(factor)
    }
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
        let workers: Vec<Worker> =
            offers.into_iter().enumerate().map(|(number, offer)| Worker { id: name(number), offer, slow: None }).collect();
        let runs = |class: &Class| workers.iter().map(|worker| runs(&worker.offer, class)).collect();
        let able = load.classes.iter().map(runs).collect();
        Self { workers, able }
    }

    /// Lets a share of the workers straggle, each from a moment before `until_ms` on. At least one.
    pub fn straggle(&mut self, stragglers: Stragglers, seed: u64, until_ms: u64) {
        let mut dice = Dice::new(seed);
        let workers = u64::try_from(self.workers.len()).unwrap_or(u64::MAX);
        let count = (workers * stragglers.percent / 100).max(u64::from(stragglers.percent > 0));
        for _ in 0..count {
            let sound: Vec<usize> = (0..self.workers.len()).filter(|at| self.workers[*at].slow.is_none()).collect();
            let Some(at) = dice.choose(&sound).copied() else { return };
            self.workers[at].slow = Some(Slow { from_ms: dice.below(until_ms.max(1)), factor: stragglers.factor });
        }
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
