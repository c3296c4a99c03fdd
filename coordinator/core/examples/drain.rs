//! Measures the farm's own cost under real graphs: `cargo run --release -p kiln-core --example drain [GRAPH.jsonl.zst]…`.
//!
//! Every finish is followed by a plan and an assignment of its own, which is the most expensive way to drive a farm. Prints
//! figures, judges none.

#[path = "../tests/farm/drain.rs"]
mod drain;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use drain::{Drain, graph_files, load};
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
    let resident_before = resident_bytes();
    let (build, submit) = timed(|| drain.submit(&graph));
    let resident = resident_bytes().saturating_sub(resident_before);
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
    let resident_end = resident_bytes().saturating_sub(resident_before);
    let (snapshot, writing) = timed(|| drain.farm.to_snapshot());
    let (read, reading) = timed(|| Farm::from_snapshot(&snapshot));
    let same = read.is_ok_and(|farm| farm == drain.farm);
    let now = drain.now;
    let (_, retire) = timed(|| drain.apply(Command::Retire { build, now }));
    println!("{}: {jobs} jobs, {WORKERS} workers of {SLOTS} slots", graph.name);
    println!(
        "  submit {submit:.1?}; finish and publish {applying:.1?}; plan and assign {planning:.1?} in {plans} plans, worst {plan_worst:.1?}"
    );
    println!("  resident {} B a job once submitted, {} B once built", resident / jobs, resident_end / jobs);
    println!("  snapshot {} B a job, written in {writing:.1?}, read and checked in {reading:.1?}, same: {same}", snapshot.len() / jobs);
    println!("  retire {retire:.1?}, {} jobs left; simulated makespan {} s", drain.farm.jobs().count(), drain.now.0 / 1000);
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed())
}

/// Returns the process's resident memory; 0 where the kernel does not tell.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse::<usize>().ok());
    kib.unwrap_or(0) * 1024
}
