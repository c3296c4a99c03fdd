//! `kiln-load`: what a farm costs under load, as a program. `ops/prove/load` calls it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use kiln_faults::report::Claims;
use kiln_load::farm::{self, Programs};
use kiln_load::presets::{self, Setting};
use kiln_load::watched;
use tracing_subscriber::EnvFilter;

/// As in `kiln`, whose coordinators these are.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Puts a real farm under load on loopback and prints what it costs, a line per claim. Exits 1 if one falls short, 2 if it cannot be told.
#[derive(Debug, Parser)]
#[command(name = "kiln-load", version)]
struct Options {
    /// The `kiln` program that coordinators run [default: the same coordinator, in processes of this program]
    #[arg(long, value_name = "FILE")]
    kiln: Option<PathBuf>,
    /// How many coordinators
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=7))]
    coordinators: u8,
    /// How many workers [default: as the preset has it]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    workers: Option<u32>,
    /// Slots of each worker [default: as the preset has it]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    slots: Option<u32>,
    /// How many derivations; a graph is repeated or cut [default: as the preset has it]
    #[arg(long)]
    jobs: Option<usize>,
    /// A recorded graph, `NAME.jsonl.zst`, for `submit`, `throughput` and `replay`
    #[arg(long, value_name = "FILE")]
    graph: Option<PathBuf>,
    /// How many jobs become ready in a second, for `latency`
    #[arg(long, default_value_t = 1000)]
    rate: usize,
    /// The longest time for one run, in seconds
    #[arg(long, default_value_t = 600)]
    limit: u64,
    /// Where the farm's directory is made: a disk, since durable writes are part of what is measured
    #[arg(long, value_name = "DIR", env = "PROVE_PARENT", default_value = "/var/tmp")]
    parent: PathBuf,
    #[command(subcommand)]
    preset: Preset,
}

#[derive(Debug, Subcommand)]
enum Preset {
    /// 100,000 derivations submitted to a farm without workers: time and memory
    Submit,
    /// 20,000 independent jobs that take no time: assignments a second, processor time a job
    Throughput,
    /// 1,000 jobs, or as `--rate` says, become ready in a second: how long until workers have them
    Latency,
    /// 1,000 workers are connected and nothing happens: processor time
    Idle,
    /// 1,000 jobs that take no time, one after the other: time per hop, beside the commits of the same run
    Chain,
    /// A recorded graph whose jobs take drawn times
    Replay {
        /// The median of these times, in milliseconds; they are log-normal with σ = 1
        #[arg(long, default_value_t = 0)]
        median_ms: u64,
    },
    /// A build of a recorded graph is under way on 1,000 workers: how long pages take, what 200 browsers cost
    Pages,
    /// A coordinator of the farm under load
    #[command(hide = true)]
    Coordinator {
        #[arg(long)]
        config: PathBuf,
    },
    /// The S3-compatible server that several coordinators share
    #[command(hide = true)]
    Store {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        dir: PathBuf,
    },
}

impl Preset {
    /// Whether it puts a farm under load; the others are parts of one.
    fn is_load(&self) -> bool {
        !matches!(self, Self::Coordinator { .. } | Self::Store { .. })
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let filter = EnvFilter::try_from_env("KILN_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return cannot(&error.into()),
    };
    let mut claims = Claims::default();
    let performed = runtime.block_on(async {
        tokio::select! {
            performed = perform(&options, &mut claims) => performed,
            // The farm's processes end with what is dropped here.
            told = farm::told_to_stop(), if options.preset.is_load() => told.and_then(|()| Err(anyhow::anyhow!("told to stop"))),
        }
    });
    match performed {
        Ok(()) if !options.preset.is_load() => ExitCode::SUCCESS,
        Ok(()) => claims.finish(),
        Err(error) => cannot(&error),
    }
}

fn cannot(error: &anyhow::Error) -> ExitCode {
    eprintln!("kiln-load: {error:#}");
    ExitCode::from(2)
}

async fn perform(options: &Options, claims: &mut Claims) -> anyhow::Result<()> {
    let own = std::env::current_exe().context("find this program, which runs the farm too")?;
    let programs = Programs { coordinator: options.kiln.clone().unwrap_or_else(|| own.clone()), store: own };
    let setting = Setting {
        programs,
        coordinators: options.coordinators,
        workers: options.workers,
        slots: options.slots,
        jobs: options.jobs,
        graph: options.graph.clone(),
        rate: options.rate,
        limit: Duration::from_secs(options.limit),
        parent: options.parent.clone(),
    };
    match &options.preset {
        Preset::Submit => presets::submit(&setting, claims).await,
        Preset::Throughput => presets::throughput(&setting, claims).await,
        Preset::Latency => presets::latency(&setting, claims).await,
        Preset::Idle => presets::idle(&setting, claims).await,
        Preset::Chain => presets::chain(&setting, claims).await,
        Preset::Replay { median_ms } => presets::replay(&setting, Duration::from_millis(*median_ms), claims).await,
        Preset::Pages => watched::pages(&setting, claims).await,
        Preset::Coordinator { config } => farm::serve_coordinator(config).await,
        Preset::Store { listen, dir } => {
            let store = farm::serve_store(*listen, dir.clone()).await?;
            farm::told_to_stop().await?;
            store.stop().await;
            Ok(())
        }
    }
}
