//! `kiln gc`, `kiln pin`, `kiln unpin`, `kiln pins`: what the farm's store keeps, and what of it is deleted.

use std::process::ExitCode;

use kiln_wire::client::{Request, Response};
use kiln_wire::{Collect, Collected, GarbageAnswer, GarbageRequest, StoreDir, StorePath};
use serde_json::json;

use crate::args::FarmArgs;
use crate::client::{AskError, Client, unexpected};
use crate::daemons::runtime;
use crate::operate::parse_path;
use crate::words;

/// Arguments of `kiln gc`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    farm: FarmArgs,
    /// Say what would be deleted, and delete nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Say why a path is kept, and delete nothing
    #[arg(long, value_name = "PATH", conflicts_with = "dry_run")]
    why: Option<String>,
    /// Keep what was uploaded, built or asked for in the last SECONDS, and let NARs follow their narinfos after as many, in place of
    /// what the coordinator's `[gc]` says. What was asked for stays at least as long as that says, except with 0: then nobody should be
    /// uploading or submitting
    #[arg(long, value_name = "SECONDS")]
    grace: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `kiln pin` and `kiln unpin`.
#[derive(clap::Args)]
pub struct PinArgs {
    #[command(flatten)]
    farm: FarmArgs,
    /// The name
    name: String,
    /// The paths; all that the name pins if none is named for `unpin`
    paths: Vec<String>,
}

/// Arguments of `kiln pins`.
#[derive(clap::Args)]
pub struct PinsArgs {
    #[command(flatten)]
    farm: FarmArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Collects garbage, or says what is and what is not.
pub fn gc(args: &Args) -> anyhow::Result<ExitCode> {
    runtime()?.block_on(async {
        let client = Client::open(&args.farm).await?;
        let store_dir = client.status().await?.store_dir;
        if let Some(path) = &args.why {
            return why(&client, &store_dir, path, args.json).await;
        }
        let order = Collect { dry_run: args.dry_run, grace_seconds: args.grace, ..Collect::default() };
        let quiet = args.json;
        let verb = if args.dry_run { "would delete" } else { "deleted" };
        let mut paths = Vec::new();
        let collected = collect(&client, order, |some| {
            if !quiet {
                some.iter().for_each(|path| println!("{verb} {}", store_dir.join(path)));
            }
            paths.extend(some);
        });
        let collected = collected.await?;
        if args.json {
            println!("{}", to_json(&paths, &collected, &store_dir, args.dry_run));
        } else {
            println!("{}", summary(&collected, args.dry_run));
        }
        Ok(ExitCode::from(words::SUCCESS))
    })
}

/// Has garbage collected, and hands on the paths as they are told.
///
/// # Errors
/// What the farm refused or could not do.
pub async fn collect(client: &Client, order: Collect, mut told: impl FnMut(Vec<StorePath>)) -> anyhow::Result<Collected> {
    let request = Request::Garbage(GarbageRequest::Collect(order));
    let mut tries = client.tries();
    loop {
        match collect_once(&tries.leader().await?, &request, &mut told).await {
            Ok(collected) => return Ok(collected),
            Err(error) => tries.failed(error).await?,
        }
    }
}

async fn collect_once(
    leader: &crate::client::Leading,
    request: &Request,
    told: &mut impl FnMut(Vec<StorePath>),
) -> Result<Collected, AskError> {
    let (_sender, mut answers) = leader.ask(request).await?;
    loop {
        match answers.next().await? {
            Some(Response::Garbage(GarbageAnswer::Paths(paths))) => told(paths),
            Some(Response::Garbage(GarbageAnswer::Collected(collected))) => return Ok(collected),
            _ => return Err(unexpected("another kind")),
        }
    }
}

fn summary(collected: &Collected, dry_run: bool) -> String {
    let Collected { paths, derivations, blobs, bytes, builds, kept } = *collected;
    let verb = if dry_run { "would be deleted" } else { "deleted" };
    format!(
        "{verb}: {}, {}, {}, {} of ended builds, {}; kept: {}",
        words::count(paths, "path"),
        words::count(derivations, "derivation"),
        words::count(blobs, "NAR"),
        words::count(builds, "record"),
        words::size(bytes),
        words::count(kept, "path"),
    )
}

fn to_json(paths: &[StorePath], collected: &Collected, store_dir: &StoreDir, dry_run: bool) -> serde_json::Value {
    let paths: Vec<String> = paths.iter().map(|path| store_dir.join(path)).collect();
    json!({
        "dryRun": dry_run, "paths": paths, "validPaths": collected.paths, "derivations": collected.derivations,
        "nars": collected.blobs, "bytes": collected.bytes, "builds": collected.builds, "kept": collected.kept,
    })
}

async fn why(client: &Client, store_dir: &StoreDir, path: &str, as_json: bool) -> anyhow::Result<ExitCode> {
    let path = parse_path(path, store_dir)?;
    let Response::Garbage(GarbageAnswer::Why(found)) = client.one(&Request::Garbage(GarbageRequest::Why(path.clone()))).await? else {
        return Err(unexpected("another kind").into_error());
    };
    let chain = found.as_ref().map(|(_, chain)| chain.iter().map(|path| store_dir.join(path)).collect::<Vec<_>>());
    match (found, chain) {
        (found, chain) if as_json => println!("{}", json!({ "root": found.map(|(root, _)| root), "chain": chain })),
        (Some((root, _)), Some(chain)) => println!("{root}\n  {}", chain.join("\n  ")),
        _ => println!("nobody keeps `{}`, or the farm does not have it", store_dir.join(&path)),
    }
    Ok(ExitCode::from(words::SUCCESS))
}

/// Keeps paths under a name.
pub fn pin(args: &PinArgs) -> anyhow::Result<ExitCode> {
    if args.paths.is_empty() {
        return Err(words::bad_input("name the paths to pin"));
    }
    change(args, |name, paths| GarbageRequest::Pin { name, paths })
}

/// Ends that.
pub fn unpin(args: &PinArgs) -> anyhow::Result<ExitCode> {
    change(args, |name, paths| GarbageRequest::Unpin { name, paths })
}

fn change(args: &PinArgs, request: impl FnOnce(String, Vec<StorePath>) -> GarbageRequest) -> anyhow::Result<ExitCode> {
    runtime()?.block_on(async {
        let client = Client::open(&args.farm).await?;
        let store_dir = client.status().await?.store_dir;
        let paths = args.paths.iter().map(|path| parse_path(path, &store_dir)).collect::<anyhow::Result<Vec<_>>>()?;
        client.one(&Request::Garbage(request(args.name.clone(), paths))).await?;
        Ok(ExitCode::from(words::SUCCESS))
    })
}

/// Lists what is pinned.
pub fn pins(args: &PinsArgs) -> anyhow::Result<ExitCode> {
    let (store_dir, pins) = runtime()?.block_on(async {
        let client = Client::open(&args.farm).await?;
        let store_dir = client.status().await?.store_dir;
        match client.one(&Request::Garbage(GarbageRequest::Pins)).await? {
            Response::Garbage(GarbageAnswer::Pins(pins)) => Ok((store_dir, pins)),
            _ => Err(unexpected("another kind").into_error()),
        }
    })?;
    if args.json {
        let all = pins.iter().map(|(name, paths)| {
            let paths: Vec<String> = paths.iter().map(|path| store_dir.join(path)).collect();
            json!({ "name": name, "paths": paths })
        });
        println!("{}", serde_json::Value::from(all.collect::<Vec<_>>()));
        return Ok(ExitCode::from(words::SUCCESS));
    }
    for (name, paths) in pins {
        paths.iter().for_each(|path| println!("{} {}", name.escape_debug(), store_dir.join(path)));
    }
    Ok(ExitCode::from(words::SUCCESS))
}
