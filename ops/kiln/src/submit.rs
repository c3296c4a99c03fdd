//! `kiln submit`: a set of jobs that `nix-eval-jobs` evaluated, as one build.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use kiln_nix::eval_jobs::{self, EvalJobs, EvalJobsError};
use kiln_wire::{Root, StoreDir};

use crate::args::{DirArgs, FarmArgs, UrgencyArgs};
use crate::daemons::runtime;
use crate::import::Places;
use crate::order::{Order, with_farm};
use crate::words::{self, bad_input};
use crate::{json, tame};

/// Arguments of `kiln submit`.
#[derive(clap::Args)]
pub struct Args {
    /// What people call the build
    #[arg(long)]
    name: String,
    /// The lines that nix-eval-jobs printed; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    eval_jobs: PathBuf,
    /// Look for derivations and sources here before the store directory
    #[arg(long, value_name = "DIR")]
    inputs: Vec<PathBuf>,
    #[command(flatten)]
    farm: FarmArgs,
    #[command(flatten)]
    dir: DirArgs,
    #[command(flatten)]
    urgency: UrgencyArgs,
    /// Print JSON: an object per event, and the build last
    #[arg(long)]
    json: bool,
}

/// Builds every job that evaluates, whatever fails, and prints the output paths if all of it went well.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    runtime()?.block_on(with_farm(&args.farm, &args.dir.dir(), async |client, embedded| {
        let store_dir = client.status().await?.store_dir;
        let (file, dir) = (args.eval_jobs.clone(), store_dir.clone());
        let set = tokio::task::spawn_blocking(move || read(&file, &dir)).await.context("read evaluated jobs")??;
        set.errors.iter().for_each(|(attribute, message)| say(args.json, attribute, message));
        // One derivation may have several names.
        let derivations: BTreeSet<_> = set.jobs.iter().map(|(_, derivation)| derivation.clone()).collect();
        let errors: Vec<_> = set.errors.iter().map(|(attribute, message)| (attribute.clone(), without_colours(message))).collect();
        let code = match derivations.is_empty() {
            true if set.errors.is_empty() => return Err(bad_input(format!("`{}` has no jobs", args.eval_jobs.display()))),
            true => ExitCode::from(words::FAILED),
            false => {
                let mut places = Places { dirs: args.inputs.clone(), ..Places::default() };
                places.dirs.push(PathBuf::from(store_dir.as_str()));
                let order = Order {
                    made: Vec::new(),
                    roots: derivations.into_iter().map(|derivation| Root { derivation, outputs: BTreeSet::new() }).collect(),
                    places,
                    name: Some(args.name.clone()),
                    keep_going: true,
                    check: false,
                    urgency: args.urgency.urgency()?,
                    json: args.json,
                    attributes: set.jobs,
                    errors,
                    to: None,
                    out_link: None,
                    dir: args.dir.dir(),
                };
                order.carry_out(client, &store_dir, embedded).await?
            }
        };
        if set.errors.is_empty() {
            return Ok(code);
        }
        if !args.json {
            eprintln!("not built because of errors in the evaluation: {}", words::count(set.errors.len() as u64, "attribute"));
        }
        Ok(ExitCode::from(words::FAILED))
    }))
}

fn read(file: &Path, store_dir: &StoreDir) -> anyhow::Result<EvalJobs> {
    let read = match file == Path::new("-") {
        true => eval_jobs::read(store_dir, BufReader::new(io::stdin().lock())),
        false => {
            let opened = File::open(file).map_err(|err| bad_input(format!("read `{}`: {err}", file.display())))?;
            eval_jobs::read(store_dir, BufReader::new(opened))
        }
    };
    let refuse = |err: EvalJobsError| bad_input(format!("submit `{}`: {:#}", file.display(), anyhow::Error::from(err)));
    read.map_err(refuse)
}

fn say(as_json: bool, attribute: &str, message: &str) {
    if as_json {
        println!("{}", json::evaluation_error(attribute, message));
    } else {
        eprintln!("{} does not evaluate:\n{}", tame::text(attribute), tame::text(without_colours(message).trim_end()));
    }
}

/// Nix colours its messages whoever reads them: `ESC [ numbers m` goes, whatever else steers a terminal is left to be tamed.
fn without_colours(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').strip_prefix('m') {
            Some(rest) => plain.push_str(rest),
            None => {
                plain.push_str("\u{1b}[");
                plain.push_str(part);
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_go_and_nothing_else() {
        let table = [
            ("\u{1b}[31;1merror:\u{1b}[0m no `x`", "error: no `x`"),
            ("\u{1b}[2Jgone", "\u{1b}[2Jgone"),
            ("\u{1b}[mplain \u{1b}[", "plain \u{1b}["),
        ];
        for (text, plain) in table {
            assert_eq!(without_colours(text), plain);
        }
    }
}
