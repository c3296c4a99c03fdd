//! `kiln build-hook`: builds on the farm for a Nix that keeps its own store.
//!
//! A thin shell: what Nix says is read by [`kiln_nix::hook`], what becomes of a question is decided in [`decide`]. Nothing that was built
//! elsewhere is given to the farm: it builds what it lacks from the derivations ([ADR 0029](../../../adr/0029-a-hook-gives-the-farm-recipes.md)).
//! Nix starts a process for each build; what these share is kept by an [`agent`] ([ADR 0033](../../../adr/0033-an-agent-works-for-hooks.md)).

mod agent;
mod alone;
mod asked;
mod decide;
mod external;
mod follow;
mod inputs;
mod local;
mod locks;
mod nixes;
mod outputs;
mod relay;
mod said;
mod service;
mod voice;
mod way;

use std::path::PathBuf;
use std::process::ExitCode;

use kiln_nix::hook::{Reply, line};

use self::asked::Asked;
use self::relay::{Left, Relayed};
use self::service::FAILED_OTHERWISE;
use self::voice::{Log, note, say};
use self::way::Way;
use crate::args::FarmArgs;
use crate::words;

pub use self::external::{ExternalArgs, run as run_external};

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
    /// How long the process that keeps what hooks share waits for the next one; with 0 there is none, and each hook works by itself
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    linger: u64,
    /// Be that process; nothing for people
    #[arg(long, value_name = "NAME", hide = true)]
    agent: Option<String>,
    /// How much Nix tells people
    #[arg(value_name = "VERBOSITY")]
    verbosity: Option<u32>,
}

/// Answers Nix until a build is taken, and builds it.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(name) = &args.agent {
        return agent::run(Way::of(&args)?, name);
    }
    let mut log = Log::take();
    // What a process exits with after a panic is what tells Nix of a time-out.
    std::panic::set_hook(Box::new(|panic| {
        say(&line::error(&format!("kiln: {panic}")));
        std::process::exit(FAILED_OTHERWISE.into());
    }));
    let mut asked = Asked::new(std::io::stdin().lock());
    let settings = asked.settings()?;
    let way = match Way::of(&args) {
        Ok(way) => way,
        Err(error) => {
            say(&note(&format!("kiln: Nix builds by itself: {error:#}")));
            say(&Reply::DeclineForGood.to_text());
            return Ok(ExitCode::from(words::SUCCESS));
        }
    };
    let left = match way.linger_seconds {
        0 => Left::Nothing,
        _ => match relay::run(&way, &settings, &mut asked, &mut log)? {
            Relayed::Over(code) => return Ok(ExitCode::from(code)),
            Relayed::Lost(left) => left,
        },
    };
    alone::run(&way, settings, &mut asked, log, left)
}
