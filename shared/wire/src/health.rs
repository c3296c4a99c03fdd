//! How workers stand with the farm, for people.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// Why the farm gives a worker less than it has room for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ailing {
    /// What the farm does about its failures.
    pub standing: Standing,
    /// An administrator drained it.
    pub drained: bool,
    /// Jobs that failed there for infrastructure reasons, as far as they count against it at present.
    pub failures: u32,
    /// How many times in a row it has rested.
    pub rests: u32,
    /// What the last of its failures said; empty if there was none.
    pub message: String,
}

/// How a worker stands with the farm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Standing {
    /// It takes what it has room for.
    #[default]
    Working,
    /// Jobs kept failing there: it takes nothing for a while.
    Resting {
        /// Until then.
        until: Timestamp,
    },
    /// Its rest is over: it gets one job at a time until one is built.
    Probation {
        /// Since when.
        since: Timestamp,
    },
    /// Jobs failed there after every rest: it takes nothing until an administrator says so.
    Quarantined {
        /// Since when.
        since: Timestamp,
    },
}
