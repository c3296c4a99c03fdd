//! Builds that last only as long as their client: it may disappear at any moment, and be out of patience before the farm is.

use serde::{Deserialize, Serialize};

use crate::DrvPath;

/// How long a client waits for the attempts of a build. It says nothing of other builds that want the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patience {
    /// Longest time of one attempt, in milliseconds, its inputs' transfer and its outputs' included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt_ms_max: Option<u64>,
    /// Longest time in which an attempt's log does not grow, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_ms_max: Option<u64>,
}

/// An attempt that took longer than a client's patience. The build of that client is cancelled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutOfPatience {
    /// What was being built.
    pub derivation: DrvPath,
    /// Whether it was silent for too long; otherwise it ran for too long.
    pub is_silent: bool,
    /// The limit that it passed, in milliseconds.
    pub ms_max: u64,
}

impl Patience {
    /// Returns whether there is any limit.
    pub fn is_endless(&self) -> bool {
        self.attempt_ms_max.is_none() && self.silent_ms_max.is_none()
    }
}
