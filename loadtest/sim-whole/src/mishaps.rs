//! Which workers something was done to. Only these may count as lost, so only theirs may be the losses for which a farm sets a job aside.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use kiln_wire::FailureClass;
use kiln_wire::client::JobView;
use kiln_wire::limits::INFRASTRUCTURE_WORKERS_MAX;

/// Workers that were crashed, stalled or cut off, by name.
#[derive(Clone, Debug, Default)]
pub struct Mishaps(Rc<RefCell<BTreeSet<String>>>);

impl Mishaps {
    /// Something was done to this host.
    pub fn note(&self, host: &str) {
        self.0.borrow_mut().insert(host.to_owned());
    }

    /// Returns what is wrong with the reason for which these jobs failed: each of them must have been lost with as many workers as the
    /// rule asks for, all of which had something done to them, or need one that was.
    pub fn objection(&self, failures: &[JobView]) -> Option<String> {
        let failed: Vec<&JobView> = failures.iter().filter(|job| job.state == "failed").collect();
        if failed.is_empty() {
            return Some("no job of it failed".into());
        }
        let hit = self.0.borrow();
        let is_excused = |job: &JobView| {
            let infrastructure = |failure: &Option<(FailureClass, String)>| matches!(failure, Some((FailureClass::Infrastructure, _)));
            let lost: BTreeSet<&str> =
                job.attempts.iter().filter(|attempt| infrastructure(&attempt.failure)).map(|attempt| attempt.worker.as_str()).collect();
            lost.len() >= INFRASTRUCTURE_WORKERS_MAX && lost.iter().all(|worker| hit.contains(*worker))
        };
        let unexcused = failed.into_iter().find(|job| !is_excused(job))?;
        Some(format!("{}: {}; something was done to {hit:?} only", unexcused.derivation, unexcused.reason))
    }
}
