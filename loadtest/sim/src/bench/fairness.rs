//! Whether submissions got their shares: over every window of ten minutes in which each had work waiting.

use super::engine::Run;
use super::workload::Workload;

/// How far shares were off. Shares are of the slot time that was used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Fairness {
    /// Windows in which every submission had work waiting all the time.
    pub windows: usize,
    /// The largest distance of a submission's share from what its weight says, of 1.
    pub worst: f64,
    /// The mean over windows of the largest distance in each.
    pub mean: f64,
}

/// The length of a window.
pub(crate) const WINDOW_MS: u64 = 600_000;
/// Windows begin this far apart, and waiting is looked at this finely.
const STEP_MS: u64 = 10_000;

/// Returns how far shares were off. None of it counts while somebody has nothing that waits: then others may have what is left.
pub(crate) fn fairness(load: &Workload, run: &Run) -> Fairness {
    let steps = usize::try_from(run.makespan_ms / STEP_MS).unwrap_or(0) + 1;
    let count = load.submissions.len();
    let mut used = vec![vec![0u64; steps]; count];
    // How many jobs begin, and cease, to wait in a step.
    let (mut begins, mut ceases) = (vec![vec![0i64; steps + 1]; count], vec![vec![0i64; steps + 1]; count]);
    let step = |ms: u64| usize::try_from(ms / STEP_MS).unwrap_or(0);
    for span in &run.spans {
        let submission = load.task(span.job).submission;
        begins[submission][step(span.ready_ms)] += 1;
        ceases[submission][step(span.start_ms)] += 1;
        let (first, last) = (step(span.start_ms), step(span.end_ms));
        for (at, used) in (first..).zip(&mut used[submission][first..=last]) {
            let (from, to) = (at as u64 * STEP_MS, (at as u64 + 1) * STEP_MS);
            *used += span.end_ms.min(to).saturating_sub(span.start_ms.max(from));
        }
    }
    let waits: Vec<Vec<bool>> = (0..count).map(|submission| waits(&begins[submission], &ceases[submission], steps)).collect();
    let length = usize::try_from(WINDOW_MS / STEP_MS).expect("a window has some steps");
    let weights: u64 = load.submissions.iter().map(|asked| u64::from(asked.weight)).sum();
    let mut fairness = Fairness::default();
    for first in 0..steps.saturating_sub(length) {
        let window = first..first + length;
        if count < 2 || !waits.iter().all(|waits| waits[window.clone()].iter().all(|waits| *waits)) {
            continue;
        }
        let parts: Vec<u64> = used.iter().map(|used| used[window.clone()].iter().sum()).collect();
        let whole: u64 = parts.iter().sum();
        let off = |(part, asked): (&u64, &super::workload::Submission)| {
            (*part as f64 / whole.max(1) as f64 - f64::from(asked.weight) / weights as f64).abs()
        };
        let worst = parts.iter().zip(&load.submissions).map(off).fold(0.0, f64::max);
        fairness.windows += 1;
        fairness.worst = fairness.worst.max(worst);
        fairness.mean += worst;
    }
    fairness.mean /= fairness.windows.max(1) as f64;
    fairness
}

/// Returns in which steps something waited from beginning to end.
fn waits(begins: &[i64], ceases: &[i64], steps: usize) -> Vec<bool> {
    let mut waiting = 0;
    let through = |at: usize| -> bool {
        let all_along = waiting - ceases[at] > 0;
        waiting += begins[at] - ceases[at];
        all_along
    };
    (0..steps).map(through).collect()
}
