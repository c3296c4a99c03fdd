//! Whether tenants got their shares: over every window of ten minutes in which two or more had work waiting.

use super::engine::Run;
use super::workload::Workload;

/// How far shares were off. Shares are of the slot time that those used who had work waiting all the time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Fairness {
    /// Windows in which two tenants or more had work waiting all the time.
    pub windows: usize,
    /// The largest distance of a tenant's share from what its weight says, of 1.
    pub worst: f64,
    /// The mean over windows of the largest distance in each.
    pub mean: f64,
}

/// The length of a window.
pub(crate) const WINDOW_MS: u64 = 600_000;
/// Windows begin this far apart, and waiting is looked at this finely.
const STEP_MS: u64 = 10_000;

/// Returns how far shares were off. Nothing counts of whoever has nothing that waits: then others may have what is left. Nor does what
/// happens within `settled_ms` after somebody began to wait: what runs is not stopped for a share, so that it takes until others' jobs end.
pub(crate) fn fairness(load: &Workload, run: &Run, settled_ms: u64) -> Fairness {
    let steps = usize::try_from(run.makespan_ms / STEP_MS).unwrap_or(0) + 1;
    let mut tenants: Vec<(&str, u32)> = Vec::new();
    let of: Vec<usize> = load
        .submissions
        .iter()
        .map(|asked| {
            let known = tenants.iter().position(|(tenant, _)| *tenant == asked.tenant);
            known.unwrap_or_else(|| {
                tenants.push((&asked.tenant, asked.weight));
                tenants.len() - 1
            })
        })
        .collect();
    let count = tenants.len();
    let mut used = vec![vec![0u64; steps]; count];
    // How many jobs begin, and cease, to wait in a step.
    let (mut begins, mut ceases) = (vec![vec![0i64; steps + 1]; count], vec![vec![0i64; steps + 1]; count]);
    let step = |ms: u64| usize::try_from(ms / STEP_MS).unwrap_or(0);
    for span in &run.spans {
        let tenant = of[load.task(span.job).submission];
        begins[tenant][step(span.ready_ms)] += 1;
        ceases[tenant][step(span.start_ms)] += 1;
        let (first, last) = (step(span.start_ms), step(span.end_ms));
        for (at, used) in (first..).zip(&mut used[tenant][first..=last]) {
            let (from, to) = (at as u64 * STEP_MS, (at as u64 + 1) * STEP_MS);
            *used += span.end_ms.min(to).saturating_sub(span.start_ms.max(from));
        }
    }
    let waits: Vec<Vec<bool>> = (0..count).map(|tenant| waits(&begins[tenant], &ceases[tenant], steps)).collect();
    let (length, settled) = (step(WINDOW_MS), step(settled_ms));
    let mut fairness = Fairness::default();
    for first in settled..steps.saturating_sub(length) {
        let window = first..first + length;
        let waiting: Vec<usize> =
            (0..count).filter(|tenant| waits[*tenant][first - settled..window.end].iter().all(|waits| *waits)).collect();
        if waiting.len() < 2 {
            continue;
        }
        let parts: Vec<u64> = waiting.iter().map(|tenant| used[*tenant][window.clone()].iter().sum()).collect();
        let whole: u64 = parts.iter().sum();
        let weights: u64 = waiting.iter().map(|tenant| u64::from(tenants[*tenant].1)).sum();
        let off = |(part, tenant): (&u64, &usize)| {
            (*part as f64 / whole.max(1) as f64 - f64::from(tenants[*tenant].1) / weights.max(1) as f64).abs()
        };
        let worst = parts.iter().zip(&waiting).map(off).fold(0.0, f64::max);
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
