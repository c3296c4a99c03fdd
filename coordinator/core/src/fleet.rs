//! The fleet: registered workers, and whether a job fits one.
//!
//! Free capacity is derived from live leases, nowhere counted on its own.

use alloc::collections::BTreeSet;
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
    /// Slots for light attempts only.
    pub light: u32,
}

/// Returns whether workers with these systems and features could run the job, had they memory and slots.
pub(crate) fn suits(systems: &BTreeSet<String>, features: &BTreeSet<String>, needs: &Needs) -> bool {
    let lacking = needs.features.difference(features).any(|feature| !FEATURES_SOFT.contains(&feature.as_str()));
    (needs.system == SYSTEM_BUILTIN || systems.contains(&needs.system)) && !lacking
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

/// Returns what an attempt gets of a worker. Cores are a hint: a job that asks for more than the worker has gets them all. So is memory
/// that the job does not ask for itself.
pub(crate) fn grant(capacity: Resources, needs: &Needs) -> Resources {
    let memory_mib = needs.resources.memory_mib.max(needs.memory_wish_mib.min(capacity.memory_mib));
    Resources { cores: needs.resources.cores.min(capacity.cores), memory_mib }
}

/// Returns the share of an attempt in a light slot.
pub(crate) fn light(granted: Resources) -> Resources {
    Resources { cores: 0, ..granted }
}

impl Free {
    /// What a worker has that takes nothing.
    pub const NONE: Self = Self { cores: 0, slots: 0, memory_mib: 0, light: 0 };

    /// Returns what an idle worker has.
    pub fn whole(offer: &Offer) -> Self {
        Self {
            cores: offer.capacity.cores,
            slots: offer.slots,
            memory_mib: offer.capacity.memory_mib,
            light: if offer.slots > 0 { offer.light_slots } else { 0 },
        }
    }

    /// Takes one lease's share, or returns none if it does not fit. Memory 0 is a share without a request and takes nothing.
    pub fn take(self, granted: Resources) -> Option<Self> {
        Some(Self {
            cores: self.cores.checked_sub(granted.cores)?,
            slots: self.slots.checked_sub(1)?,
            memory_mib: self.memory_mib.checked_sub(granted.memory_mib)?,
            light: self.light,
        })
    }

    /// Gives one lease's share back.
    pub fn give(self, granted: Resources) -> Self {
        Self {
            cores: self.cores.saturating_add(granted.cores),
            slots: self.slots.saturating_add(1),
            memory_mib: self.memory_mib.saturating_add(granted.memory_mib),
            light: self.light,
        }
    }

    /// Takes a light lease's share, which has no cores, or returns none if it does not fit.
    pub fn take_light(self, granted: Resources) -> Option<Self> {
        let memory_mib = self.memory_mib.checked_sub(granted.memory_mib)?;
        Some(Self { memory_mib, light: self.light.checked_sub(1)?, ..self })
    }
}
