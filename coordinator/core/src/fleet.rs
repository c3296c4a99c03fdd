//! The fleet: registered workers, and whether a job fits one.
//!
//! Free capacity is derived from live leases, nowhere counted on its own.

use alloc::string::String;

use kiln_wire::worker::Offer;
use kiln_wire::{Epoch, Resources, Timestamp};
use serde::{Deserialize, Serialize};

use crate::job::Needs;

/// The system of builders that every worker brings itself.
pub const SYSTEM_BUILTIN: &str = "builtin";

/// Features that say how large a machine suits, not what it must have: jobs that name them run anywhere.
const FEATURES_SOFT: [&str; 1] = ["big-parallel"];

/// A registered worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Worker {
    pub epoch: Epoch,
    pub offer: Offer,
    pub registered_at: Timestamp,
    /// It gave a job back and gets no more until it registers anew: it finishes what it has, and ends.
    #[serde(default)]
    pub is_finishing: bool,
}

/// What is free on a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Free {
    // In the order that decides which worker has most.
    pub cores: u32,
    pub slots: u32,
    pub memory_mib: u64,
}

/// Returns whether `offer` has the platform that `needs` names.
pub(crate) fn has_system(offer: &Offer, needs: &Needs) -> bool {
    needs.system == SYSTEM_BUILTIN || offer.systems.contains(&needs.system)
}

/// Returns the features that keep the job off the worker.
pub(crate) fn features_missing<'a>(offer: &'a Offer, needs: &'a Needs) -> impl Iterator<Item = &'a String> {
    needs.features.difference(&offer.features).filter(|feature| !FEATURES_SOFT.contains(&feature.as_str()))
}

/// Returns whether a worker with this offer could run the job at all, were it idle.
pub(crate) fn could_run(offer: &Offer, needs: &Needs) -> bool {
    offer.slots > 0
        && has_system(offer, needs)
        && features_missing(offer, needs).next().is_none()
        && needs.resources.memory_mib <= offer.capacity.memory_mib
}

/// Returns what an attempt gets of a worker. Cores are a hint: a job that asks for more than the worker has gets them all.
pub(crate) fn grant(offer: &Offer, needs: &Needs) -> Resources {
    Resources { cores: needs.resources.cores.min(offer.capacity.cores), memory_mib: needs.resources.memory_mib }
}

impl Free {
    /// Returns what an idle worker has.
    pub fn whole(offer: &Offer) -> Self {
        Self { cores: offer.capacity.cores, slots: offer.slots, memory_mib: offer.capacity.memory_mib }
    }

    /// Takes one lease's share, or returns none if it does not fit. Memory 0 is a share without a request and takes nothing.
    pub fn take(self, granted: Resources) -> Option<Self> {
        Some(Self {
            cores: self.cores.checked_sub(granted.cores)?,
            slots: self.slots.checked_sub(1)?,
            memory_mib: self.memory_mib.checked_sub(granted.memory_mib)?,
        })
    }
}
