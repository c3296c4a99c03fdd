//! One attempt on this worker.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;

use kiln_wire::worker::Assignment;
use kiln_wire::{Outcome, OutputName, Resources};

/// Where an attempt stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// Waits until a stopped attempt has given its share back.
    Queued(Box<Assignment>),
    /// Runs, fetches or uploads.
    Running {
        /// Its share of the worker.
        resources: Resources,
        /// Bytes of each output that the farm has confirmed.
        uploaded: BTreeMap<OutputName, u64>,
        /// Its builder has exited: it only uploads, and holds nothing.
        winding: bool,
    },
    /// Is being killed; holds its share until the shell says that it has ended.
    Stopping {
        /// Its share of the worker.
        resources: Resources,
        /// As of one that runs.
        winding: bool,
    },
    /// Ended; the farm has not acknowledged the report.
    Finished(Outcome),
}

impl Attempt {
    /// Returns what it holds of the worker, if it holds a slot.
    pub fn held(&self) -> Option<Resources> {
        match self {
            Self::Running { resources, winding: false, .. } | Self::Stopping { resources, winding: false } => Some(*resources),
            Self::Queued(_) | Self::Running { winding: true, .. } | Self::Stopping { winding: true, .. } | Self::Finished(_) => None,
        }
    }

    /// Returns whether the shell has it in hand.
    pub fn is_at_work(&self) -> bool {
        match self {
            Self::Running { .. } | Self::Stopping { .. } => true,
            Self::Queued(_) | Self::Finished(_) => false,
        }
    }

    /// Returns whether a `Hello` names it: it may still bring a result.
    pub fn is_alive(&self) -> bool {
        match self {
            Self::Queued(_) | Self::Running { .. } | Self::Finished(_) => true,
            Self::Stopping { .. } => false,
        }
    }
}
