//! `kiln`: the one binary of the farm. Reads the command line and hands over; every command lives in a module of its own.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod args;
mod backup;
mod beacon;
mod build;
mod ca;
mod client;
mod cluster;
mod daemon;
mod daemons;
mod diff;
mod drain;
mod drv;
mod durations;
mod embedded;
mod evaluate;
mod explain;
mod failures;
mod gc;
mod hook;
mod import;
mod json;
mod keys;
mod logging;
mod nar;
mod operate;
mod order;
mod progress;
mod realise;
mod share;
mod status;
mod steer;
mod submission;
mod submit;
mod tables;
mod tame;
mod token;
mod up;
mod words;

/// A farm's state is millions of small texts and lists, made on one thread and dropped on another. Source: ADR 0048.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A build farm for Nix-style package sets.
#[derive(Parser)]
#[command(name = "kiln", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a whole farm in this process: one coordinator, workers, the cache
    Up(up::Args),
    /// Build derivations and print their output paths
    Build(build::Args),
    /// Build a set of jobs that nix-eval-jobs evaluated
    ///
    /// Every job is built, whatever else fails. Exit code 1 if a job failed or an attribute does not evaluate.
    Submit(submit::Args),
    /// Run a coordinator
    Coordinator(daemons::Args),
    /// Run a worker
    ///
    /// SIGTERM: takes nothing new, finishes and reports what it builds, then ends with exit code 0. A second SIGTERM, or SIGINT
    /// (Ctrl-C), kills what it builds and ends at once; that is built again, here or elsewhere.
    Worker(daemons::Args),
    /// Run builders for the worker that started this; nothing for people
    #[command(hide = true)]
    Launcher(daemons::LauncherArgs),
    /// Serve unmodified Nix: its clients build on the farm, and have its store for their own
    Daemon(daemon::Args),
    /// Build for a Nix that keeps its own store; nix.conf names this as its build-hook
    BuildHook(hook::Args),
    /// Build what a newer Nix describes in a file; nix.conf names this in its external-builders
    ExternalBuilder(hook::ExternalArgs),
    /// Show the farm at a glance
    Status(operate::StatusArgs),
    /// List the jobs of live builds
    Jobs(operate::Args),
    /// Say why a job is where it is: what it waits for, what each worker is to it, who waits for it
    Explain(explain::Args),
    /// Say what differs between two builds of one set: what fails newly, what changed
    Diff(diff::Args),
    /// List the workers
    Workers(operate::Args),
    /// Print the log of a job
    Log(operate::LogArgs),
    /// Let a worker take nothing new: it finishes what it has
    Drain(drain::DrainArgs),
    /// Let a worker take jobs again that was drained, rests or is quarantined
    Undrain(drain::DrainArgs),
    /// Stop wanting a build, or let a job fail that is not built
    ///
    /// A build ends at once; of its jobs those stop that no other build wants. A job fails in every build that wants it, and with it what
    /// needs it; what it needs itself goes on.
    Cancel(steer::Args),
    /// Move a build before the others of its project, or a job with all that it needs
    Bump(steer::BumpArgs),
    /// Try again what failed, as if it had never been tried
    ///
    /// Of a live build, or of a job and all that it needs, what failed waits again, and with it what failed because of it; builds that were
    /// about to end go on, and what waits after a failure of a machine waits no longer. A build that has ended is submitted once more.
    Restart(steer::Args),
    /// Who has which share of the farm
    #[command(subcommand)]
    Share(share::Command),
    /// Look at the coordinators, and change who they are
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Show facts about paths of the farm's cache
    PathInfo(operate::PathInfoArgs),
    /// Delete from the farm's store what nobody keeps
    ///
    /// Kept are the newest ended builds of each name and young ones, live builds, pins, what clients hold, and what was uploaded or asked
    /// for lately, each with all that it refers to.
    Gc(gc::Args),
    /// What builds are expected to take
    #[command(subcommand)]
    Durations(durations::Command),
    /// Keep paths of the farm's store, and all that they refer to, under a name
    Pin(gc::PinArgs),
    /// End that
    Unpin(gc::PinArgs),
    /// List what is pinned
    Pins(gc::PinsArgs),
    /// Show and check derivations
    #[command(subcommand)]
    Drv(drv::Command),
    /// Pack, unpack and check Nix archives
    #[command(subcommand)]
    Nar(nar::Command),
    /// Make the farm's certificates
    #[command(subcommand)]
    Ca(ca::Command),
    /// Make keys that sign a binary cache
    #[command(subcommand)]
    Keys(keys::Command),
    /// Make tokens with which clients may upload to the cache, or use the HTTP API
    #[command(subcommand)]
    Token(token::Command),
}

fn main() -> ExitCode {
    let cli = Cli::parse_from(words_given());
    match &cli.command {
        // They start it themselves, once they know where spans go.
        Command::Up(_) | Command::Coordinator(_) | Command::Worker(_) => {}
        Command::Launcher(_) => logging::start(true),
        // Standard error is a client's terminal.
        Command::Daemon(args) => logging::start(!args.stdio),
        _ => logging::start(false),
    }
    run(cli.command).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        words::exit_code_of(&error)
    })
}

/// Returns the words of the command line. Nix 2.8 names its build hook without arguments, so a link of this name stands for the command.
fn words_given() -> Vec<OsString> {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    if words.first().is_some_and(|program| Path::new(program).file_name() == Some(OsStr::new("kiln-build-hook"))) {
        words.insert(1, OsString::from("build-hook"));
    }
    words
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up(args) => up::run(args),
        Command::Build(args) => build::run(args),
        Command::Submit(args) => submit::run(args),
        Command::Coordinator(args) => daemons::coordinator(&args),
        Command::Worker(args) => daemons::worker(&args),
        Command::Launcher(args) => daemons::launcher(&args),
        Command::Daemon(args) => daemon::run(args),
        Command::BuildHook(args) => hook::run(args),
        Command::ExternalBuilder(args) => hook::run_external(args),
        Command::Status(args) => operate::status(&args),
        Command::Jobs(args) => operate::jobs(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Workers(args) => operate::workers(&args),
        Command::Log(args) => operate::log(&args),
        Command::Drain(args) => drain::drain(&args, true),
        Command::Undrain(args) => drain::drain(&args, false),
        Command::Cancel(args) => steer::cancel(&args),
        Command::Bump(args) => steer::bump(&args),
        Command::Restart(args) => steer::restart(&args),
        Command::Share(command) => share::run(command),
        Command::Cluster(command) => cluster::run(command),
        Command::PathInfo(args) => operate::path_info(&args),
        Command::Gc(args) => gc::gc(&args),
        Command::Durations(command) => durations::run(command),
        Command::Pin(args) => gc::pin(&args),
        Command::Unpin(args) => gc::unpin(&args),
        Command::Pins(args) => gc::pins(&args),
        Command::Drv(command) => drv::run(command),
        Command::Nar(command) => nar::run(command),
        Command::Ca(command) => ca::run(command),
        Command::Keys(command) => keys::run(command),
        Command::Token(command) => token::run(command),
    }
}
