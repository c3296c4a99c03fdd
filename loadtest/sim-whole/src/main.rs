//! The real coordinators, with real consensus, links and TLS, in a simulated world: one seed, one process, one run.
//!
//!     kiln-sim-whole --seed N [--trace]     one run; the trace of two runs of a seed is the same, byte for byte
//!     kiln-sim-whole --seeds FROM..TO [--jobs N]   a process for each; prints what failed and how to repeat it
//!     kiln-sim-whole --bugs [--jobs N]      every planted bug, and the check that catches it
//!
//! `--bug NAME` plants one in a run.

mod bug;
mod bugs;
mod checks;
mod client;
mod entropy;
mod faults;
mod mishaps;
mod operator;
mod pace;
mod planted;
mod told;
mod work;
mod worker;
mod world;

use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1)).cloned();
    let number = |text: String| text.parse::<u64>().ok();
    if std::env::var_os(CPU_ENTROPY).is_none() {
        return again();
    }
    let has = |name: &str| args.iter().any(|arg| arg == name);
    let jobs = value("--jobs").and_then(number).unwrap_or(2);
    match (value("--bug"), value("--bug").and_then(|name| bug::Bug::parse(&name))) {
        (Some(_), None) => return usage(),
        (None, _) => {}
        (_, Some(bug)) => bug.plant(),
    }
    match (value("--seed").and_then(number), value("--seeds")) {
        (None, None) if has("--bugs") => bugs::show(jobs),
        (Some(seed), None) => one(seed, has("--trace")),
        (None, Some(range)) => match range.split_once("..").map(|(from, to)| (from.parse::<u64>(), to.parse::<u64>())) {
            Some((Ok(from), Ok(to))) => many(from, to, jobs),
            _ => usage(),
        },
        _ => usage(),
    }
}

/// Starts this program again, with a cryptography that does not draw from the processor: it looks once, before `main`.
fn again() -> ExitCode {
    use std::os::unix::process::CommandExt;
    let program = std::env::current_exe().expect("this program");
    let failed = Command::new(program).args(std::env::args_os().skip(1)).env(CPU_ENTROPY, "~0x4000000000000000").exec();
    eprintln!("start again without the processor's randomness: {failed}");
    ExitCode::FAILURE
}

/// What aws-lc leaves unused of the processor: here bit 62, RDRAND.
const CPU_ENTROPY: &str = "OPENSSL_ia32cap";

fn usage() -> ExitCode {
    eprintln!("usage: kiln-sim-whole --seed N [--trace] [--bug NAME] | --seeds FROM..TO [--jobs N] | --bugs [--jobs N]");
    ExitCode::from(2)
}

/// Runs one seed in this process.
fn one(seed: u64, trace: bool) -> ExitCode {
    let told = told::Told::default();
    let shown = trace.then(|| {
        // Neither times nor levels in colour: the same run must give the same bytes.
        let format = tracing_subscriber::fmt::layer().without_time().with_ansi(false).with_writer(std::io::stdout);
        format.with_filter(EnvFilter::new(
            std::env::var("KILN_SIM_LOG").unwrap_or_else(|_| "kiln_sim_whole=debug,kiln_coordinator=debug,kiln_route=debug".into()),
        ))
    });
    let kept = told.clone().with_filter(EnvFilter::new("kiln_coordinator=info,kiln_coordinator::raft::trace=debug"));
    tracing_subscriber::registry().with(kept).with(shown).init();
    // In the run's own directory, so that paths are the same in every run.
    let dir = tempfile::tempdir().expect("a directory");
    std::env::set_current_dir(dir.path()).expect("a directory that was just made");
    // On a thread of its own, where nothing was drawn yet: a run with a trace is the run without.
    let run = move || {
        entropy::begin(seed);
        world::run(seed, &told)
    };
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(run).expect("a thread");
    let Ok(ended) = thread.join() else {
        println!("seed {seed}: FAILED: nothing panics");
        println!("repeat: kiln-sim-whole --seed {seed} --trace");
        return ExitCode::FAILURE;
    };
    match ended {
        Ok(report) => {
            let world::Report { simulated, jobs, leaders, faults, repeated, seen } = report;
            let faults: Vec<String> = faults.iter().map(|(what, count)| format!("{count} {what}")).collect();
            let seen: Vec<String> = seen.iter().map(|(what, count)| format!("{count} {what}")).collect();
            println!(
                "seed {seed}: holds; {} s, {jobs} jobs, {leaders} leaders, {repeated} attempts more than jobs; {}; {}",
                simulated.as_secs(),
                faults.join(", "),
                seen.join(", ")
            );
            ExitCode::SUCCESS
        }
        Err(breaches) => {
            breaches.iter().for_each(|breach| println!("seed {seed}: FAILED: {breach}"));
            println!("repeat: kiln-sim-whole --seed {seed} --trace");
            ExitCode::FAILURE
        }
    }
}

const STACK_BYTES: usize = 16 << 20;

/// Runs each seed in a process of its own, some at a time.
fn many(from: u64, to: u64, jobs: u64) -> ExitCode {
    let program = std::env::current_exe().expect("this program");
    let started = Instant::now();
    let (mut running, mut failed, mut passed) = (Vec::new(), Vec::new(), 0u64);
    let mut seeds = from..to;
    loop {
        while (running.len() as u64) < jobs
            && let Some(seed) = seeds.next()
        {
            let child = Command::new(&program).args(["--seed", &seed.to_string()]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
            running.push((seed, child.expect("a process")));
        }
        if running.is_empty() {
            break;
        }
        let (seed, child) = running.remove(0);
        let output = child.wait_with_output().expect("it ends");
        if output.status.success() {
            passed += 1;
        } else {
            failed.push(seed);
            print!("{}", String::from_utf8_lossy(&output.stdout));
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            errors.lines().take(12).for_each(|line| println!("  {line}"));
            if output.stdout.is_empty() {
                println!("repeat: kiln-sim-whole --seed {seed} --trace");
            }
        }
    }
    let (elapsed_s, cpu_s) = (started.elapsed().as_secs_f64(), children_cpu_s());
    println!("whole program: {passed} seeds hold, {} failed {failed:?}, {elapsed_s:.0} s, {cpu_s:.0} s of processor time", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Returns the processor time of the processes that have ended, in seconds.
#[allow(unsafe_code, reason = "the standard library does not tell it")]
fn children_cpu_s() -> f64 {
    // SAFETY: all zeros are a valid value of it, and it may be written.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
