//! Counts beside the farm's state: what this coordinator did since its process started. The core has no counters, and what entries did every
//! coordinator counts as it applies them ([`crate::tally`]).

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kiln_wire::{Leader, Timestamp};

use crate::kinds::Kinds;

/// Counters of one coordinator.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    pub(crate) plans: AtomicU64,
    pub(crate) plan_us: AtomicU64,
    pub(crate) moved: Moved,
    pub(crate) upstream: Upstream,
    /// When a backup was last taken from here, in milliseconds since 1970.
    pub(crate) backed_up_at_ms: AtomicU64,
    /// Kinds of jobs that have names in metrics.
    pub(crate) kinds: Kinds,
    leaders: Mutex<Leaders>,
    pub(crate) hooks: Hooks,
}

/// What became of messages to receivers of webhooks.
#[derive(Debug, Default)]
pub(crate) struct Hooks {
    pub(crate) delivered: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) given_up: AtomicU64,
    pub(crate) lost: AtomicU64,
}

impl Hooks {
    /// Counts a message that a receiver took.
    pub(crate) fn delivered(&self) {
        self.delivered.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a try that failed.
    pub(crate) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a message that was tried often enough.
    pub(crate) fn given_up(&self) {
        self.given_up.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts messages that nobody waits to send any more, for too many waited.
    pub(crate) fn lost(&self, count: u64) {
        self.lost.fetch_add(count, Ordering::Relaxed);
    }
}

/// Bytes of blobs, beside those that the store counts.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    pub(crate) to_workers: AtomicU64,
    pub(crate) spared: AtomicU64,
}

/// What was asked of upstream caches.
#[derive(Debug, Default)]
pub(crate) struct Upstream {
    pub(crate) found: AtomicU64,
    pub(crate) absent: AtomicU64,
    pub(crate) taken: AtomicU64,
    pub(crate) taken_bytes: AtomicU64,
    pub(crate) failed: AtomicU64,
}

/// Leaderships that were heard of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Leaders {
    known: Leader,
    pub(crate) changes: u64,
    pub(crate) changed_at: Timestamp,
}

impl Meter {
    /// Begins to count, for a coordinator whose directory this is: when the last backup was taken is known beyond its process.
    pub(crate) fn of(dir: &Path) -> Self {
        let noted = std::fs::read_to_string(dir.join(BACKED_UP)).ok().and_then(|text| text.trim().parse().ok());
        Self { backed_up_at_ms: AtomicU64::new(noted.unwrap_or_default()), ..Self::default() }
    }

    /// Counts a plan.
    pub(crate) fn planned(&self, took: Duration) {
        add(&self.plans, 1);
        add(&self.plan_us, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// Notes who leads. Before any leader is known its term is 0.
    pub(crate) fn led_by(&self, leader: Leader, now: impl FnOnce() -> Timestamp) {
        let mut leaders = self.leaders.lock().unwrap_or_else(PoisonError::into_inner);
        if leader.term > 0 && leaders.known != leader {
            *leaders = Leaders { known: leader, changes: leaders.changes + 1, changed_at: now() };
        }
    }

    /// Returns what was heard of leaderships.
    pub(crate) fn leaders(&self) -> Leaders {
        *self.leaders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a backup was taken whole, for the processes that come after this one too.
    pub(crate) fn backed_up(&self, dir: &Path, at: Timestamp) {
        self.backed_up_at_ms.store(at.0, Ordering::Relaxed);
        if let Err(error) = std::fs::write(dir.join(BACKED_UP), format!("{}\n", at.0)) {
            tracing::warn!(%error, dir = %dir.display(), "note when the farm was backed up: after a restart its metrics say that it was earlier");
        }
    }
}

pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// Says when the last backup was taken, in milliseconds since 1970.
const BACKED_UP: &str = "backed-up";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_the_last_backup_was_taken_is_known_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |meter: &Meter| meter.backed_up_at_ms.load(Ordering::Relaxed);
        let meter = Meter::of(dir.path());
        assert_eq!(at(&meter), 0, "none ever was");
        meter.backed_up(dir.path(), Timestamp(1_760_000_000_123));
        assert_eq!((at(&meter), at(&Meter::of(dir.path()))), (1_760_000_000_123, 1_760_000_000_123));
        std::fs::write(dir.path().join(BACKED_UP), "torn\0").expect("write");
        assert_eq!(at(&Meter::of(dir.path())), 0, "what cannot be read says nothing");
    }

    #[test]
    fn another_leadership_is_counted_once_and_nobodys_is_none() {
        let meter = Meter::default();
        let leader = |term| Leader { term, ..Leader::default() };
        for (at, term) in [(1, 0), (2, 4), (3, 4), (4, 0), (5, 4), (6, 5)] {
            meter.led_by(leader(term), || Timestamp(at));
        }
        let leaders = meter.leaders();
        assert_eq!((leaders.changes, leaders.changed_at), (2, Timestamp(6)));
    }
}
