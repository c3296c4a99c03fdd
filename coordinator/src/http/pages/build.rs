//! A build, live or from the archive.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use kiln_core::{BuildRecord, Failures, JobsWanted, Sight};
use kiln_pages::JobState;
use kiln_pages::build::{Build, Changes, FAILURES_MAX, Graph, JobList, JobRow, NODES_MAX, Node, ROWS_MAX, Step, page};
use kiln_pages::overview::{BuildLine, QueueLine};
use kiln_wire::limits::API_SEARCH_BYTES_MAX;
use kiln_wire::{BuildId, DrvPath, OutputName, StorePath, Timestamp};
use serde::Deserialize;

use super::look::Look;
use super::{Asker, NoPage, Ui, failures, overview, params};
use crate::http::api::reads::BuildsWanted;

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
            None => archived(&ui, asker, id).await?,
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
        Some((glance, farm.is_security(id), farm.outputs_of_build(id).unwrap_or_default()))
    });
    let Some((glance, is_security, made)) = found else { return Ok(None) };
    let line = overview::line(&look, glance, is_security);
    let (failures, failures_more) = failures::of_build(ui, &look, id, FAILURES_MAX);
    let failed: Vec<DrvPath> = look.survey.failed.iter().filter(|job| job.builds.contains(&id)).map(|job| job.derivation.clone()).collect();
    let head = look.survey.outlooks.get(&id).and_then(|outlook| outlook.head.clone());
    let (path, sketch) = ui.parts().farm(|farm| {
        let path = head.as_ref().map(|head| farm.critical_path(id, head, CHAIN_MAX)).unwrap_or_default();
        (path, farm.sketch(id, head.as_ref(), &failed, NODES_MAX))
    });
    let steps = path.left.len();
    let critical = path.left.into_iter().take(STEPS_MAX).filter_map(|step| {
        let state = JobState::of_word(step.state)?;
        Some(Step { derivation: step.derivation, state, expected_ms: step.expected_ms, running: step.running })
    });
    let (outputs, outputs_more) = outputs(ui, made);
    Ok(Some(Build {
        now: look.now,
        critical: critical.collect(),
        critical_more: u64::try_from(steps.saturating_sub(STEPS_MAX)).unwrap_or(u64::MAX),
        waiting: waiting(ui, &line),
        changes: changes(ui, &look, sight, &line, failed).await?,
        jobs: Some(jobs(ui, id, sight, asked).await?),
        graph: sketch.map(graph),
        line,
        failures,
        failures_more,
        outputs,
        outputs_more,
    }))
}

/// Returns a build that has left the farm.
async fn archived(ui: &Ui, asker: &Asker, id: BuildId) -> Result<Option<Build>, NoPage> {
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
    let own: Vec<_> = record.failures.iter().filter(|view| view.state == JobState::Failed.word()).collect();
    let failed: Vec<DrvPath> = own.iter().map(|view| view.derivation.clone()).collect();
    let failures_more = u64::try_from(own.len().saturating_sub(FAILURES_MAX)).unwrap_or(u64::MAX);
    // The archive keeps who failed, and who failed because of that, by the reason alone.
    let held = |derivation: &DrvPath| {
        let reason = format!("its input {derivation} failed");
        u64::try_from(record.failures.iter().filter(|view| view.reason == reason).count()).unwrap_or(u64::MAX)
    };
    let lines = own.iter().take(FAILURES_MAX).map(|view| failures::line(view, failures::class_of(view), held(&view.derivation)));
    let (outputs, outputs_more) = outputs(ui, record.outputs.clone());
    Ok(Some(Build {
        now: look.now,
        critical: Vec::new(),
        critical_more: 0,
        waiting: Vec::new(),
        failures: lines.collect(),
        failures_more,
        changes: changes(ui, &look, sight, &line, failed).await?,
        line,
        jobs: None,
        graph: None,
        outputs,
        outputs_more,
    }))
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
        })
    });
    Ok(JobList { rows: rows.collect(), wanted, state, next: found.next, is_later: after.is_some() })
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

fn outputs(ui: &Ui, made: Outputs) -> (Vec<(DrvPath, String, String)>, u64) {
    let all = made.values().map(BTreeMap::len).sum::<usize>();
    let rows = made.into_iter().flat_map(|(root, outputs)| outputs.into_iter().map(move |(name, path)| (root.clone(), name, path)));
    let rows = rows.take(OUTPUTS_MAX).map(|(root, name, path)| (root, name.to_string(), ui.parts().store_dir.join(&path)));
    (rows.collect(), u64::try_from(all.saturating_sub(OUTPUTS_MAX)).unwrap_or(u64::MAX))
}

/// Returns how a build's failures differ from those of the build of the same name before it, package by package.
async fn changes(ui: &Ui, look: &Look, sight: &Sight, line: &BuildLine, failed: Vec<DrvPath>) -> Result<Option<Changes>, NoPage> {
    if line.name.is_empty() {
        return Ok(None);
    }
    let named = BuildsWanted { name: Some(line.name.clone()), ..BuildsWanted::default() };
    let before = ui.0.api.builds(&named, sight, Some(line.id.0), NAMED_LOOKED_AT_MAX).await?.builds;
    let Some(before) = before.into_iter().find(|build| build.name == line.name) else { return Ok(None) };
    let id = BuildId(before.build);
    let earlier: Vec<DrvPath> = match before.archived {
        false => look.survey.failed.iter().filter(|job| job.builds.contains(&id)).map(|job| job.derivation.clone()).collect(),
        true => {
            let failures = record(ui, id).await?.map(|record| record.failures).unwrap_or_default();
            failures.into_iter().filter(|view| view.state == JobState::Failed.word()).map(|view| view.derivation).collect()
        }
    };
    let Failures { newly, still, fixed } = Failures::between(earlier, failed);
    Ok(Some(Changes { before: id, before_at: Timestamp(before.submitted_at), newly, still, fixed }))
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
