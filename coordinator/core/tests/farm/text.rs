//! Effects, plans and views as lines of text.

use std::collections::BTreeMap;

use kiln_core::{Answer, Copied, Effect, Farm, Plan, PlanReport};
use kiln_wire::client::EventKind;
use kiln_wire::{Ailing, BuildId, DrvPath, Lease, Standing};

use crate::facts::HASH;

/// Takes the noise out of paths in messages.
pub fn short(text: &str) -> String {
    text.replace(HASH, "").replace(".drv", "")
}

pub fn lease(lease: &Lease) -> String {
    format!("{}#{}@{}", lease.derivation.name(), lease.attempt, lease.worker)
}

pub fn effect(effect: &Effect) -> String {
    match effect {
        Effect::Welcome { worker, epoch, keep } => {
            format!("welcome {worker} epoch={epoch} keep=[{}]", keep.iter().map(lease).collect::<Vec<_>>().join(" "))
        }
        Effect::Dispatch { lease: given, resources, limits: _ } => {
            format!("dispatch {} cores={} mem={}", lease(given), resources.cores, resources.memory_mib)
        }
        Effect::Revoke(revoked) => format!("revoke {}", lease(revoked)),
        Effect::Acknowledge { worker, derivation, attempt } => format!("acknowledge {}#{attempt}@{worker}", derivation.name()),
        Effect::Publish { derivation, outputs } => {
            let paths: Vec<String> = outputs.iter().map(|info| info.path.name().to_owned()).collect();
            format!("publish {}: {}", derivation.name(), paths.join(" "))
        }
        Effect::Resolve { derivation } => format!("resolve {}", derivation.name()),
        Effect::Notify { builds, event } => {
            format!("notify {}: {} {}", ids(builds), event.derivation.name(), kind(&event.kind))
        }
        Effect::Judged { worker, ailing } => format!("judged {worker}: {}", ailing.as_ref().map_or_else(|| "well".to_owned(), standing)),
        Effect::Copied { derivation, copied } => format!("copied {}: {}", derivation.name(), self::copied(*copied)),
        Effect::Archive(record) => {
            let failures: Vec<&str> = record.failures.iter().map(|job| job.derivation.name()).collect();
            let counts = counts(&record.counts);
            format!(
                "archive b{} {:?} {counts} outputs=[{}] failures=[{}]",
                record.build,
                record.state,
                outputs(&record.outputs),
                failures.join(" ")
            )
        }
        Effect::Answer(Answer::Submitted { request, build }) => format!("submitted r{request} as b{build}"),
        Effect::Answer(Answer::Refused(refused)) => format!("refused {}", short(&refused.to_string())),
    }
}

fn copied(copied: Copied) -> String {
    match copied {
        Copied::Begun { attempt, of } => format!("#{attempt} begins beside #{of}"),
        Copied::Won { attempt, by_copy: true } => format!("#{attempt} wins, the second one"),
        Copied::Won { attempt, by_copy: false } => format!("#{attempt} wins, the first one"),
        Copied::Same(attempt) => format!("#{attempt} made the same"),
        Copied::Differs(attempt) => format!("#{attempt} made something else"),
    }
}

fn standing(ailing: &Ailing) -> String {
    let standing = match ailing.standing {
        Standing::Working => "working".to_owned(),
        Standing::Resting { until } => format!("rests until {}, for the {}. time", until.0, ailing.rests),
        Standing::Probation { .. } => "on probation".to_owned(),
        Standing::Quarantined { .. } => "quarantined".to_owned(),
    };
    let drained = if ailing.drained { ", drained" } else { "" };
    format!("{standing}{drained}")
}

fn kind(kind: &EventKind) -> String {
    match kind {
        EventKind::Ready => "ready".to_owned(),
        EventKind::Started { attempt, worker } => format!("started #{attempt}@{worker}"),
        EventKind::Built { wall_ms: _, nar_bytes } => format!("built {nar_bytes} bytes"),
        EventKind::Retried { class, message } => format!("retried after {class}: {message}"),
        EventKind::Failed { class, message } => format!("failed by {class}: {message}"),
        EventKind::DependencyFailed { cause } => format!("dependency-failed by {}", cause.name()),
        EventKind::Cancelled => "cancelled".to_owned(),
    }
}

fn outputs<T>(outputs: &BTreeMap<DrvPath, BTreeMap<kiln_wire::OutputName, T>>) -> String {
    let words = outputs.iter().flat_map(|(drv, set)| set.keys().map(|name| format!("{}^{name}", drv.name())));
    words.collect::<Vec<_>>().join(" ")
}

fn ids(builds: &[BuildId]) -> String {
    builds.iter().map(|build| format!("b{build}")).collect::<Vec<_>>().join(" ")
}

fn counts(counts: &kiln_wire::client::JobCounts) -> String {
    let table = [
        ("blocked", counts.blocked),
        ("ready", counts.ready),
        ("running", counts.running),
        ("built", counts.built),
        ("failed", counts.failed),
    ];
    table.iter().filter(|(_, count)| *count > 0).map(|(word, count)| format!("{word}={count}")).collect::<Vec<_>>().join(" ")
}

pub fn plan(plan: &Plan, report: &PlanReport) -> Vec<String> {
    let mut lines: Vec<String> = plan.placements.iter().map(|p| format!("{}@{}", p.derivation.name(), p.worker)).collect();
    lines.extend(plan.copies.iter().map(|(of, p)| format!("{}@{} beside #{of}", p.derivation.name(), p.worker)));
    lines.extend(plan.preemptions.iter().map(|ending| format!("ends early {}", lease(ending))));
    lines.extend(report.waiting.iter().map(|waiting| format!("{} wait ({}): {}", waiting.count, needs(&waiting.needs), waiting.reason)));
    lines.extend(report.wake.map(|(at, reason)| format!("wake at {}: {reason}", at.0)));
    lines
}

fn needs(needs: &kiln_core::Needs) -> String {
    let features = needs.features.iter().map(|feature| format!(" {feature}")).collect::<String>();
    format!("{}{features} cores={} mem={}", needs.system, needs.resources.cores, needs.resources.memory_mib)
}

pub fn jobs(farm: &Farm) -> Vec<String> {
    let line = |job: kiln_wire::client::JobView| {
        let reason = if job.reason.is_empty() { String::new() } else { format!(": {}", short(&job.reason)) };
        format!("{} rank={} tries={} {}{reason}", job.derivation.name(), job.upward_rank_ms, job.attempts.len(), job.state)
    };
    farm.jobs().map(line).collect()
}

pub fn build(farm: &Farm, id: BuildId) -> Vec<String> {
    let Some(view) = farm.build_view(id) else { return vec!["gone".to_owned()] };
    let mut lines = vec![format!("{:?} {} outputs=[{}]", view.state, counts(&view.counts), outputs(&view.outputs))];
    lines.extend(view.remaining_ms.map(|ms| format!("remaining {ms} ms")));
    lines.extend(view.failures.iter().map(|job| format!("failure {}: {}", job.derivation.name(), short(&job.reason))));
    lines.extend(view.running.iter().map(|job| format!("running {}", job.derivation.name())));
    lines.extend(view.waiting.iter().map(|(reason, count)| format!("{count} wait: {reason}")));
    lines
}
