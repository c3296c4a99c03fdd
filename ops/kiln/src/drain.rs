//! `kiln drain` and `kiln undrain`: take a worker out of use, and give it back.

use std::process::ExitCode;

use kiln_wire::client::Request;
use kiln_wire::{Ailing, Standing, WorkerId};

use crate::args::FarmArgs;
use crate::client::Client;
use crate::daemons::runtime;
use crate::words::{self, bad_input};

/// Arguments of `kiln drain` and `kiln undrain`.
#[derive(clap::Args)]
pub struct DrainArgs {
    #[command(flatten)]
    farm: FarmArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The worker's name, as `kiln workers` shows it
    worker: String,
}

/// Lets a worker take nothing new, or take jobs again.
pub fn drain(args: &DrainArgs, drain: bool) -> anyhow::Result<ExitCode> {
    let worker = WorkerId::parse(&args.worker).map_err(|error| bad_input(format!("{error}; `kiln workers` lists the workers' names")))?;
    let request = Request::Drain { worker: worker.clone(), drain };
    runtime()?.block_on(async { Client::open(&args.farm).await?.one(&request).await })?;
    if args.json {
        println!("{}", serde_json::json!({ "worker": worker, "drained": drain }));
    } else if drain {
        println!("{worker} takes nothing new and finishes what it has; `kiln undrain {worker}` ends that");
    } else {
        println!("{worker} takes jobs again; what was held against it is forgotten");
    }
    Ok(ExitCode::from(words::SUCCESS))
}

/// Returns in a sentence why a worker gets nothing, or little.
pub fn why(worker: &WorkerId, ailing: &Ailing) -> String {
    let last = &ailing.message;
    match ailing.standing {
        _ if ailing.drained => format!("{worker} is drained: it gets nothing new until `kiln undrain {worker}`"),
        Standing::Working => format!("{worker} is well"),
        Standing::Resting { .. } => {
            format!("{worker} rests for a while, for the {}. time: jobs kept failing there, the last with: {last}", ailing.rests)
        }
        Standing::Probation { .. } => {
            format!("{worker} has rested and gets one job at a time until one is built; the last that failed said: {last}")
        }
        Standing::Quarantined { .. } => format!(
            "{worker} is quarantined: jobs failed there after each of {} rests, the last with: {last}; mend it, then `kiln undrain {worker}`",
            ailing.rests
        ),
    }
}
