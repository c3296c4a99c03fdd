//! Measures the farm's own cost under real graphs: `cargo run --release -p kiln-core --example drain [GRAPH.jsonl.zst]…`.
//!
//! Every finish is followed by a plan and an assignment of its own, which is the most expensive way to drive a farm. Prints
//! figures, judges none. Times are processor time of this thread, so that a busy machine does not spoil them.

#[path = "../../tests/farm/drain.rs"]
mod drain;
mod heap;

use std::path::{Path, PathBuf};
use std::time::Duration;

use drain::{Drain, graph_files, load};
use heap::live_bytes;
use kiln_core::{Command, Farm};

const WORKERS: u32 = 100;
const SLOTS: u32 = 8;

fn main() {
    let named: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    for file in if named.is_empty() { graph_files() } else { named } {
        measure(&file);
    }
}

fn measure(file: &Path) {
    let graph = load(file);
    let jobs = graph.jobs.len();
    let mut drain = Drain::new(&graph, WORKERS, SLOTS);
    let bytes_before = live_bytes();
    let (build, submit) = timed(|| drain.submit(&graph));
    let bytes = live_bytes().saturating_sub(bytes_before);
    let (mut planning, mut applying, mut plans, mut plan_worst) = (Duration::ZERO, Duration::ZERO, 0u32, Duration::ZERO);
    loop {
        let (_, plan) = timed(|| drain.plan());
        planning += plan;
        plans += 1;
        plan_worst = plan_worst.max(plan);
        let (more, finish) = timed(|| drain.finish_next());
        applying += finish;
        if !more {
            break;
        }
    }
    let bytes_end = live_bytes().saturating_sub(bytes_before);
    let (snapshot, writing) = timed(|| drain.farm.to_snapshot());
    let (read, reading) = timed(|| Farm::from_snapshot(&snapshot));
    let same = read.is_ok_and(|farm| farm == drain.farm);
    let now = drain.now;
    let (_, retire) = timed(|| drain.apply(Command::Retire { build, now }));
    println!("{}: {jobs} jobs, {WORKERS} workers of {SLOTS} slots", graph.name);
    println!(
        "  submit {submit:.1?}; finish and publish {applying:.1?}; plan and assign {planning:.1?} in {plans} plans, worst {plan_worst:.1?}"
    );
    println!("  heap {} B a job once submitted, {} B once built", bytes / jobs, bytes_end / jobs);
    println!("  snapshot {} B a job, written in {writing:.1?}, read and checked in {reading:.1?}, same: {same}", snapshot.len() / jobs);
    println!("  retire {retire:.1?}, {} jobs left; simulated makespan {} s", drain.farm.jobs().count(), drain.now.0 / 1000);
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = cpu_time();
    let result = work();
    (result, cpu_time().saturating_sub(start))
}

/// Returns the processor time of this thread, as the scheduler counts it.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells a thread's processor time");
    let nanoseconds = text.split_whitespace().next().and_then(|word| word.parse().ok()).expect("it is a number");
    Duration::from_nanos(nanoseconds)
}
