//! `kiln external-builder`: builds on the farm for a Nix that has `external-builders`. Nix describes a build without its derivation; that
//! is looked for in the store, among those of its name, and the farm builds from it. What is made comes to where Nix wants it, and Nix
//! does the rest. A thin adapter: whoever can use the build hook has more of it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use kiln_nix::Derivation;
use kiln_nix::external::Described;
use kiln_wire::client::Request;
use kiln_wire::limits::NIX_REQUEST_BYTES_MAX;
use kiln_wire::{DrvPath, Patience, Root};

use super::follow::{Ended, follow};
use super::said::ToHook;
use super::voice::{Voice, say};
use crate::args::FarmArgs;
use crate::client::Client;
use crate::daemons::{runtime, told_to_stop};
use crate::import::{self, Places};
use crate::progress::Progress;
use crate::realise;
use crate::submission::submit_held;
use crate::words::{self, bad_input};

/// Arguments of `kiln external-builder`. Nix gives the last one.
#[derive(clap::Args)]
pub struct ExternalArgs {
    #[command(flatten)]
    farm: FarmArgs,
    /// Where `farm` and `identity` are named, if neither arguments nor the environment do
    #[arg(long, value_name = "F", default_value = "/etc/kiln/client.toml")]
    config: PathBuf,
    /// What Nix describes of the build
    #[arg(value_name = "FILE")]
    build: PathBuf,
}

/// Builds what the file describes.
pub fn run(args: ExternalArgs) -> anyhow::Result<ExitCode> {
    let described = Described::parse(&read(&args.build)?).map_err(|error| bad_input(format!("{:#}", anyhow::Error::from(error))))?;
    let (path, _) = find(&described)?;
    let farm = args.farm.or_file(&args.config)?;
    runtime()?.block_on(async {
        let (voice, mut said) = Voice::new();
        let aloud = tokio::spawn(async move {
            while let Some(word) = said.recv().await {
                match word {
                    ToHook::Say(text) => say(&text),
                    // The log of an external builder is what it writes.
                    ToHook::Log(bytes) => say(&String::from_utf8_lossy(&bytes)),
                    ToHook::Welcome { .. } | ToHook::Answered(_) | ToHook::Ended(_) | ToHook::Alive => {}
                }
            }
        });
        let ended = tokio::select! {
            ended = build(&farm, &described, path, &voice) => ended?,
            told = told_to_stop() => {
                told?;
                Ended::Otherwise("it was told to stop".to_owned())
            }
        };
        drop(voice);
        aloud.await.context("tell the log")?;
        Ok(match ended {
            Ended::Built => ExitCode::from(words::SUCCESS),
            Ended::Failed(why) | Ended::TimedOut(why) | Ended::Otherwise(why) => {
                say(&format!("{why}\n"));
                ExitCode::from(words::FAILED)
            }
        })
    })
}

async fn build(farm: &FarmArgs, described: &Described, derivation: DrvPath, voice: &Voice) -> anyhow::Result<Ended> {
    let client = Client::open(farm).await?;
    let store_dir = client.status().await?.store_dir;
    if store_dir != described.store_dir {
        let (ours, theirs) = (store_dir.as_str(), described.store_dir.as_str());
        return Err(bad_input(format!("the farm builds for the store `{ours}`, and this is for `{theirs}`")));
    }
    let places = Places { dirs: vec![PathBuf::from(&described.real_store_dir)], ..Places::default() };
    let root = Root { derivation: derivation.clone(), outputs: described.outputs.keys().cloned().collect() };
    import::upload(&client, &store_dir, &places, std::slice::from_ref(&root), &Progress::new(true, store_dir.clone())).await?;
    // Nix keeps its own limits of time: it kills this, and the farm misses it.
    let patience = Patience { attempt_ms_max: None, silent_ms_max: None };
    let (build, mut held) = submit_held(&client, described.name.clone(), vec![root], false, patience).await?;
    let ended = follow(&client, &store_dir, voice, build, &derivation, &mut held).await?;
    held.release().await;
    if matches!(ended, Ended::Built) {
        let request = Request::PathInfos { paths: described.outputs.values().cloned().collect(), closure: false };
        let infos = client.all(&request, realise::infos_of).await?;
        if infos.len() != described.outputs.len() {
            return Ok(Ended::Otherwise(format!("the farm built `{derivation}` and does not have all of its outputs: build again")));
        }
        realise::bring(&client, infos, Path::new(&described.real_store_dir)).await?;
    }
    Ok(ended)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(NIX_REQUEST_BYTES_MAX as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|error| bad_input(format!("read `{}`: {error}", path.display())))
}

/// Finds the derivation of a build among those of its name.
fn find(described: &Described) -> anyhow::Result<(DrvPath, Derivation)> {
    let dir = &described.real_store_dir;
    let ending = format!("-{}.drv", described.name);
    for entry in std::fs::read_dir(dir).with_context(|| format!("look for derivations in `{dir}`"))? {
        let name = entry.with_context(|| format!("look for derivations in `{dir}`"))?.file_name();
        let Some(path) = name.to_str().filter(|name| name.ends_with(&ending)).and_then(|name| DrvPath::parse(name).ok()) else { continue };
        if path.name() != described.name {
            continue;
        }
        let file = Path::new(dir).join(path.as_str());
        let bytes = std::fs::read(&file).with_context(|| format!("read `{}`", file.display()))?;
        // One that is no derivation makes nothing.
        if let Ok(derivation) = Derivation::parse_canonical(&described.store_dir, path.name(), &bytes)
            && described.is_made_by(&derivation)
        {
            return Ok((path, derivation));
        }
    }
    let outputs: Vec<&str> = described.outputs.values().map(|path| path.as_str()).collect();
    let why =
        "outputs that have no path before they are built, --check and --repair are not for this program: use the build hook, or --store";
    Err(bad_input(format!("no derivation in `{dir}` makes {}; {why}", outputs.join(" "))))
}
