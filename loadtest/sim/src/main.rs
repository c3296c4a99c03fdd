//! `kiln-sim`: runs the simulation from the command line. See `--help`.

use std::process::ExitCode;

const HELP: &str = "\
kiln-sim: the farm's pure cores on one event heap, from a seed

  kiln-sim --seed N [--trace]      one run; with --trace every event in words
  kiln-sim [--from N] --seeds N    many runs, from seed N (default 1) on; stops at the first that breaks an invariant
  kiln-sim --bugs [--seeds N]      every planted bug, on up to N seeds each (default 3000), until its invariant catches it
  kiln-sim plan --help             the planner's bench: real graphs on a simulated fleet

Exit 0: every invariant held (or caught its bug). 1: not. 2: usage.";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|first| first == "plan").is_some() {
        return kiln_sim::bench::main(arguments);
    }
    let (mut seed, mut from, mut seeds, mut trace, mut bugs) = (None, 1, None, false, false);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|number| number.parse::<u64>().ok());
        match argument.as_str() {
            "--seed" => seed = number(),
            "--seeds" => seeds = number(),
            "--from" => from = number().unwrap_or(1),
            "--trace" => trace = true,
            "--bugs" => bugs = true,
            _ => {
                eprintln!("{HELP}");
                return ExitCode::from(2);
            }
        }
    }
    match (seed, seeds, bugs) {
        (_, seeds, true) => catch_bugs(seeds.unwrap_or(3000)),
        (Some(seed), _, false) => one(seed, trace),
        (None, Some(seeds), false) => many(from, seeds),
        (None, None, false) => {
            eprintln!("{HELP}");
            ExitCode::from(2)
        }
    }
}

fn one(seed: u64, trace: bool) -> ExitCode {
    let outcome = kiln_sim::run(seed, None, trace);
    print!("{}", outcome.trace);
    println!("seed {seed}: {} events, {} ms simulated, digest {:016x}", outcome.events, outcome.lasted_us / 1000, outcome.digest);
    match outcome.broken {
        Some(broken) => {
            println!("BROKEN at {} us: {}: {}", broken.at_us, broken.invariant, broken.subject);
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

fn many(from: u64, seeds: u64) -> ExitCode {
    let (mut events, mut digest) = (0, 0u64);
    for seed in from..from + seeds {
        let outcome = kiln_sim::run(seed, None, false);
        events += outcome.events;
        digest = digest.rotate_left(1) ^ outcome.digest;
        if let Some(broken) = outcome.broken {
            println!("seed {seed}: BROKEN at {} us: {}: {}", broken.at_us, broken.invariant, broken.subject);
            println!("replay: cargo run --release -p kiln-sim -- --seed {seed} --trace");
            return ExitCode::FAILURE;
        }
    }
    println!("seeds {seeds} from {from}, failures 0, events {events}, digest {digest:016x}");
    ExitCode::SUCCESS
}

fn catch_bugs(seeds: u64) -> ExitCode {
    let mut missed = false;
    for (bug, number, invariant) in kiln_sim::Bug::TABLE {
        let number = number.map_or("-".to_owned(), |number| number.to_string());
        let caught =
            (1..=seeds).map(|seed| kiln_sim::run(seed, Some(*bug), false)).find_map(|run| run.broken.map(|broken| (run.seed, broken)));
        match caught {
            Some((seed, broken)) if broken.invariant == *invariant => println!("caught  {number:>2} {bug:?} -> {invariant} (seed {seed})"),
            Some((seed, broken)) => {
                missed = true;
                println!("OTHER   {number:>2} {bug:?} -> {} (seed {seed}), expected {invariant}: {}", broken.invariant, broken.subject);
            }
            None => {
                missed = true;
                println!("MISSED  {number:>2} {bug:?}: {invariant}");
            }
        }
    }
    if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
