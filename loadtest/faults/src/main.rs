//! `kiln-faults`: real faults for a real farm, as a program. `ops/prove/failover` and `ops/prove/upgrade` call it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Parser, Subcommand};
use kiln_faults::farm::{ELECTION_MS, Shape};
use kiln_faults::kills::Kills;
use kiln_faults::rounds::{Rounds, must_be_new};
use kiln_faults::snapshots::Snapshots;
use kiln_faults::transfers::Transfers;
use kiln_faults::upgrade::Upgrade;
use kiln_faults::{net, run, upgrade};

/// Breaks a real farm in network namespaces, and checks what comes of it. Needs root.
#[derive(Debug, Parser)]
#[command(name = "kiln-faults", version)]
struct Options {
    /// The `kiln` program
    #[arg(long, value_name = "FILE")]
    kiln: PathBuf,
    /// The S3-compatible server
    #[arg(long, value_name = "FILE")]
    s3: PathBuf,
    /// An empty directory for everything
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// How many coordinators
    #[arg(long, default_value_t = 3)]
    coordinators: u8,
    /// How many workers
    #[arg(long, default_value_t = 3)]
    workers: u8,
    /// What determines all that is drawn; drawn itself if it is not given
    #[arg(long)]
    seed: Option<u64>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Real builds under drawn faults
    Rounds {
        /// List of derivations that are built beforehand, once
        #[arg(long, value_name = "FILE")]
        before: Option<PathBuf>,
        /// List of derivations that each round builds
        #[arg(long, value_name = "FILE")]
        set: PathBuf,
        /// List of derivations that clients submit and cancel meanwhile
        #[arg(long, value_name = "FILE")]
        spare: PathBuf,
        /// How many
        #[arg(long, default_value_t = 20)]
        rounds: u64,
        /// Only this one of them
        #[arg(long)]
        only: Option<u64>,
        /// libfaketime, with which clocks of coordinators step
        #[arg(long, value_name = "FILE")]
        clock_library: Option<PathBuf>,
    },
    /// kill -9 of the leader, again and again, under load
    Kill {
        /// List of derivations to build meanwhile
        #[arg(long, value_name = "FILE")]
        set: PathBuf,
        /// How often
        #[arg(long, default_value_t = 20)]
        kills: usize,
    },
    /// Planned transfers of leadership, under load
    Transfer {
        /// List of derivations to build meanwhile
        #[arg(long, value_name = "FILE")]
        set: PathBuf,
        /// How often
        #[arg(long, default_value_t = 20)]
        transfers: usize,
    },
    /// A rolling upgrade, as its runbook says, under load
    Upgrade {
        /// The program of the release before
        #[arg(long, value_name = "FILE")]
        older: PathBuf,
        /// List of derivations to build meanwhile
        #[arg(long, value_name = "FILE")]
        set: PathBuf,
        /// List of derivations that clients of both releases build, one at each step
        #[arg(long, value_name = "FILE")]
        spare: PathBuf,
        /// The runbook
        #[arg(long, value_name = "FILE")]
        runbook: PathBuf,
    },
    /// A large graph: snapshots, and a wiped follower that comes back
    Snapshot {
        /// The recorded graph, as JSON lines
        #[arg(long, value_name = "FILE")]
        graph: PathBuf,
        /// List with one derivation that all others take after
        #[arg(long, value_name = "FILE")]
        like: PathBuf,
    },
}

fn main() -> ExitCode {
    prove(Options::parse()).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn prove(options: Options) -> anyhow::Result<ExitCode> {
    run::listen_for_interrupts()?;
    net::sweep()?;
    must_be_new(&options.dir)?;
    let dir = options.dir.canonicalize()?;
    let seed = options.seed.unwrap_or_else(drawn);
    println!("faults: --seed {seed}");
    let shape = Shape {
        kiln: options.kiln,
        s3: options.s3,
        coordinators: options.coordinators,
        workers: options.workers,
        disks: false,
        election_ms: ELECTION_MS,
        clock_library: None,
    };
    match options.what {
        What::Rounds { before, set, spare, rounds, only, clock_library } => {
            Rounds { shape: Shape { disks: true, clock_library, ..shape }, dir, before, set, spare, rounds, only, seed }.run()
        }
        What::Kill { set, kills } => Kills { shape, dir, set, kills, seed }.run(),
        What::Snapshot { graph, like } => Snapshots { shape, dir, graph, like }.run(),
        What::Upgrade { older, set, spare, runbook } => {
            let newer = shape.kiln.clone();
            Upgrade { shape: Shape { kiln: older, election_ms: upgrade::ELECTION_MS, ..shape }, newer, dir, set, spare, runbook }.run()
        }
        What::Transfer { set, transfers } => Transfers { shape, dir, set, transfers }.run(),
    }
}

fn drawn() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) << 16 ^ u64::from(std::process::id())
}
