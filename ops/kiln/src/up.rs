//! `kiln up`: a whole farm in this process, until it is told to stop.

use std::net::SocketAddr;
use std::process::ExitCode;

use kiln_coordinator::Substituter;
use kiln_trace::{Config, Exporting, Service};
use kiln_wire::StoreDir;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::DirArgs;
use crate::daemons::runtime;
use crate::embedded::{ADMIN_TOKEN, Access, Farm, Shape};
use crate::{logging, words};

/// Arguments of `kiln up`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    dir: DirArgs,
    /// Workers that share this machine
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
    /// UDP address for clients (QUIC)
    #[arg(long, default_value = "127.0.0.1:7420", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// TCP address of the dashboard, the binary cache and the metrics (HTTP)
    #[arg(long, default_value = "127.0.0.1:7480", value_name = "ADDRESS")]
    http: SocketAddr,
    /// The directory that store paths live in
    #[arg(long, default_value_t = StoreDir::default(), value_parser = StoreDir::parse)]
    store_dir: StoreDir,
    /// A cache to take from what need not be built: its URL and the keys that sign there, with spaces between; may be given several times
    #[arg(long = "substituter", value_name = "URL KEY", value_parser = Substituter::parse)]
    substituters: Vec<Substituter>,
}

/// Runs the farm until SIGINT or SIGTERM.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let dir = args.dir.dir();
    let shape = Shape {
        dir: dir.clone(),
        workers: args.workers,
        link: args.listen,
        http: args.http,
        store_dir: args.store_dir,
        substituters: args.substituters,
        // What others reach is not for everybody to look at.
        access: if args.http.ip().is_loopback() { Access::Open } else { Access::Token },
    };
    let exporting = logging::start_tracing(&Config::default(), Service { name: "kiln", instance: "up".to_owned() })?;
    runtime()?.block_on(async {
        exporting.into_iter().for_each(Exporting::run);
        let farm = Farm::start(shape).await?;
        let (link, http) = (farm.coordinator.link_addr(), farm.coordinator.http_addr());
        println!("Kiln is up; its state is in {}", dir.display());
        println!("  farm     kiln://{link}");
        println!("  look     http://{http}/ui/");
        println!("  cache    http://{http}");
        println!("  key      {}", farm.coordinator.public_key());
        println!("  metrics  http://{http}/metrics");
        println!("  API      http://{http}/api/v1, for administrators with the token in {}", dir.join(ADMIN_TOKEN).display());
        println!("Build with `kiln build -f FILE -A ATTR`; look with `kiln status`; stop with Ctrl-C.");
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let failure = tokio::select! {
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
            error = farm.coordinator.failed() => Some(error),
        };
        eprintln!("stopping");
        farm.stop().await?;
        kiln_trace::flush().await;
        match failure {
            Some(error) => Err(anyhow::Error::from(error).context("the coordinator stopped by itself")),
            None => Ok(ExitCode::from(words::SUCCESS)),
        }
    })
}
