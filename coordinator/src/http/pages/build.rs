//! A build, live or from the archive.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use kiln_core::{Attributes, BuildRecord, Failures, Farm, JobsWanted, Sight, package, unbuilt_between, unevaluated_between};
use kiln_pages::JobState;
use kiln_pages::build::{Build, Changes, FAILURES_MAX, Graph, JobList, JobRow, NODES_MAX, Node, ROWS_MAX, Step, page};
use kiln_pages::overview::{BuildLine, FailureLine, QueueLine};
use kiln_wire::client::JobView;
use kiln_wire::limits::{API_JOBS_PER_LOOK_MAX, API_SEARCH_BYTES_MAX};
use kiln_wire::{BuildId, DrvPath, Evaluated, FailureClass, OutputName, StorePath, Timestamp};
use serde::Deserialize;

use super::look::Look;
use super::{Asker, NoPage, Ui, failures, overview, params};
use crate::http::api::reads::{BuildsWanted, is_called};

/// What is asked of the list of jobs.
#[derive(Default, Deserialize)]
struct Asked {
    q: Option<String>,
    state: Option<String>,
    after: Option<String>,
}

pub(super) async fn show(State(ui): State<Ui>, Path(build): Path<String>, headers: HeaderMap, uri: Uri) -> Response {
    ui.answer(&headers, &uri, async |asker| {
        let absent = || NoPage::Absent(format!("There is no build {build}, or it is not yours to see."));
        let id = build.parse().map(BuildId).map_err(|_| absent())?;
        let found = match live(&ui, asker, id, params(&uri)?).await? {
            Some(found) => Some(found),
            None => archived(&ui, asker, id, params(&uri)?).await?,
        };
        found.map(|model| page(&model)).ok_or_else(absent)
    })
    .await
}

/// Returns a build that the farm has; none if it has none of that number, or the asker does not see it.
async fn live(ui: &Ui, asker: &Asker, id: BuildId, asked: Asked) -> Result<Option<Build>, NoPage> {
    let (look, sight) = (ui.look().await, &asker.caller.sight);
    let found = ui.parts().farm(|farm| {
        let glance = farm.build_glance(id).filter(|glance| sight.sees(&glance.account))?;
        Some((glance, farm.is_security(id), farm.outputs_of_build(id).unwrap_or_default(), farm.evaluated(id).unwrap_or_default()))
    });
    let Some((glance, is_security, made, evaluated)) = found else { return Ok(None) };
    let line = overview::line(&look, glance, is_security);
    let (failures, failures_more) = failures::of_build(ui, &look, sight, id, FAILURES_MAX);
    let failed = failed_of(&look, id);
    let outlook = look.survey.outlooks.get(&id);
    let (path, sketch) = ui.parts().farm(|farm| {
        let path = outlook.map(|outlook| farm.critical_path(outlook, CHAIN_MAX)).unwrap_or_default();
        (path, farm.sketch(id, outlook, &failed, NODES_MAX))
    });
    let steps = path.left.len();
    let critical = path.left.into_iter().take(STEPS_MAX).filter_map(|step| {
        let state = JobState::of_word(step.state)?;
        Some(Step { derivation: step.derivation, state, expected_ms: step.expected_ms, running: step.running })
    });
    let (outputs, outputs_more) = outputs(ui, &made);
    Ok(Some(Build {
        now: look.now,
        critical: critical.collect(),
        critical_more: u64::try_from(steps.saturating_sub(STEPS_MAX)).unwrap_or(u64::MAX),
        waiting: waiting(ui, &line),
        changes: known(changes(ui, &look, sight, &line, (failed, None), &evaluated).await),
        jobs: Some(jobs(ui, id, sight, asked).await?),
        graph: sketch.map(graph),
        line,
        failures,
        failures_more,
        outputs,
        outputs_more,
        errors_more: evaluated.errors_more,
        errors: evaluated.errors.into_iter().collect(),
    }))
}

/// Returns a build that has left the farm.
async fn archived(ui: &Ui, asker: &Asker, id: BuildId, asked: Asked) -> Result<Option<Build>, NoPage> {
    let (look, sight) = (ui.look().await, &asker.caller.sight);
    let Some(record) = record(ui, id).await?.filter(|record| sight.sees(&record.account.clone().unwrap_or_default())) else {
        return Ok(None);
    };
    let line = BuildLine {
        id,
        name: record.name.clone(),
        account: record.account.as_ref().map(overview::account).unwrap_or_default(),
        is_security: false,
        submitted_at: record.submitted_at,
        ended_at: Some(record.ended_at),
        state: record.state,
        counts: record.counts,
        eta: None,
    };
    let own: Vec<_> = record.failures.iter().filter(|view| has_failed(view)).collect();
    let failed: Vec<DrvPath> = own.iter().map(|view| view.derivation.clone()).collect();
    let failures_more = u64::try_from(own.len().saturating_sub(FAILURES_MAX)).unwrap_or(u64::MAX);
    // The archive keeps who failed, and who failed because of that, by the reason alone.
    let held = |derivation: &DrvPath| {
        let reason = format!("its input {derivation} failed");
        u64::try_from(record.failures.iter().filter(|view| view.reason == reason).count()).unwrap_or(u64::MAX)
    };
    let lines = own
        .iter()
        .take(FAILURES_MAX)
        .map(|view| FailureLine { blast: Some(held(&view.derivation)), ..failures::line(view, failures::class_of(view)) });
    let (outputs, outputs_more) = outputs(ui, &record.outputs);
    let evaluated = record.evaluated();
    Ok(Some(Build {
        now: look.now,
        critical: Vec::new(),
        critical_more: 0,
        waiting: Vec::new(),
        failures: lines.collect(),
        failures_more,
        changes: known(changes(ui, &look, sight, &line, (failed, Some(&record.outputs)), &evaluated).await),
        line,
        jobs: Some(jobs_kept(&record, asked)),
        graph: None,
        outputs,
        outputs_more,
        errors_more: evaluated.errors_more,
        errors: evaluated.errors.into_iter().collect(),
    }))
}

/// Returns what was found, or why it cannot be known: that is no reason to show nothing of a build.
fn known(changes: Result<Option<Changes>, NoPage>) -> Result<Option<Changes>, String> {
    changes.map_err(|none| match none {
        NoPage::Refused(_, what, why) => format!("{what}: {why}"),
        NoPage::LogIn { .. } | NoPage::Absent(_) => "The build before cannot be read.".to_owned(),
    })
}

/// Returns those jobs of an archived build that are kept: what failed.
fn jobs_kept(record: &BuildRecord, asked: Asked) -> JobList {
    let wanted: String = asked.q.unwrap_or_default().chars().take(API_SEARCH_BYTES_MAX).collect();
    let (state, search) = (asked.state.as_deref().and_then(JobState::of_word), wanted.to_ascii_lowercase());
    let begin: usize = asked.after.as_deref().and_then(|after| after.parse().ok()).unwrap_or_default();
    let takes = |view: &&JobView| state.is_none_or(|state| view.state == state.word()) && is_called(record, view, &search);
    let mut rest = record.failures.iter().filter(takes).skip(begin);
    let rows = rest.by_ref().take(ROWS_MAX).filter_map(|view| {
        let attempts = u64::try_from(view.attempts.len()).unwrap_or(u64::MAX);
        let (derivation, reason) = (view.derivation.clone(), view.reason.clone());
        let attributes = record.names(&derivation).to_vec();
        Some(JobRow { derivation, state: JobState::of_word(&view.state)?, reason, chain_ms: 0, attempts, attributes })
    });
    let rows = rows.collect();
    let next = rest.next().map(|_| begin.saturating_add(ROWS_MAX).to_string());
    JobList { rows, wanted, state, next, is_later: begin > 0, is_kept: true }
}

async fn record(ui: &Ui, id: BuildId) -> Result<Option<BuildRecord>, NoPage> {
    let read = ui.parts().archive.get(id).await;
    read.map_err(|error| {
        let text = crate::driver::Chain(&error).to_string();
        NoPage::Refused(axum::http::StatusCode::SERVICE_UNAVAILABLE, "The archive cannot be read", text)
    })
}

/// Returns why ready jobs of a build wait. Of a large one the overview says it for the whole farm.
fn waiting(ui: &Ui, line: &BuildLine) -> Vec<QueueLine> {
    if line.total() > EXPLAINED_JOBS_MAX || line.counts.ready == 0 {
        return Vec::new();
    }
    let waiting = ui.parts().farm(|farm| farm.build_view(line.id)).map(|view| view.waiting).unwrap_or_default();
    let mut lines: Vec<QueueLine> = waiting.into_iter().map(|(reason, count)| QueueLine { reason, count, is_unplaceable: false }).collect();
    lines.sort_by_key(|line| std::cmp::Reverse(line.count));
    lines
}

async fn jobs(ui: &Ui, id: BuildId, sight: &Sight, asked: Asked) -> Result<JobList, NoPage> {
    let mut wanted = asked.q.unwrap_or_default();
    wanted = wanted.chars().take(API_SEARCH_BYTES_MAX).collect();
    let state = asked.state.as_deref().and_then(JobState::of_word);
    let after = asked.after.as_deref().and_then(|after| after.parse().ok());
    let search = Some(wanted.as_str()).filter(|text| !text.is_empty());
    let list = JobsWanted { build: Some(id), state: state.map(JobState::word), search, sight };
    let found = ui.0.api.jobs(list, after, ROWS_MAX).await?;
    let rows = found.jobs.into_iter().filter_map(|job| {
        Some(JobRow {
            derivation: parse(ui, &job.derivation)?,
            state: JobState::of_word(&job.state)?,
            reason: job.reason,
            chain_ms: job.upward_rank_ms,
            attempts: u64::try_from(job.attempts.len()).unwrap_or(u64::MAX),
            attributes: job.attributes,
        })
    });
    Ok(JobList { rows: rows.collect(), wanted, state, next: found.next, is_later: after.is_some(), is_kept: false })
}

/// Returns a derivation from its full path.
fn parse(ui: &Ui, full: &str) -> Option<DrvPath> {
    DrvPath::from_path(ui.parts().store_dir.strip(full).ok()?).ok()
}

fn graph(sketch: kiln_core::Sketch) -> Graph {
    let node = |node: kiln_core::SketchNode| Node {
        derivation: node.derivation,
        state: JobState::of_word(node.state).unwrap_or(JobState::Blocked),
        is_critical: node.is_critical,
        inputs: node.inputs,
    };
    Graph { nodes: sketch.nodes.into_iter().map(node).collect(), left_out: sketch.left_out }
}

type Outputs = BTreeMap<DrvPath, BTreeMap<OutputName, StorePath>>;

fn outputs(ui: &Ui, made: &Outputs) -> (Vec<(DrvPath, String, String)>, u64) {
    let all = made.values().map(BTreeMap::len).sum::<usize>();
    let rows = made.iter().flat_map(|(root, outputs)| outputs.iter().map(move |(name, path)| (root, name, path)));
    let rows = rows.take(OUTPUTS_MAX).map(|(root, name, path)| (root.clone(), name.to_string(), ui.parts().store_dir.join(path)));
    (rows.collect(), u64::try_from(all.saturating_sub(OUTPUTS_MAX)).unwrap_or(u64::MAX))
}

/// Returns what failed of a live build.
fn failed_of(look: &Look, id: BuildId) -> Vec<DrvPath> {
    let failed = look.survey.failed.iter().filter(failures::is_failure).filter(|job| job.builds.contains(&id));
    failed.map(|job| job.derivation.clone()).collect()
}

/// Returns whether an archived job failed by itself, and was not ended by somebody.
fn has_failed(view: &JobView) -> bool {
    view.state == JobState::Failed.word() && failures::class_of(view) != FailureClass::Cancelled
}

/// Returns how a build's failures differ from those of the build of the same name before it, package by package.
/// `kept`: what was made of it, of one that has left the farm.
async fn changes(
    ui: &Ui,
    look: &Look,
    sight: &Sight,
    line: &BuildLine,
    (failed, kept): (Vec<DrvPath>, Option<&Outputs>),
    evaluated: &Evaluated,
) -> Result<Option<Changes>, NoPage> {
    if line.name.is_empty() {
        return Ok(None);
    }
    let named = BuildsWanted { name: Some(line.name.clone()), ..BuildsWanted::default() };
    let before = ui.0.api.builds(&named, sight, Some(line.id.0), NAMED_LOOKED_AT_MAX).await?.builds;
    let Some(before) = before.into_iter().find(|build| build.name == line.name) else { return Ok(None) };
    let id = BuildId(before.build);
    let (earlier, earlier_evaluated, has_ended): (Vec<DrvPath>, Evaluated, bool) = match before.archived {
        false => {
            let has_ended = |farm: &Farm| farm.build_glance(id).is_some_and(|glance| glance.ended_at.is_some());
            let (evaluated, has_ended) = ui.parts().farm(|farm| (farm.evaluated(id).unwrap_or_default(), has_ended(farm)));
            (failed_of(look, id), evaluated, has_ended)
        }
        true => {
            let record = record(ui, id).await?;
            let evaluated = record.as_ref().map(BuildRecord::evaluated).unwrap_or_default();
            let failures = record.map(|record| record.failures).unwrap_or_default();
            (failures.into_iter().filter(has_failed).map(|view| view.derivation).collect(), evaluated, true)
        }
    };
    let Failures { newly, still, fixed } = Failures::between(earlier, failed);
    let wanted = fixed.iter().map(|job| package(job).to_owned()).collect();
    let built = match kept {
        Some(outputs) => outputs.keys().map(|root| package(root).to_owned()).collect(),
        None => built_of(ui, line.id, &wanted).await,
    };
    let (fixed, unreached) = fixed.into_iter().partition(|job| built.contains(package(job)));
    let attributes = attributes(&earlier_evaluated, evaluated, has_ended && line.ended_at.is_some());
    Ok(Some(Changes { before: id, before_at: Timestamp(before.submitted_at), newly, still, fixed, unreached, attributes }))
}

/// Returns what became of attributes, in words. What was not built is known only once both builds have ended.
fn attributes(before: &Evaluated, after: &Evaluated, have_ended: bool) -> Vec<(&'static str, Vec<String>)> {
    let unbuilt = if have_ended { unbuilt_between(before, after) } else { Attributes::default() };
    let unevaluated = unevaluated_between(before, after);
    vec![
        ("Attributes not built, newly", unbuilt.newly),
        ("Attributes built again", unbuilt.fixed),
        ("Attributes not evaluated, newly", unevaluated.newly),
        ("Attributes evaluated again", unevaluated.fixed),
    ]
}

/// Returns those of some packages that a live build has built.
async fn built_of(ui: &Ui, id: BuildId, wanted: &BTreeSet<String>) -> BTreeSet<String> {
    let (mut built, mut after) = (BTreeSet::new(), None);
    while !wanted.is_empty() {
        after = ui.parts().farm(|farm| farm.packages_built(id, after, API_JOBS_PER_LOOK_MAX, wanted, &mut built));
        if after.is_none() {
            break;
        }
        tokio::task::yield_now().await;
    }
    built
}

/// Jobs of a critical path that are counted.
const CHAIN_MAX: usize = 2000;
/// Jobs of a critical path that are shown.
const STEPS_MAX: usize = 12;
/// Outputs that are shown.
const OUTPUTS_MAX: usize = 30;
/// Builds of a like name that are looked at for one of the same.
const NAMED_LOOKED_AT_MAX: usize = 8;
/// Jobs of a build whose reasons are looked at one by one.
const EXPLAINED_JOBS_MAX: u64 = 2000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_build_that_goes_on_no_attribute_is_said_to_be_built_again() {
        let drv = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-curl-8.drv").expect("a path");
        let now = Evaluated { attributes: [(drv.clone(), vec!["curl".to_owned()])].into(), ..Evaluated::default() };
        let before = Evaluated { unbuilt: [drv].into(), ..now.clone() };
        let said = |have_ended| attributes(&before, &now, have_ended).into_iter().flat_map(|(_, names)| names).collect::<Vec<_>>();
        assert_eq!((said(true), said(false)), (vec!["curl".to_owned()], Vec::new()));
    }
}
