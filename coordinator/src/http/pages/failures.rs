//! Failures for pages: what this coordinator remembers, and what the farm still has.

use std::collections::BTreeSet;

use kiln_core::{FailedJob, Sight};
use kiln_pages::overview::FailureLine;
use kiln_wire::client::JobView;
use kiln_wire::{BuildId, DrvPath, FailureClass, Timestamp};

use super::Ui;
use super::look::Look;

/// Returns what failed since a moment, as far as somebody sees it, latest first. What each holds up is put in by [`put_blast`].
pub(super) fn since(ui: &Ui, look: &Look, sight: &Sight, since: Timestamp) -> Vec<FailureLine> {
    let remembered = ui.parts().consensus.history().failures(since, sight);
    let told: BTreeSet<&DrvPath> = remembered.iter().filter(|failure| !failure.is_retried).map(|failure| &failure.derivation).collect();
    let lately = look.survey.failed.iter().filter(|job| is_failure(job) && job.at >= Some(since) && !told.contains(&job.derivation));
    let lately: Vec<_> = ui.parts().farm(|farm| {
        let seen = lately.filter(|job| *sight == Sight::All || farm.sees_job(&job.derivation, sight) == Some(true)).take(LOOKED_UP_MAX);
        seen.filter_map(|job| Some(line(&farm.job_view(&job.derivation)?, job.class))).collect()
    });
    let remembered = remembered.iter().map(|failure| FailureLine {
        at: Some(failure.at),
        derivation: failure.derivation.clone(),
        class: failure.class,
        message: failure.message.clone(),
        worker: failure.worker.clone(),
        is_retried: failure.is_retried,
        blast: None,
    });
    let mut lines: Vec<FailureLine> = remembered.chain(lately).collect();
    lines.sort_by(|a, b| b.at.cmp(&a.at).then_with(|| a.derivation.cmp(&b.derivation)));
    lines
}

/// Puts in how many jobs each of some failures holds up: of what the farm still has, what waits for it; of what has left, what is
/// remembered to have failed with it.
pub(super) fn put_blast(ui: &Ui, sight: &Sight, lines: &mut [FailureLine]) {
    for line in lines {
        let live = ui.parts().farm(|farm| farm.has_job(&line.derivation).then(|| farm.held_up(&line.derivation, sight, HELD_LOOKED_MAX)));
        line.blast = match live {
            Some(held) => held,
            // It counts everybody's jobs.
            None => ui.parts().consensus.history().held_up(&line.derivation).filter(|_| *sight == Sight::All),
        };
    }
}

/// Returns whether a job failed by itself, and was not ended by somebody.
pub(super) fn is_failure(job: &&FailedJob) -> bool {
    job.class != FailureClass::Cancelled
}

/// Returns what failed of a live build, those first that hold up most; and how many more did.
pub(super) fn of_build(ui: &Ui, look: &Look, sight: &Sight, build: BuildId, max: usize) -> (Vec<FailureLine>, u64) {
    let mut failed: Vec<_> = look.survey.failed.iter().filter(is_failure).filter(|job| job.builds.contains(&build)).collect();
    failed.sort_by(|a, b| b.holds_up.cmp(&a.holds_up).then_with(|| a.derivation.cmp(&b.derivation)));
    let more = failed.len().saturating_sub(max);
    failed.truncate(max);
    let views = ui.parts().farm(|farm| failed.iter().map(|job| farm.job_view(&job.derivation)).collect::<Vec<_>>());
    let mut lines: Vec<_> = failed.into_iter().zip(views).filter_map(|(job, view)| Some(line(&view?, job.class))).collect();
    put_blast(ui, sight, &mut lines);
    (lines, u64::try_from(more).unwrap_or(u64::MAX))
}

/// Returns a job that failed for good, as a line.
pub(super) fn line(view: &JobView, class: FailureClass) -> FailureLine {
    let last = view.attempts.last();
    let message = last.and_then(|attempt| attempt.failure.as_ref()).map_or_else(|| view.reason.clone(), |(_, message)| message.clone());
    FailureLine {
        at: last.and_then(|attempt| attempt.ended_at),
        derivation: view.derivation.clone(),
        class,
        message,
        worker: last.map(|attempt| attempt.worker.clone()),
        is_retried: false,
        blast: None,
    }
}

/// Returns the class of what failed, as its last attempt has it.
pub(super) fn class_of(view: &JobView) -> FailureClass {
    let failure = view.attempts.last().and_then(|attempt| attempt.failure.as_ref());
    failure.map_or(FailureClass::BuildFailure, |(class, _)| *class)
}

/// Failures that are looked up one by one: only of a coordinator that remembers less than the farm has.
const LOOKED_UP_MAX: usize = 200;
/// Jobs that are looked at for what one failure holds up.
const HELD_LOOKED_MAX: usize = 4096;
