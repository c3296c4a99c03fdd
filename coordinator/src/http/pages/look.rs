//! One look at the farm for all who look: what walks over every job is done in pieces and once a second at most, whoever
//! asks and however often.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kiln_core::{FailedJob, Survey, Surveying};
use kiln_pages::overview::{Eta, FleetSum};
use kiln_pages::words;
use kiln_wire::client::WorkerView;
use kiln_wire::limits::API_JOBS_PER_LOOK_MAX;
use kiln_wire::{BuildId, DrvPath, Standing, Timestamp};
use tokio::time::Instant;

use super::Ui;
use crate::heavy::heavy;
use crate::views;

/// A look, and until when it is new enough.
pub(super) type Seen = (Instant, Arc<Look>);

/// What was seen of the farm at one moment.
pub(super) struct Look {
    pub(super) now: Timestamp,
    /// This coordinator leads: it knows which workers are connected.
    pub(super) leads: bool,
    pub(super) survey: Survey,
    pub(super) workers: Vec<WorkerView>,
    /// What failed for good, by derivation: where it stands in the survey.
    failed: BTreeMap<DrvPath, usize>,
}

impl Ui {
    /// Looks at the farm, or returns what was seen a moment ago.
    pub(super) async fn look(&self) -> Arc<Look> {
        // Held while one looks: the others wait for what that one sees.
        let mut seen = self.0.seen.lock().await;
        if let Some((_, look)) = seen.as_ref().filter(|(good_until, _)| Instant::now() < *good_until) {
            return look.clone();
        }
        let parts = self.parts();
        let now = parts.clock.now();
        let (mut walk, begin) = (Surveying::default(), Instant::now());
        while heavy(|| parts.farm(|farm| walk.go_on(farm, now, API_JOBS_PER_LOOK_MAX))) {
            tokio::task::yield_now().await;
        }
        // Of ten moments at most one is spent looking, however large the farm is.
        let good_until = Instant::now() + AGE_MAX.max(begin.elapsed() * 10);
        let survey = walk.end();
        let failed = survey.failed.iter().enumerate().map(|(at, job)| (job.derivation.clone(), at)).collect();
        let look = Arc::new(Look { now, leads: parts.consensus.leads().is_some(), survey, workers: views::workers(parts), failed });
        *seen = Some((good_until, look.clone()));
        look
    }
}

impl Ui {
    /// Has the next one look anew: somebody changed what they are about to look at.
    pub(super) async fn forget(&self) {
        *self.0.seen.lock().await = None;
    }
}

impl Look {
    /// Returns what is expected of a build.
    pub(super) fn eta(&self, build: BuildId) -> Option<Eta> {
        // Nothing is built by nobody.
        let is_usable = |worker: &&WorkerView| worker.offer.slots > 0 && self.is_connected(worker) && !is_kept_from_work(worker);
        let outlook = self.survey.outlooks.get(&build).filter(|_| self.workers.iter().any(|worker| is_usable(&worker)))?;
        let measured_percent = words::percent(outlook.measured, outlook.open);
        Some(Eta { likely_ms: outlook.likely_ms, low_ms: outlook.low_ms, high_ms: outlook.high_ms, measured_percent })
    }

    /// Returns what is known of a job that failed for good.
    pub(super) fn failed(&self, derivation: &DrvPath) -> Option<&FailedJob> {
        self.failed.get(derivation).and_then(|at| self.survey.failed.get(*at))
    }

    /// Returns the fleet in sum.
    pub(super) fn fleet(&self) -> FleetSum {
        let mut sum = FleetSum::default();
        for worker in &self.workers {
            let (offer, running) = (&worker.offer, u64::try_from(worker.running.len()).unwrap_or(u64::MAX));
            sum.workers += 1;
            sum.connected += u64::from(self.is_connected(worker));
            sum.idle_by_force += u64::from(worker.strain.is_some() || is_kept_from_work(worker));
            sum.slots += u64::from(offer.slots);
            // Light attempts have slots of their own.
            sum.slots_used += running.min(u64::from(offer.slots));
            sum.cores += u64::from(offer.capacity.cores);
            sum.cores_used += u64::from(worker.used.cores);
            sum.memory_mib += offer.capacity.memory_mib;
            sum.memory_used_mib += worker.used.memory_mib;
        }
        sum
    }

    /// Returns whether a worker has a session, as far as is known: who does not lead takes all to have one.
    pub(super) fn is_connected(&self, worker: &WorkerView) -> bool {
        worker.connected || !self.leads
    }
}

/// Returns whether the farm, or an administrator, gives a worker nothing new.
pub(super) fn is_kept_from_work(worker: &WorkerView) -> bool {
    worker.ailing.as_ref().is_some_and(|ailing| ailing.drained || is_ill(ailing.standing))
}

/// Returns whether the farm has given up on a worker, for a while or until somebody looks.
pub(super) fn is_ill(standing: Standing) -> bool {
    match standing {
        Standing::Resting { .. } | Standing::Quarantined { .. } => true,
        Standing::Working | Standing::Probation { .. } => false,
    }
}

/// How old a look may be that took little.
const AGE_MAX: Duration = Duration::from_secs(1);
