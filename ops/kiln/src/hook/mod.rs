//! `kiln build-hook`: builds on the farm for a Nix that keeps its own store.
//!
//! A thin shell: what Nix says is read by [`kiln_nix::hook`], what becomes of a question is decided in [`decide`]. Nothing that was built
//! elsewhere is given to the farm: it builds what it lacks from the derivations ([ADR 0029](../../../adr/0029-a-hook-gives-the-farm-recipes.md)).

mod asked;
mod decide;
mod follow;
mod inputs;
mod local;
mod locks;
mod outputs;

use std::cell::OnceCell;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use kiln_nix::hook::{Ask, Inputs, Reply, Settings, line};
use kiln_wire::client::{Request, Response};
use kiln_wire::{BuildId, OutputName, Patience, Root, StoreDir, StorePath};

use self::asked::Asked;
use self::decide::{Decision, decide};
use self::follow::{Ended, follow};
use self::inputs::Lacking;
use self::local::LocalNix;
use self::locks::Locks;
use crate::args::FarmArgs;
use crate::client::{self, Client, unexpected};
use crate::daemons::told_to_stop;
use crate::import::Places;
use crate::submission::{self, Held, submit_held};
use crate::words;

/// Arguments of `kiln build-hook`. Nix gives the last one.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    farm: FarmArgs,
    /// Where `farm` and `identity` are named, if neither arguments nor the environment do
    #[arg(long, value_name = "F", default_value = "/etc/kiln/client.toml")]
    config: PathBuf,
    /// Builds on the farm at a time for the Nix of this machine; further ones wait here
    #[arg(long, value_name = "N", default_value_t = 128)]
    builds_max: usize,
    /// Where hooks that run at once find each other [default: /run/kiln-hook for root, else below $XDG_RUNTIME_DIR or /tmp]
    #[arg(long, value_name = "DIR")]
    locks: Option<PathBuf>,
    /// The program by which outputs come into the store of this machine's Nix
    #[arg(long, value_name = "PROGRAM", default_value = "nix-daemon")]
    nix_daemon: PathBuf,
    /// How much Nix tells people
    #[arg(value_name = "VERBOSITY")]
    verbosity: Option<u32>,
}

/// A farm that may build for Nix.
struct Hook {
    client: Client,
    store_dir: StoreDir,
    /// What Nix calls whoever builds.
    name: String,
    settings: Settings,
    places: Places,
    locks: Locks,
    nix_daemon: PathBuf,
}

/// A build that was taken.
struct Taken {
    ask: Ask,
    inputs: Inputs,
    lacking: Lacking,
}

/// Answers Nix until a build is taken, and builds it.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let_go_of_the_log();
    // What a process exits with after a panic is what tells Nix of a time-out.
    std::panic::set_hook(Box::new(|panic| {
        say(&line::error(&format!("kiln: {panic}")));
        std::process::exit(FAILED_OTHERWISE.into());
    }));
    // Two threads: Nix starts as many hooks as there are builds.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("start the runtime")?;
    let mut asked = Asked::new(std::io::stdin().lock());
    let settings = asked.settings()?;
    let mut hook = None;
    let code = loop {
        let Some(question) = asked.question()? else { break words::SUCCESS };
        if hook.is_none() {
            match runtime.block_on(Hook::open(&args, settings.clone())) {
                Ok(opened) => hook = Some(opened),
                Err(error) => {
                    say(&note(&format!("kiln: Nix builds by itself: {error:#}")));
                    say(&Reply::DeclineForGood.to_text());
                    break words::SUCCESS;
                }
            }
        }
        let Some(hook) = &hook else { break words::SUCCESS };
        let ask = Ask::decode(&hook.store_dir, &question)?;
        let (reply, why, lacking) = match runtime.block_on(hook.consider(&ask)) {
            Ok((Decision::Accept, lacking)) => (Reply::Accept(&hook.name), None, lacking),
            Ok((Decision::Decline(why), _)) => (Reply::Decline, Some(why), None),
            Ok((Decision::Postpone, _)) => (Reply::Postpone, None, None),
            Err(error) if words::exit_code_of(&error) == ExitCode::from(words::UNREACHABLE) => {
                // Each further question would wait as long for a farm that is gone.
                say(&note(&format!("kiln: Nix builds by itself from here on: {error:#}")));
                say(&Reply::DeclineForGood.to_text());
                break words::SUCCESS;
            }
            Err(error) => (Reply::Decline, Some(format!("{error:#}")), None),
        };
        if let Some(why) = why {
            say(&note(&format!("kiln: not built on the farm: {}: {why}", ask.derivation)));
        }
        say(&reply.to_text());
        if let Some(lacking) = lacking {
            let inputs = Inputs::decode(&hook.store_dir, &asked.inputs()?)?;
            break runtime.block_on(hook.build(Taken { ask, inputs, lacking }));
        }
    };
    // A thread that waits for a lock must not hold up the end.
    runtime.shutdown_background();
    Ok(ExitCode::from(code))
}

impl Hook {
    async fn open(args: &Args, settings: Settings) -> anyhow::Result<Self> {
        let farm = args.farm.clone().or_file(&args.config)?;
        let client = Client::open(&farm).await?;
        let store_dir = client.status().await?.store_dir;
        let objects = settings.objects_dir(&store_dir);
        let objects = objects.with_context(|| format!("the store `{}` is not on this machine", settings.store))?;
        let places = Places { dirs: vec![PathBuf::from(objects)], ..Places::default() };
        let locks = Locks::open(args.locks.clone(), args.builds_max)?;
        let name = farm.farm.unwrap_or_else(|| "kiln".to_owned());
        Ok(Self { client, store_dir, name, settings, places, locks, nix_daemon: args.nix_daemon.clone() })
    }

    /// Decides about a question; with what the farm lacks, if it is to build.
    async fn consider(&self, ask: &Ask) -> anyhow::Result<(Decision, Option<Lacking>)> {
        // Nix waits for the answer, and asks nothing else meanwhile.
        let client = self.client.clone().with_patience(client::Patience::Short);
        let workers = match client.one(&Request::Workers).await? {
            Response::Workers(workers) => workers,
            _ => return Err(unexpected("another kind").into_error()),
        };
        let could_begin = ask.could_begin && self.settings.could_build(&ask.system, &ask.features);
        let decision = decide(&ask.system, &ask.features, &workers, could_begin);
        if !matches!(decision, Decision::Accept) {
            return Ok((decision, None));
        }
        if !self.locks.take_turn()? {
            let why = "as many builds as may be are on the farm";
            return Ok((if could_begin { Decision::Decline(why.to_owned()) } else { Decision::Postpone }, None));
        }
        let lacking = inputs::look(&client, &self.store_dir, &self.places, &ask.derivation).await?;
        if lacking.root.outputs.values().any(|output| output.path().is_none()) {
            let why = "its outputs have no paths before they are built, and this hook does not bring such; build it with --store";
            return Ok((Decision::Decline(why.to_owned()), None));
        }
        for job in &lacking.jobs {
            if let Decision::Decline(why) = decide(&job.system, &job.required_features, &workers, could_begin) {
                return Ok((Decision::Decline(format!("it needs `{}`, which the farm lacks: {why}", job.derivation)), None));
            }
        }
        Ok((Decision::Accept, Some(lacking)))
    }

    /// Builds, and returns with what to exit.
    async fn build(&self, taken: Taken) -> u8 {
        let submitted = OnceCell::new();
        let built = tokio::select! {
            built = self.carry_out(&taken, &submitted) => Some(built),
            () = nix_is_gone() => None,
            told = told_to_stop() => {
                tracing::debug!(?told, "stopping");
                None
            }
        };
        let Some(built) = built else {
            if let Some(build) = submitted.get() {
                submission::cancel(&self.client, *build).await;
            }
            return FAILED_OTHERWISE;
        };
        match built {
            Ok(Ended::Built) => words::SUCCESS,
            Ok(Ended::Failed(why)) => {
                say(&line::error(&why));
                FAILED_FOR_GOOD
            }
            Ok(Ended::TimedOut(why)) => {
                say(&line::error(&why));
                TIMED_OUT
            }
            Ok(Ended::Otherwise(why)) => {
                say(&line::error(&why));
                FAILED_OTHERWISE
            }
            Err(error) => {
                say(&line::error(&format!("kiln: build {} on the farm: {error:#}", taken.ask.derivation)));
                FAILED_OTHERWISE
            }
        }
    }

    async fn carry_out(&self, taken: &Taken, submitted: &OnceCell<BuildId>) -> anyhow::Result<Ended> {
        let wanted = self.wanted(taken)?;
        let mut local = LocalNix::start(&self.nix_daemon, &self.settings.store, &self.store_dir, &wanted)?;
        self.hand_over(taken).await?;
        let (build, mut held) = self.submit(taken).await?;
        let build = *submitted.get_or_init(|| build);
        let ended = follow(&self.client, &self.store_dir, build, &taken.ask.derivation, &mut held).await;
        if let Err(error) = ended {
            submission::cancel(&self.client, build).await;
            return Err(error);
        }
        held.release().await;
        if let Ok(Ended::Built) = &ended {
            local = outputs::bring(&self.client, local, wanted).await?;
        }
        local.end();
        ended
    }

    fn wanted(&self, taken: &Taken) -> anyhow::Result<Vec<StorePath>> {
        let outputs = &taken.lacking.root.outputs;
        let path = |name: &OutputName| {
            let output = outputs.get(name).with_context(|| format!("derivation `{}` has no output `{name}`", taken.ask.derivation))?;
            output.path().cloned().with_context(|| format!("output `{name}` has no path before it is built"))
        };
        taken.inputs.outputs.iter().map(path).collect()
    }

    async fn hand_over(&self, taken: &Taken) -> anyhow::Result<()> {
        say(&line::start(STAGING, &format!("copying what {} needs to {}", taken.ask.derivation.name(), self.name)));
        let handed = inputs::hand_over(&self.client, &self.store_dir, &self.places, &self.locks, taken).await;
        say(&line::stop(STAGING));
        handed
    }

    /// Submits; if the farm lacks something that it seemed to have, once more with all that the build can need.
    async fn submit(&self, taken: &Taken) -> anyhow::Result<(BuildId, Held)> {
        let root = Root { derivation: taken.ask.derivation.clone(), outputs: taken.inputs.outputs.clone() };
        let ms = |seconds: u64| seconds.saturating_mul(1000);
        let patience =
            Patience { attempt_ms_max: self.settings.timeout_seconds.map(ms), silent_ms_max: self.settings.silent_seconds_max.map(ms) };
        let name = || taken.ask.derivation.name().to_owned();
        match submit_held(&self.client, name(), vec![root.clone()], false, patience).await {
            Err(error) if words::exit_code_of(&error) == ExitCode::from(words::BAD_INPUT) => {
                tracing::debug!(%error, "handing over everything");
                inputs::hand_over_all(&self.client, &self.store_dir, &self.places, &root).await?;
                submit_held(&self.client, name(), vec![root], false, patience).await
            }
            submitted => submitted,
        }
    }
}

/// Says something to Nix. If Nix is gone, so is this process soon.
fn say(text: &str) {
    let mut to = std::io::stderr().lock();
    let _gone = to.write_all(text.as_bytes()).and_then(|()| to.flush());
}

/// Returns a line for people. What a farm or a derivation says in it cannot be taken for an answer to Nix, nor move a terminal's cursor.
fn note(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).chain(['\n']).collect()
}

/// Closes the end of the log's pipe that Nix reads from and gives to hooks too: as long as one has it, none hears that Nix is gone.
fn let_go_of_the_log() {
    let leads_to = |descriptor: &str| std::fs::read_link(format!("/proc/self/fd/{descriptor}")).ok();
    let log = leads_to("4").filter(|log| log.to_string_lossy().starts_with("pipe:"));
    if log.is_some() && log == leads_to("5") {
        let closed = nix::unistd::close(5);
        tracing::debug!(?closed, "the log is Nix' to read");
    }
}

/// Waits until nobody reads what this process says: a Nix that was killed kills no hook.
async fn nix_is_gone() {
    let opened = tokio::net::unix::pipe::OpenOptions::new().open_sender("/proc/self/fd/2");
    match opened {
        Ok(pipe) => {
            // Whatever else becomes of looking says nothing of Nix.
            if pipe.ready(tokio::io::Interest::ERROR).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        // Not started by Nix, but by a person.
        Err(_) => std::future::pending().await,
    }
}

/// The number of the activity of handing over inputs.
const STAGING: u64 = 1;
/// As Nix's own hook of old: the build failed, and would again.
const FAILED_FOR_GOOD: u8 = 100;
/// The build took too long.
const TIMED_OUT: u8 = 101;
/// Something else went wrong.
const FAILED_OTHERWISE: u8 = 1;
