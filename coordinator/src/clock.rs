//! The coordinator's clocks: the only place of it that asks what time it is.

use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use kiln_core::{StampClock, Steady};
use kiln_wire::Timestamp;

/// The clock of one process.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    stamps: Mutex<StampClock>,
}

impl Default for Clock {
    fn default() -> Self {
        Self { started: Instant::now(), stamps: Mutex::default() }
    }
}

impl Clock {
    /// Returns the stamp for a command that is proposed at this moment.
    pub(crate) fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        self.stamps.lock().unwrap_or_else(PoisonError::into_inner).now(Timestamp(wall_ms), self.steady())
    }

    /// Returns the moment, for measuring how long something lasts.
    pub(crate) fn steady(&self) -> Steady {
        Steady(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Gives no stamp before `seen` from here on.
    pub(crate) fn not_before(&self, seen: Timestamp) {
        self.stamps.lock().unwrap_or_else(PoisonError::into_inner).not_before(seen);
    }
}
