//! One replay measured, and said in lines.

use std::fmt::Write;
use std::time::Duration;

use kiln_wire::Resources;

use super::bounds::Bounds;
use super::engine::{Costs, Policy, Run, replay};
use super::fairness::{Fairness, fairness};
use super::fleet::Fleet;
use super::gantt::hours;
use super::list::List;
use super::options::{Chosen, Options, Size};
use super::planner::Planner;
use super::rank::{heads, upward};
use super::workload::Workload;

/// A replay and what it took.
pub(crate) struct Measured {
    pub run: Run,
    pub fairness: Fairness,
    /// Processor time of the replay, the policy's share in it being nearly all.
    pub processor: Duration,
}

/// Replays with a policy.
pub(crate) fn measure(load: &Workload, fleet: &Fleet, chosen: Chosen, locality: bool, costs: Costs) -> Measured {
    let before = processor_time();
    let mut policy: Box<dyn Policy> = match chosen {
        Chosen::Kiln => Box::new(Planner::new(load, fleet, locality)),
        Chosen::Single => Box::new(Planner::new(load, fleet, locality).single()),
        Chosen::List(order) => Box::new(List::new(load, order, locality)),
    };
    let run = replay(load, fleet, &mut *policy, costs);
    drop(policy);
    let processor = processor_time().saturating_sub(before);
    Measured { fairness: fairness(load, &run, 0), run, processor }
}

/// Returns work over longest path: with so many slots both bounds are equal.
pub(crate) fn knee(load: &Workload) -> f64 {
    let length = |job| load.task(job).duration_ms;
    let (head, rank) = (heads(load, length), upward(load, length));
    let path_ms = load.numbers().map(|job| head[job.at()] + rank[job.at()]).max().unwrap_or(0);
    let work_ms: u64 = load.tasks.iter().map(|task| task.duration_ms).sum();
    work_ms as f64 / path_ms.max(1) as f64
}

/// Returns the fleet that the options ask for.
pub(crate) fn fleet(load: &Workload, options: &Options) -> Fleet {
    let workers = match options.size {
        Size::Workers(workers) => workers,
        Size::Knee(times) => (knee(load) * times / f64::from(options.slots)).round().max(1.0) as u32,
    };
    Fleet::uniform(load, workers, options.slots, Resources { cores: options.cores, memory_mib: options.memory_mib })
}

/// Returns what stands above the lines of policies.
pub(crate) fn head(name: &str, load: &Workload, fleet: &Fleet, bounds: &Bounds, options: &Options) -> String {
    let draws = options.draws;
    let mut head = String::new();
    let _ = writeln!(
        head,
        "{name}: {} submissions, {} jobs, {} edges; seed {}, estimates off by sigma {}, {:.0} % of names unknown",
        load.submissions.len(),
        load.tasks.len(),
        load.edges(),
        draws.seed,
        draws.error_sigma,
        draws.unknown * 100.0
    );
    let (slots, cores) = (fleet.slots(), fleet.workers.iter().map(|worker| u64::from(worker.offer.capacity.cores)).sum::<u64>());
    let _ = writeln!(head, "fleet: {} workers, {slots} slots, {cores} cores; the knee is at {:.1} slots", fleet.workers.len(), knee(load));
    let _ = writeln!(head, "bounds: longest path {}, window {}", hours(bounds.path_ms), hours(bounds.window_ms));
    for (resource, ms) in &bounds.works {
        let _ = writeln!(head, "  work on {resource}: {}", hours(*ms));
    }
    let _ = write!(head, "{:<10} {:>10} {:>10} {:>11} {:>10} {:>9}  fairness", "policy", "makespan", "efficiency", "moved", "plans", "CPU");
    head.push('\n');
    head
}

/// Returns the line of one policy.
pub(crate) fn line(load: &Workload, bounds: &Bounds, chosen: Chosen, measured: &Measured) -> String {
    let Measured { run, fairness, processor } = measured;
    let one = load.submissions.iter().all(|asked| asked.tenant == load.submissions[0].tenant);
    let fair = match (one, fairness.windows) {
        (true, _) => "one tenant".to_owned(),
        (false, 0) => "never all waiting for ten minutes".to_owned(),
        (false, windows) => {
            format!("off by {:.1} % at worst, {:.1} % in the mean of {windows} windows", fairness.worst * 100.0, fairness.mean * 100.0)
        }
    };
    format!(
        "{:<10} {:>10} {:>10.4} {:>8.1} GB {:>10} {:>7.2} s  {fair}",
        chosen.word(),
        hours(run.makespan_ms),
        efficiency(bounds, run),
        run.moved_bytes as f64 / 1e9,
        run.plans,
        processor.as_secs_f64(),
    )
}

/// Returns the window bound over the makespan: 1 is a schedule that cannot be beaten.
pub(crate) fn efficiency(bounds: &Bounds, run: &Run) -> f64 {
    bounds.window_ms as f64 / run.makespan_ms.max(1) as f64
}

/// Returns the processor time of this thread, so that a busy machine does not spoil it; zero where the kernel does not tell.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0))
}
