//! Plants every bug in turn and shows which check catches it.

use std::process::{Command, ExitCode, Output, Stdio};

use crate::bug::Bug;

/// Seeds on which a planted bug must show.
const SEEDS: u64 = 20;

/// Plants every bug, `jobs` seeds at a time; fails if one is not caught by its check.
pub fn show(jobs: u64) -> ExitCode {
    let mut missed = 0;
    println!("{:18} {:58} seed", "bug", "check that caught it");
    for (bug, check) in Bug::TABLE {
        match caught(*bug, check, jobs) {
            Some(seed) => println!("{:18} {check:58} {seed}", format!("{bug:?}")),
            None => {
                missed += 1;
                println!("{:18} {check:58} MISSED on each of {SEEDS} seeds", format!("{bug:?}"));
            }
        }
    }
    println!("planted bugs: {} caught, {missed} missed", Bug::TABLE.len() - missed);
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Returns the first seed on which the check catches the bug.
fn caught(bug: Bug, check: &str, jobs: u64) -> Option<u64> {
    let program = std::env::current_exe().expect("this program");
    let mut seeds = 0..SEEDS;
    loop {
        let batch: Vec<u64> = seeds.by_ref().take(jobs as usize).collect();
        if batch.is_empty() {
            return None;
        }
        let run = |seed: u64| {
            let mut one = Command::new(&program);
            one.args(["--seed", &seed.to_string(), "--bug", &format!("{bug:?}")]).stdout(Stdio::piped()).stderr(Stdio::null());
            (seed, one.spawn().expect("a process"))
        };
        let running: Vec<_> = batch.into_iter().map(run).collect();
        let ended: Vec<(u64, Output)> =
            running.into_iter().map(|(seed, child)| (seed, child.wait_with_output().expect("it ends"))).collect();
        let says = |output: &Output| String::from_utf8_lossy(&output.stdout).contains(&format!("FAILED: {check}"));
        if let Some((seed, _)) = ended.into_iter().find(|(_, output)| says(output)) {
            return Some(seed);
        }
    }
}
