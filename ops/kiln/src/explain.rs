//! `kiln explain`: why a job is where it is.

use std::process::ExitCode;
use std::time::Duration;

use kiln_wire::client::{Request, Response};
use kiln_wire::{Explanation, StoreDir};

use crate::args::FarmArgs;
use crate::client::{Client, unexpected};
use crate::daemons::runtime;
use crate::operate::parse_job;
use crate::{json, tame, words};

/// Arguments of `kiln explain`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    farm: FarmArgs,
    /// The job: a derivation's path, or its base name
    job: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Says why a job is where it is.
///
/// # Errors
/// Exit code 2 if the job's name makes no sense; what the farm refused.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let derivation = parse_job(&args.job)?;
    let (store_dir, explanation) = runtime()?.block_on(async {
        let client = Client::open(&args.farm).await?;
        let store_dir = client.status().await?.store_dir;
        match client.one(&Request::Explain(derivation)).await? {
            Response::Explained(explanation) => anyhow::Ok((store_dir, explanation)),
            _ => Err(unexpected("another kind").into_error()),
        }
    })?;
    if args.json {
        println!("{}", json::explanation(&explanation, &store_dir));
    } else {
        for line in lines(&explanation, &store_dir) {
            println!("{}", tame::line(&line));
        }
    }
    Ok(ExitCode::from(words::SUCCESS))
}

/// Returns an explanation for people: what, why, then what there is to know.
fn lines(explanation: &Explanation, store_dir: &StoreDir) -> Vec<String> {
    let job = &explanation.job;
    let mut lines = vec![
        store_dir.join(job.derivation.as_path()),
        if job.reason.is_empty() { job.state.clone() } else { format!("{}: {}", job.state, job.reason) },
    ];
    let ready = explanation.ahead.is_some();
    let mut say = |name: &str, text: String| lines.push(format!("  {name:<10} {text}"));
    if let Some(ahead) = explanation.ahead {
        say(
            "order",
            format!("{} more urgent; {} left on the longest chain that needs it", are(ahead, "ready job"), ms(job.upward_rank_ms)),
        );
    }
    if let Some(running_ms) = explanation.running_ms {
        say("runs", format!("for {} of {} that it was expected to take", ms(running_ms), ms(explanation.expected_ms)));
    } else if explanation.expected_ms > 0 {
        say("expected", format!("{} by itself", ms(explanation.expected_ms)));
    }
    if matches!(job.state.as_str(), "blocked" | "ready" | "running") {
        say("needs", needs(explanation));
    }
    if ready {
        for group in &explanation.workers {
            say("workers", workers(group));
        }
    }
    if explanation.inputs_unbuilt > 0 {
        let inputs = are(explanation.inputs_unbuilt, "input");
        say("waits for", format!("{inputs} not built; what is built last takes {} from the bottom up:", ms(explanation.behind_ms)));
        for step in &explanation.behind {
            let why = if step.reason.is_empty() { String::new() } else { format!(": {}", step.reason) };
            say("", format!("{} ({}), {}{why}", step.derivation.name(), ms(step.expected_ms), step.state));
        }
    }
    let waiting = words::count(explanation.dependents_all, "job");
    say("behind it", format!("{waiting} cannot be built without it, {} of them next", explanation.dependents));
    say("wanted by", job.builds.iter().map(|build| format!("build {build}")).collect::<Vec<_>>().join(", "));
    for attempt in &job.attempts {
        let end = match (&attempt.failure, attempt.ended_at) {
            (Some((class, message)), _) => format!("{class}: {message}"),
            (None, Some(_)) => "made its outputs".to_owned(),
            (None, None) => "runs".to_owned(),
        };
        say("attempt", format!("{} on {}: {end}", attempt.attempt, attempt.worker));
    }
    lines
}

fn needs(explanation: &Explanation) -> String {
    let mut needs = vec![explanation.system.clone()];
    needs.extend(explanation.features.iter().cloned());
    if explanation.resources.cores > 0 {
        needs.push(words::count(u64::from(explanation.resources.cores), "core"));
    }
    match (explanation.resources.memory_mib, explanation.memory_wish_mib) {
        (0, 0) => {}
        (0, wish) => needs.push(format!("{wish} MiB of memory where there is as much, as builds of its like took")),
        (asked, _) => needs.push(format!("{asked} MiB of memory")),
    }
    needs.join(", ")
}

fn workers(group: &kiln_wire::WorkersFor) -> String {
    let named: Vec<String> = group.first.iter().map(ToString::to_string).collect();
    let more = group.count.saturating_sub(named.len() as u64);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}: {}", named.join(", "), group.what)
}

/// Returns `1 job is`, `2 jobs are`.
fn are(number: u64, noun: &str) -> String {
    format!("{} {}", words::count(number, noun), if number == 1 { "is" } else { "are" })
}

fn ms(ms: u64) -> String {
    words::duration(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kiln_wire::client::JobView;
    use kiln_wire::{BuildId, DrvPath, Resources, Step, WorkerId, WorkersFor};

    use super::*;

    fn drv(name: &str) -> DrvPath {
        DrvPath::parse(&format!("0hm2f1psjpcwg8fijsmr4wwxrx59s092-{name}.drv")).expect("a path")
    }

    fn explanation(state: &str, reason: &str) -> Explanation {
        Explanation {
            job: JobView {
                derivation: drv("app"),
                state: state.to_owned(),
                reason: reason.to_owned(),
                builds: vec![BuildId(3)],
                attempts: Vec::new(),
                upward_rank_ms: 90_000,
                attributes: Vec::new(),
            },
            expected_ms: 57_000,
            running_ms: None,
            system: "x86_64-linux".to_owned(),
            features: BTreeSet::from(["kvm".to_owned()]),
            resources: Resources { cores: 2, memory_mib: 0 },
            memory_wish_mib: 900,
            workers: Vec::new(),
            ahead: None,
            inputs_unbuilt: 0,
            behind: Vec::new(),
            behind_ms: 0,
            dependents: 1,
            dependents_all: 4,
        }
    }

    #[test]
    fn a_ready_job_says_what_each_worker_is_to_it() {
        let worker = WorkerId::parse("w1").expect("a name");
        let group = WorkersFor { what: "are full".to_owned(), count: 9, first: vec![worker] };
        let ready = Explanation { ahead: Some(1), workers: vec![group], ..explanation("ready", "every worker that could run it is full") };
        let lines = lines(&ready, &StoreDir::default());
        let expect = [
            "/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-app.drv",
            "ready: every worker that could run it is full",
            "  order      1 ready job is more urgent; 1 min 30 s left on the longest chain that needs it",
            "  expected   57 s by itself",
            "  needs      x86_64-linux, kvm, 2 cores, 900 MiB of memory where there is as much, as builds of its like took",
            "  workers    w1 and 8 more: are full",
            "  behind it  4 jobs cannot be built without it, 1 of them next",
            "  wanted by  build 3",
        ];
        assert_eq!(lines, expect);
    }

    #[test]
    fn a_blocked_job_names_the_way_to_what_holds_it_up() {
        let step = |name, state: &str, reason: &str| Step {
            derivation: drv(name),
            state: state.to_owned(),
            reason: reason.to_owned(),
            expected_ms: 2_000,
        };
        let behind = vec![step("lib", "blocked", "waits for its input base"), step("base", "running", "on w1")];
        let blocked = Explanation { inputs_unbuilt: 2, behind, behind_ms: 4_000, ..explanation("blocked", "waits for 2 inputs") };
        let lines = lines(&blocked, &StoreDir::default());
        let expect = [
            "  waits for  2 inputs are not built; what is built last takes 4.0 s from the bottom up:",
            "             lib (2.0 s), blocked: waits for its input base",
            "             base (2.0 s), running: on w1",
        ];
        assert_eq!(lines[4..7], expect);
    }
}
