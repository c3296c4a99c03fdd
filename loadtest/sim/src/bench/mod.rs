//! The planner's bench: real graphs on a simulated fleet, scheduled by the farm's own planner and by rivals.
//!
//! Goals: says how far the planner is from what no schedule can beat, how many bytes it moves, and whether it is fair, with durations,
//! fleet, errors of estimates and unknown jobs as one likes; the same seed gives the same replay. Non-goals: failures, sessions, Raft and
//! networks, which the simulation beside it and the load test have. Source of the measures: `SCHEDULING.md`, section 1.
//!
//! Where to look: `workload` reads graphs, `draws` gives durations and estimates, `engine` replays, `planner` is the farm under test,
//! `list` the rivals, `bounds` and `fairness` judge, `gantt` draws, `claims` says what is claimed.

mod bounds;
mod cache;
mod claims;
mod draws;
mod engine;
mod fairness;
mod fleet;
mod gantt;
mod gap;
mod list;
mod made;
mod options;
mod planner;
mod rank;
mod report;
mod straggle;
#[cfg(test)]
mod tests;
mod workload;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kiln_nix::graph_file::Graph;

use options::{HELP, Options};

/// Runs `kiln-sim plan` with what follows these words on the command line.
pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    let mut arguments = arguments.peekable();
    let first = arguments.peek().map(String::as_str);
    let done = match first {
        Some("--help") => Err(HELP.to_owned()),
        Some("prove") => claims::parse(arguments.skip(1)).and_then(|wanted| claims::prove(&wanted)),
        Some(_) | None => options::parse(arguments).and_then(|options| show(&options)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("kiln-sim plan: {message}");
            ExitCode::from(2)
        }
    }
}

/// Replays with each policy and prints what came of it.
fn show(options: &Options) -> Result<bool, String> {
    let graph = load(&options.graph)?;
    let mut workload = workload::Workload::default();
    for salt in 0..options.copies {
        workload.add(
            &graph,
            salt..salt + 1,
            workload::Asked { name: &format!("{} {salt}", graph.name), at_ms: 0, tenant: "all", weight: 1 },
        );
    }
    draws::draw(&mut workload, &options.draws);
    let mut fleet = report::fleet(&workload, options);
    let bounds = bounds::bounds(&workload, &fleet);
    fleet.straggle(options.stragglers, options.draws.seed, bounds.window_ms);
    print!("{}", report::head(&graph.name, &workload, &fleet, &bounds, options));
    for (at, chosen) in options.policies.iter().enumerate() {
        let measured = report::measure(&workload, &fleet, *chosen, options.locality, options.costs);
        println!("{}", report::line(&workload, &bounds, *chosen, &measured));
        if measured.run.copies.begun > 0 {
            println!("{}", straggle::told(&fleet, &measured.run));
        }
        if let Some(file) = options.gantt.as_ref().filter(|_| at == 0) {
            let caption = gantt::Caption { title: graph.name.clone(), policy: format!("policy {}", chosen.word()) };
            let svg = gantt::gantt(&workload, &fleet, &measured.run, &bounds, &caption);
            std::fs::write(file, svg).map_err(|err| format!("write picture {}: {err}", file.display()))?;
        }
    }
    Ok(true)
}

/// Reads a graph by its file or, without a folder or ending, by its name.
fn load(name: &Path) -> Result<Graph, String> {
    if name.exists() {
        return workload::read(name);
    }
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared");
    let shared = std::env::var_os("KILN_SHARED").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    workload::read(&shared.join("data/graphs").join(format!("{}.jsonl.zst", name.display())))
}
