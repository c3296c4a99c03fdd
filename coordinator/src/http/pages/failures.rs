//! Failures for pages: what this coordinator remembers, and what the farm still has.

use std::collections::BTreeSet;

use kiln_core::Sight;
use kiln_pages::overview::FailureLine;
use kiln_wire::client::JobView;
use kiln_wire::{BuildId, DrvPath, FailureClass, Timestamp};

use super::Ui;
use super::look::Look;

/// Returns what failed since a moment, as far as somebody sees it, latest first.
pub(super) fn since(ui: &Ui, look: &Look, sight: &Sight, since: Timestamp) -> Vec<FailureLine> {
    let remembered = ui.parts().consensus.history().failures(since);
    let told: BTreeSet<DrvPath> =
        remembered.iter().filter(|failure| !failure.is_retried).map(|failure| failure.derivation.clone()).collect();
    let remembered = remembered.into_iter().filter(|failure| sees(ui, &failure.builds, sight)).map(|failure| FailureLine {
        at: Some(failure.at),
        blast: look.failed(&failure.derivation).map_or(0, |job| job.holds_up),
        derivation: failure.derivation,
        class: failure.class,
        message: failure.message,
        worker: failure.worker,
        is_retried: failure.is_retried,
    });
    let lately = look.survey.failed.iter().filter(|job| job.at >= Some(since) && !told.contains(&job.derivation));
    let lately: Vec<_> = lately.filter(|job| sees(ui, &job.builds, sight)).take(LOOKED_UP_MAX).collect();
    let views = ui.parts().farm(|farm| lately.iter().map(|job| farm.job_view(&job.derivation)).collect::<Vec<_>>());
    let kept = lately.into_iter().zip(views).filter_map(|(job, view)| Some(line(&view?, job.class, job.holds_up)));
    let mut lines: Vec<FailureLine> = remembered.chain(kept).collect();
    lines.sort_by(|a, b| b.at.cmp(&a.at).then_with(|| a.derivation.cmp(&b.derivation)));
    lines
}

/// Returns what failed of a live build, those first that hold up most; and how many more did.
pub(super) fn of_build(ui: &Ui, look: &Look, build: BuildId, max: usize) -> (Vec<FailureLine>, u64) {
    let mut failed: Vec<_> = look.survey.failed.iter().filter(|job| job.builds.contains(&build)).collect();
    failed.sort_by(|a, b| b.holds_up.cmp(&a.holds_up).then_with(|| a.derivation.cmp(&b.derivation)));
    let more = failed.len().saturating_sub(max);
    failed.truncate(max);
    let views = ui.parts().farm(|farm| failed.iter().map(|job| farm.job_view(&job.derivation)).collect::<Vec<_>>());
    let lines = failed.into_iter().zip(views).filter_map(|(job, view)| Some(line(&view?, job.class, job.holds_up)));
    (lines.collect(), u64::try_from(more).unwrap_or(u64::MAX))
}

/// Returns a job that failed for good, as a line.
pub(super) fn line(view: &JobView, class: FailureClass, blast: u64) -> FailureLine {
    let last = view.attempts.last();
    let message = last.and_then(|attempt| attempt.failure.as_ref()).map_or_else(|| view.reason.clone(), |(_, message)| message.clone());
    FailureLine {
        at: last.and_then(|attempt| attempt.ended_at),
        derivation: view.derivation.clone(),
        class,
        message,
        worker: last.map(|attempt| attempt.worker.clone()),
        is_retried: false,
        blast,
    }
}

/// Returns the class of what failed, as its last attempt has it.
pub(super) fn class_of(view: &JobView) -> FailureClass {
    let failure = view.attempts.last().and_then(|attempt| attempt.failure.as_ref());
    failure.map_or(FailureClass::BuildFailure, |(class, _)| *class)
}

/// Returns whether somebody sees one of some builds. Of builds that have left the farm, only who sees all does.
fn sees(ui: &Ui, builds: &[BuildId], sight: &Sight) -> bool {
    match sight {
        Sight::All => true,
        Sight::Of(_) => !ui.parts().farm(|farm| farm.builds_seen(builds, sight)).is_empty(),
    }
}

/// Failures that are looked up one by one: only of a coordinator that remembers less than the farm has.
const LOOKED_UP_MAX: usize = 200;
