//! Reports of attempts that made nothing: what comes at one time is proposed together, in one task. Memory of the leader only: the worker
//! keeps its report until it is acknowledged.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_core::{Command, JUDGING, LEARNING};
use kiln_wire::{Lease, Outcome};

use crate::driver::Chain;
use crate::parts::Parts;

/// Reports on their way to the log.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    waiting: Mutex<Vec<(Lease, Outcome)>>,
}

impl Reports {
    /// Adds a report; returns whether it is the first that waits: then somebody must propose them.
    fn add(&self, lease: Lease, outcome: Outcome) -> bool {
        let mut waiting = self.lock();
        waiting.push((lease, outcome));
        waiting.len() == 1
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Lease, Outcome)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Proposes the end of an attempt that claims no outputs, with those whose ends are told meanwhile.
pub(crate) fn note(parts: &Arc<Parts>, lease: Lease, outcome: Outcome) {
    if parts.reports.add(lease, outcome) {
        tokio::spawn(propose(parts.clone()));
    }
}

async fn propose(parts: Arc<Parts>) {
    let reports = std::mem::take(&mut *parts.reports.lock());
    let (version, now) = (parts.consensus.version(), parts.clock.now());
    let (learn, judge) = (version >= LEARNING, version >= JUDGING);
    let count = reports.len();
    let finish = |(lease, outcome)| Command::Finish { lease, outcome, learn, judge, now };
    if let Err(error) = parts.consensus.propose_patiently(reports.into_iter().map(finish).collect()).await {
        // Each worker keeps its report until it is acknowledged, and sends it again.
        tracing::warn!(count, error = %Chain(&error), "commit the ends of attempts");
    }
}

#[cfg(test)]
mod tests {
    use kiln_wire::{AttemptId, DrvPath, Epoch, Failure, FailureClass, Usage, WorkerId};

    use super::*;

    #[test]
    fn whoever_adds_the_first_report_proposes_all() {
        let reports = Reports::default();
        let add = |attempt| {
            let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path");
            let worker = WorkerId::parse("w1").expect("a name");
            let failure = Failure { class: FailureClass::BuildFailure, message: String::new() };
            let lease = Lease { derivation, attempt: AttemptId(attempt), worker, epoch: Epoch(1) };
            reports.add(lease, Outcome::Failed { failure, usage: Usage::default() })
        };
        assert_eq!([add(1), add(2), add(3)], [true, false, false]);
        let taken = std::mem::take(&mut *reports.lock());
        assert_eq!(taken.iter().map(|(lease, _)| lease.attempt.0).collect::<Vec<_>>(), [1, 2, 3], "in the order in which they came");
        assert!(add(4), "one that comes later is not left lying");
    }
}
