//! The leader's clock: the only place of the coordinator that asks what time it is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use kiln_wire::Timestamp;

/// Wall time that never runs backwards within one process, so that commands carry growing stamps.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    last_ms: AtomicU64,
}

impl Clock {
    /// Returns the time, or the last returned time if the machine's clock stepped back.
    pub(crate) fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        Timestamp(self.last_ms.fetch_max(wall_ms, Ordering::Relaxed).max(wall_ms))
    }
}
