//! `kiln-s3`: the server as a program.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kiln_s3::{Config, S3Server};
use tokio::signal::unix::{SignalKind, signal};

/// An S3-compatible server for tests. Prints `listening on http://ADDR`, and ends at SIGTERM or SIGINT.
#[derive(Debug, Parser)]
#[command(name = "kiln-s3", version)]
struct Options {
    /// Where to listen; port 0 takes any that is free.
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// Where objects lie; made if absent.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The access key that requests are signed with.
    #[arg(long, value_name = "KEY")]
    access_key: String,
    /// Its secret.
    #[arg(long, value_name = "SECRET")]
    secret_key: String,
    /// A bucket that exists from the start; may be given several times.
    #[arg(long = "bucket", value_name = "NAME", default_value = "kiln")]
    buckets: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut cause: Option<&dyn std::error::Error> = Some(error.as_ref());
            let mut parts = Vec::new();
            while let Some(error) = cause {
                parts.push(error.to_string());
                cause = error.source();
            }
            eprintln!("kiln-s3: {}", parts.join(": "));
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let Options { listen, dir, access_key, secret_key, buckets } = options;
    let (mut terminated, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let server = S3Server::start(Config { listen, dir, access_key, secret_key, buckets }).await?;
    println!("listening on {}", server.endpoint());
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    server.stop().await;
    Ok(())
}
