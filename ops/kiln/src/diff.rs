//! `kiln diff`: what differs between two builds of one set.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Context;
use kiln_core::{Attributes, Comparison, Made};
use kiln_wire::client::{BuildState, BuildView};
use kiln_wire::{BuildId, DrvPath, StoreDir};
use serde_json::{Value, json};

use crate::args::FarmArgs;
use crate::client::Client;
use crate::daemons::runtime;
use crate::submission::Watching;
use crate::{tame, words};

/// Arguments of `kiln diff`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    farm: FarmArgs,
    /// The number of the earlier build
    before: u64,
    /// The number of the later build
    after: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Says what differs between two builds. As of `diff`, the exit code is 1 if there is something.
///
/// # Errors
/// What the farm refused; a build that it does not know.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (store_dir, before, after) = runtime()?.block_on(async {
        let client = Client::open(&args.farm).await?;
        let store_dir = client.status().await?.store_dir;
        anyhow::Ok((store_dir, view(&client, BuildId(args.before)).await?, view(&client, BuildId(args.after)).await?))
    })?;
    let compared = Comparison::between(&before, &after);
    if args.json {
        println!("{}", in_json(&before, &after, &compared, &store_dir));
    } else {
        for line in lines(&before, &after, &compared) {
            println!("{}", tame::line(&line));
        }
    }
    Ok(ExitCode::from(if differs(&compared) { words::FAILED } else { words::SUCCESS }))
}

async fn view(client: &Client, build: BuildId) -> anyhow::Result<BuildView> {
    let view = Watching::new(client, build).next(|_| {}).await?;
    view.with_context(|| format!("read build {build}: the farm ended its answer early; try again"))
}

fn differs(compared: &Comparison) -> bool {
    // What one of them did not make, it may have found made.
    let Comparison { failures, unbuilt, unevaluated, changed, only_before: _, only_after: _, alike: _ } = compared;
    let differ = |of: &Attributes| !of.newly.is_empty() || !of.fixed.is_empty();
    !failures.newly.is_empty() || !failures.fixed.is_empty() || !changed.is_empty() || differ(unbuilt) || differ(unevaluated)
}

fn lines(before: &BuildView, after: &BuildView, compared: &Comparison) -> Vec<String> {
    let head = |view: &BuildView| {
        let name = if view.name.is_empty() { String::new() } else { format!(" of {}", view.name) };
        format!("build {}{name}, {}", view.build, kiln_api::BuildState::from(view.state).word())
    };
    let mut lines = vec![format!("{} -> {}", head(before), head(after))];
    if [before, after].iter().any(|view| view.state == BuildState::Active) {
        lines.push("  what is still being built is told of when it is there".to_owned());
    }
    let mut say = |title: &str, jobs: Vec<String>| {
        if !jobs.is_empty() {
            lines.push(format!("{title}: {}", jobs.len()));
            lines.extend(jobs.into_iter().map(|job| format!("  {job}")));
        }
    };
    let names = |jobs: &[DrvPath], of: &BuildView| jobs.iter().map(|job| called(job, of)).collect::<Vec<_>>();
    say("newly failing", names(&compared.failures.newly, after));
    say("still failing", names(&compared.failures.still, after));
    say("failing no more", names(&compared.failures.fixed, before));
    say("attributes not built, newly", compared.unbuilt.newly.clone());
    say("attributes built again", compared.unbuilt.fixed.clone());
    say("attributes not evaluated, newly", compared.unevaluated.newly.clone());
    say("attributes still not evaluated", compared.unevaluated.still.clone());
    say("attributes evaluated again", compared.unevaluated.fixed.clone());
    say("changed", compared.changed.iter().map(|((then, _), (now, _))| with_attributes(renamed(then, now), now, after)).collect());
    say("made by the later one alone", compared.only_after.iter().map(|(root, _)| called(root, after)).collect());
    lines.push(format!("made by the earlier one alone: {}; made alike by both: {}", compared.only_before.len(), compared.alike));
    lines
}

/// Returns the name of a job, with the attributes that it is in a build that has ended.
fn called(job: &DrvPath, of: &BuildView) -> String {
    with_attributes(job.name().to_owned(), job, of)
}

fn with_attributes(text: String, job: &DrvPath, of: &BuildView) -> String {
    match of.evaluated.attributes.get(job) {
        None => text,
        Some(names) => format!("{text} ({})", names.join(", ")),
    }
}

fn renamed(then: &DrvPath, now: &DrvPath) -> String {
    match then.name() == now.name() {
        true => then.name().to_owned(),
        false => format!("{} -> {}", then.name(), now.name()),
    }
}

fn in_json(before: &BuildView, after: &BuildView, compared: &Comparison, store_dir: &StoreDir) -> Value {
    let full = |job: &DrvPath| store_dir.join(job.as_path());
    let jobs = |jobs: &[DrvPath]| jobs.iter().map(full).collect::<Vec<_>>();
    let one = |(root, outputs): &Made, of: &BuildView| {
        let outputs: BTreeMap<_, _> = outputs.iter().map(|(name, path)| (name.to_string(), store_dir.join(path))).collect();
        let attributes = of.evaluated.attributes.get(root).cloned().unwrap_or_default();
        json!({ "derivation": full(root), "attributes": attributes, "outputs": outputs })
    };
    json!({
        "before": before.build,
        "after": after.build,
        "newlyFailing": jobs(&compared.failures.newly),
        "stillFailing": jobs(&compared.failures.still),
        "failingNoMore": jobs(&compared.failures.fixed),
        "attributesNewlyUnbuilt": compared.unbuilt.newly,
        "attributesStillUnbuilt": compared.unbuilt.still,
        "attributesBuiltAgain": compared.unbuilt.fixed,
        "attributesNewlyUnevaluated": compared.unevaluated.newly,
        "attributesStillUnevaluated": compared.unevaluated.still,
        "attributesEvaluatedAgain": compared.unevaluated.fixed,
        "changed": compared.changed.iter().map(|(then, now)| json!({ "before": one(then, before), "after": one(now, after) })).collect::<Vec<_>>(),
        "onlyBefore": compared.only_before.iter().map(|made| one(made, before)).collect::<Vec<_>>(),
        "onlyAfter": compared.only_after.iter().map(|made| one(made, after)).collect::<Vec<_>>(),
        "alike": compared.alike,
    })
}
