//! Counts beside the farm's state: what happened since this process started. The core has no counters.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kiln_core::{Copied, PlanReport};
use kiln_wire::client::{Event, EventKind};
use kiln_wire::{DrvPath, FailureClass};

/// Counters of one coordinator.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    pub(crate) built: AtomicU64,
    pub(crate) failed: [AtomicU64; CLASSES.len()],
    pub(crate) plans: AtomicU64,
    pub(crate) plan_us: AtomicU64,
    pub(crate) unplaceable: AtomicU64,
    pub(crate) copies: Copies,
}

/// What became of second attempts.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    pub(crate) begun: AtomicU64,
    pub(crate) won: AtomicU64,
    pub(crate) same: AtomicU64,
    pub(crate) differing: AtomicU64,
}

impl Meter {
    /// Counts what an event says of an attempt.
    pub(crate) fn count(&self, event: &Event) {
        match &event.kind {
            EventKind::Built { .. } => self.built.fetch_add(1, Ordering::Relaxed),
            EventKind::Retried { class, .. } | EventKind::Failed { class, .. } => {
                self.failed[place(*class)].fetch_add(1, Ordering::Relaxed)
            }
            EventKind::Ready | EventKind::Started { .. } | EventKind::DependencyFailed { .. } | EventKind::Cancelled => 0,
        };
    }

    /// Counts and tells what becomes of two attempts at a job.
    pub(crate) fn copied(&self, derivation: &DrvPath, copied: Copied) {
        let counted = match copied {
            Copied::Begun { attempt, of } => {
                tracing::info!(%derivation, %attempt, beside = %of, "takes far longer than its like: a second attempt begins");
                Some(&self.copies.begun)
            }
            Copied::Won { attempt, by_copy } => {
                tracing::info!(%derivation, %attempt, by_copy, "the first of two attempts to make its outputs");
                by_copy.then_some(&self.copies.won)
            }
            Copied::Same(attempt) => {
                tracing::info!(%derivation, %attempt, "the slower of two attempts made the same outputs");
                Some(&self.copies.same)
            }
            Copied::Differs(attempt) => {
                tracing::warn!(%derivation, %attempt, "the slower of two attempts made other outputs: the derivation is not deterministic");
                Some(&self.copies.differing)
            }
        };
        counted.map(|counter| counter.fetch_add(1, Ordering::Relaxed));
    }

    /// Counts a plan.
    pub(crate) fn planned(&self, took: Duration, report: &PlanReport) {
        self.plans.fetch_add(1, Ordering::Relaxed);
        self.plan_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let unplaceable = report.waiting.iter().filter(|waiting| waiting.reason.is_unplaceable()).map(|waiting| waiting.count).sum();
        self.unplaceable.store(unplaceable, Ordering::Relaxed);
    }
}

fn place(class: FailureClass) -> usize {
    CLASSES.iter().position(|known| *known == class).unwrap_or_default()
}

/// The failure classes in the order of their counters.
pub(crate) const CLASSES: [FailureClass; 5] = [
    FailureClass::BuildFailure,
    FailureClass::OutOfMemory,
    FailureClass::LimitExceeded,
    FailureClass::Infrastructure,
    FailureClass::Cancelled,
];
