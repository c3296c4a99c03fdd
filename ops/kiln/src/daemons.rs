//! `kiln coordinator` and `kiln worker`: the two daemons, each from a configuration file.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use kiln_coordinator::{Coordinator, StartError};
use kiln_link::Identity;
use kiln_trace::{Exporting, Service};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::logging;
use crate::words::{self, bad_input};

/// Arguments of a daemon.
#[derive(clap::Args)]
pub struct Args {
    /// Configuration file (TOML)
    #[arg(long, value_name = "F")]
    config: PathBuf,
}

/// Arguments of a launcher.
#[derive(clap::Args)]
pub struct LauncherArgs {
    /// What a launcher without root hands on to itself
    #[arg(long, value_name = "WORD")]
    users: Option<String>,
}

/// Returns the runtime that everything of a process runs on.
pub fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")
}

/// Runs a coordinator until SIGINT or SIGTERM.
pub fn coordinator(args: &Args) -> anyhow::Result<ExitCode> {
    let config = kiln_coordinator::Config::read(&args.config).map_err(|error| bad_input(format!("{:#}", anyhow::Error::from(error))))?;
    let identity = Identity::load(&config.identity).map_err(|error| bad_input(format!("{:#}", anyhow::Error::from(error))))?;
    let exporting = logging::start_tracing(&config.traces, Service { name: "kiln-coordinator", instance: config.node.to_string() })?;
    runtime()?.block_on(async {
        exporting.into_iter().for_each(Exporting::run);
        let started = Coordinator::start(config, &identity).await.map_err(|error| match error {
            // What the configuration lacks is the reader's to mend.
            error @ (StartError::Peers(_) | StartError::SharedStore(_)) => bad_input(format!("{:#}", anyhow::Error::from(error))),
            error => error.into(),
        });
        let coordinator = started.context("start coordinator")?;
        tracing::info!(link = %coordinator.link_addr(), http = %coordinator.http_addr(), "coordinator is up");
        tokio::select! {
            told = told_to_stop() => told?,
            error = coordinator.failed() => return Err(anyhow::Error::from(error).context("the coordinator stopped by itself")),
        }
        coordinator.stop().await;
        kiln_trace::flush().await;
        Ok(ExitCode::from(words::SUCCESS))
    })
}

/// Runs a worker until it is told to stop and has finished what runs.
pub fn worker(args: &Args) -> anyhow::Result<ExitCode> {
    let config = kiln_worker::Config::load(&args.config).map_err(|error| bad_input(format!("{:#}", anyhow::Error::from(error))))?;
    let identity = Identity::load(&config.identity_dir).map_err(|error| bad_input(format!("{:#}", anyhow::Error::from(error))))?;
    let exporting = logging::start_tracing(&config.traces, Service { name: "kiln-worker", instance: config.name.to_string() })?;
    let program = std::env::current_exe().context("find this program, which also launches builds")?;
    // Before the runtime has threads: what is given up here is given up by those that are started later.
    let launcher = kiln_worker::settle(&config, &program).context("start worker")?;
    runtime()?.block_on(async {
        exporting.into_iter().for_each(Exporting::run);
        tokio::select! {
            ended = kiln_worker::run(config, identity, launcher) => {
                kiln_trace::flush().await;
                ended.context("run worker")?;
                Ok(ExitCode::from(words::SUCCESS))
            }
            failed = say_what_signals_do() => Err(failed.context("listen for signals")),
        }
    })
}

/// Runs builders for the worker at the other end of standard input, until that is gone.
pub fn launcher(args: &LauncherArgs) -> anyhow::Result<ExitCode> {
    kiln_worker::launcher::serve_stdin(args.users.as_deref()).context("launch builds")?;
    Ok(ExitCode::from(words::SUCCESS))
}

/// Tells whoever sent the worker a signal what follows; the worker hears the same signals and acts on them. Returns only an error.
async fn say_what_signals_do() -> anyhow::Error {
    let (mut interrupt, mut terminate) = match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
        (Err(error), _) | (_, Err(error)) => return error.into(),
    };
    let mut finishing = false;
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => finishing = true,
        }
        eprintln!("{}", if finishing { STOPPING } else { FINISHING });
        finishing = true;
    }
}

/// Returns once this process is told to stop, by SIGINT or SIGTERM.
pub async fn told_to_stop() -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

const FINISHING: &str = "finishing: what is being built here is built and reported, nothing new is taken; terminate again to stop at once";
const STOPPING: &str = "stopping at once: what was being built here is built again elsewhere";
