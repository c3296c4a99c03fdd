//! The commands that look at a farm and steer it.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use kiln_wire::client::{BuildView, FarmView, JobView, Request, Response, WorkerView};
use kiln_wire::worker::Lacking;
use kiln_wire::{AttemptId, BuildId, DrvPath, PathInfo, StoreDir, StorePath};

use crate::args::FarmArgs;
use crate::client::{AskError, Client, Leading, unexpected};
use crate::daemons::runtime;
use crate::drain;
use crate::json;
use crate::status;
use crate::submission::Watching;
use crate::tables;
use crate::tame::{self, Tame};
use crate::words::{self, bad_input};

/// Arguments of a command that only looks.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    farm: FarmArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `kiln log`.
#[derive(clap::Args)]
pub struct LogArgs {
    #[command(flatten)]
    farm: FarmArgs,
    /// The job: a derivation's path, or its base name
    job: String,
    /// The attempt; the last one if none is named
    #[arg(long)]
    attempt: Option<u64>,
    /// Stay until the attempt ends
    #[arg(short, long)]
    follow: bool,
}

/// Arguments of `kiln path-info`.
#[derive(clap::Args)]
pub struct PathInfoArgs {
    #[command(flatten)]
    farm: FarmArgs,
    /// Print JSON, as `nix path-info --json` does
    #[arg(long)]
    json: bool,
    /// Include everything that the paths refer to
    #[arg(short, long)]
    recursive: bool,
    /// The paths
    #[arg(required = true)]
    paths: Vec<String>,
}

/// Arguments of `kiln status`.
#[derive(clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    farm: FarmArgs,
    /// The number of a build, live or ended; without one, the farm at a glance
    build: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Shows the farm at a glance, or one build.
pub fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let (view, build) = runtime()?.block_on(async {
        let client = Client::open(&args.farm).await?;
        let view = client.status().await?;
        let build = match args.build {
            Some(build) => Watching::new(&client, BuildId(build)).next(|_| {}).await?,
            None => None,
        };
        anyhow::Ok((view, build))
    })?;
    match (args.json, &build) {
        (true, Some(build)) => println!("{}", json::build(build, &view.store_dir)),
        (true, None) => println!("{}", json::farm(&view)),
        (false, Some(build)) => status::build(build),
        (false, None) => print_status(&view),
    }
    Ok(ExitCode::from(words::SUCCESS))
}

fn print_status(view: &FarmView) {
    let counts = view.counts;
    println!("Kiln {}, store {}, {} connected", view.version, view.store_dir, words::count(view.workers_connected, "worker"));
    println!("cache {}  key {}", view.cache_url.as_deref().unwrap_or("not served"), view.public_key);
    println!(
        "jobs: {} running, {} ready, {} blocked, {} built, {} failed",
        counts.running, counts.ready, counts.blocked, counts.built, counts.failed
    );
    status::lines(view).iter().for_each(|line| println!("{}", tame::line(line)));
    let rows: Vec<Vec<String>> = view.builds.iter().map(build_row).collect();
    if !rows.is_empty() {
        println!();
        tables::print(&["BUILD", "NAME", "STATE", "BUILT", "RUNNING", "READY", "BLOCKED", "FAILED", "LEFT"], &rows);
    }
}

fn build_row(build: &BuildView) -> Vec<String> {
    let state = kiln_api::BuildState::from(build.state).word();
    let left = build.remaining_ms.map_or_else(|| "-".to_owned(), |ms| words::duration(Duration::from_millis(ms)));
    let counts = build.counts;
    let mut row = vec![build.build.to_string(), build.name.clone(), state.to_owned()];
    row.extend([counts.built, counts.running, counts.ready, counts.blocked, counts.failed].map(|count| count.to_string()));
    row.push(left);
    row
}

/// Lists the jobs of live builds.
pub fn jobs(args: &Args) -> anyhow::Result<ExitCode> {
    let (store_dir, jobs) = runtime()?.block_on(async {
        let client = Client::open(&args.farm).await?;
        let store_dir = client.status().await?.store_dir;
        let jobs = client.all(&Request::Jobs, |answer| if let Response::Jobs(jobs) = answer { Some(jobs) } else { None }).await?;
        anyhow::Ok((store_dir, jobs))
    })?;
    if args.json {
        println!("{}", serde_json::Value::from(jobs.iter().map(|job| json::job(job, &store_dir)).collect::<Vec<_>>()));
        return Ok(ExitCode::from(words::SUCCESS));
    }
    tables::print(&["JOB", "STATE", "TRIES", "RANK", "WHERE", "WHY"], &jobs.iter().map(job_row).collect::<Vec<_>>());
    Ok(ExitCode::from(words::SUCCESS))
}

fn job_row(job: &JobView) -> Vec<String> {
    let last = job.attempts.last().filter(|attempt| attempt.ended_at.is_none());
    vec![
        job.derivation.name().to_owned(),
        job.state.clone(),
        job.attempts.len().to_string(),
        words::duration(Duration::from_millis(job.upward_rank_ms)),
        last.map_or_else(|| "-".to_owned(), |attempt| attempt.worker.to_string()),
        job.reason.clone(),
    ]
}

/// Lists the workers.
pub fn workers(args: &Args) -> anyhow::Result<ExitCode> {
    let workers = runtime()?.block_on(async {
        match Client::open(&args.farm).await?.one(&Request::Workers).await? {
            Response::Workers(workers) => Ok(workers),
            _ => Err(unexpected("another kind").into_error()),
        }
    })?;
    if args.json {
        println!("{}", serde_json::Value::from(workers.iter().map(json::worker).collect::<Vec<_>>()));
        return Ok(ExitCode::from(words::SUCCESS));
    }
    tables::print(
        &["WORKER", "STATE", "CORES", "MEMORY", "SLOTS", "SYSTEMS", "FEATURES", "RUNS"],
        &workers.iter().map(worker_row).collect::<Vec<_>>(),
    );
    for (worker, strain) in workers.iter().filter_map(|worker| Some((&worker.worker, worker.strain.as_ref()?))) {
        println!("{worker} takes nothing new: {}", tame::line(&strain.message));
    }
    for worker in &workers {
        if let Some(ailing) = &worker.ailing {
            println!("{}", tame::line(&drain::why(&worker.worker, ailing)));
        }
    }
    Ok(ExitCode::from(words::SUCCESS))
}

fn worker_row(worker: &WorkerView) -> Vec<String> {
    let offer = &worker.offer;
    vec![
        worker.worker.to_string(),
        match (worker.connected, &worker.ailing, &worker.strain) {
            (false, ..) => "away".to_owned(),
            (true, Some(ailing), _) => kiln_api::Ailing::word(ailing).to_owned(),
            (true, None, Some(strain)) => format!("short of {}", lacking(strain.lacks)),
            (true, None, None) => "connected".to_owned(),
        },
        format!("{}/{}", worker.used.cores, offer.capacity.cores),
        format!("{}/{} MiB", worker.used.memory_mib, offer.capacity.memory_mib),
        format!("{}/{}", worker.running.len(), offer.slots),
        offer.systems.iter().cloned().collect::<Vec<_>>().join(","),
        offer.features.iter().cloned().collect::<Vec<_>>().join(","),
        worker.running.iter().map(|job| job.name().to_owned()).collect::<Vec<_>>().join(","),
    ]
}

fn lacking(what: Lacking) -> &'static str {
    match what {
        Lacking::Disk => "disk",
        Lacking::Memory => "memory",
        Lacking::Cpu => "processors",
        Lacking::Io => "disk time",
    }
}

/// Prints the log of a job: to a terminal what is safe there, elsewhere its bytes.
pub fn log(args: &LogArgs) -> anyhow::Result<ExitCode> {
    let derivation = parse_job(&args.job)?;
    let request = Request::Log { derivation, attempt: args.attempt.map(AttemptId), follow: args.follow };
    runtime()?.block_on(async {
        let client = Client::open(&args.farm).await?;
        let mut printed = Printed::default();
        let mut tries = client.tries();
        loop {
            let before = printed.bytes;
            match print_log(&tries.leader().await?, &request, &mut printed).await {
                Ok(()) => break,
                Err(error) => {
                    if printed.bytes > before {
                        tries.progress();
                    }
                    tries.failed(error).await?;
                }
            }
        }
        std::io::stdout().lock().write_all(printed.terminal.map(Tame::finish).unwrap_or_default().as_bytes())?;
        Ok(ExitCode::from(words::SUCCESS))
    })
}

/// What was printed of a log. Another coordinator sends it from its start; what was printed before is not printed again.
struct Printed {
    bytes: u64,
    /// Keeps a terminal safe, if that is where it goes.
    terminal: Option<Tame>,
}

impl Default for Printed {
    fn default() -> Self {
        Self { bytes: 0, terminal: std::io::stdout().is_terminal().then(Tame::default) }
    }
}

async fn print_log(leader: &Leading, request: &Request, printed: &mut Printed) -> Result<(), AskError> {
    let (_sender, mut answers) = leader.ask(request).await?;
    let mut skip = printed.bytes;
    while let Some(answer) = answers.next().await? {
        let Response::Log(bytes) = answer else { return Err(unexpected("another kind")) };
        let known = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
        skip -= known as u64;
        let fresh = &bytes[known..];
        printed.bytes += fresh.len() as u64;
        let mut out = std::io::stdout().lock();
        match &mut printed.terminal {
            None => out.write_all(fresh)?,
            Some(tame) => out.write_all(tame.push(fresh).as_bytes())?,
        }
        out.flush()?;
    }
    Ok(())
}

/// Reads a derivation, in full or by its base name.
///
/// # Errors
/// Exit code 2 if it is none.
pub fn parse_job(job: &str) -> anyhow::Result<DrvPath> {
    let base_name = job.rsplit('/').next().unwrap_or(job);
    DrvPath::parse(base_name).map_err(|error| bad_input(format!("{error}; name a derivation, as `kiln jobs --json` does")))
}

/// Shows facts about paths of the farm's cache.
pub fn path_info(args: &PathInfoArgs) -> anyhow::Result<ExitCode> {
    let (store_dir, infos) = runtime()?.block_on(async {
        let client = Client::open(&args.farm).await?;
        let store_dir = client.status().await?.store_dir;
        let paths = args.paths.iter().map(|path| parse_path(path, &store_dir)).collect::<anyhow::Result<Vec<_>>>()?;
        let request = Request::PathInfos { paths: paths.clone(), closure: args.recursive };
        let infos = client.all(&request, |answer| if let Response::PathInfos(infos) = answer { Some(infos) } else { None }).await?;
        match paths.iter().find(|path| !infos.iter().any(|info| info.path == **path)) {
            Some(absent) => Err(bad_input(format!("path `{}` is not valid: the farm has not built it", store_dir.join(absent)))),
            None => Ok((store_dir, infos)),
        }
    })?;
    print_infos(&infos, &store_dir, args.json);
    Ok(ExitCode::from(words::SUCCESS))
}

/// Reads a store path, in full or by its base name.
///
/// # Errors
/// Exit code 2 if it is none.
pub fn parse_path(path: &str, store_dir: &StoreDir) -> anyhow::Result<StorePath> {
    if path.starts_with('/') { store_dir.strip(path) } else { StorePath::parse(path) }.map_err(bad_input)
}

fn print_infos(infos: &[PathInfo], store_dir: &StoreDir, as_json: bool) {
    if as_json {
        println!("{}", serde_json::Value::from(infos.iter().map(|info| json::path_info(info, store_dir)).collect::<Vec<_>>()));
        return;
    }
    for info in infos {
        println!("{}", store_dir.join(&info.path));
    }
}
