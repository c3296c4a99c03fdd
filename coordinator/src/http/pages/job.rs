//! A job: of the farm, or of which something is left.

use std::sync::PoisonError;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use kiln_core::Sight;
use kiln_pages::JobState;
use kiln_pages::ansi::Style;
use kiln_pages::job::{Attempt, Behind, Job, LeftFarm, Limits, Log, Output, left_page, log_part, page};
use kiln_pages::words;
use kiln_wire::client::{AttemptView, JobView};
use kiln_wire::limits::API_SEARCH_BYTES_MAX;
use kiln_wire::{AttemptId, BuildId, BuiltOutput, DrvPath, Explanation};
use serde::Deserialize;

use super::super::api::forward;
use super::log::{Wanted, read, read_on};
use super::{Asker, NoPage, Ui, busy, params};
use crate::driver::Chain;
use crate::heavy::heavy;
use crate::{kept_logs, realised};

/// Which part of which log.
#[derive(Default, Deserialize)]
struct Asked {
    attempt: Option<u64>,
    q: Option<String>,
    at: Option<u64>,
    part: Option<String>,
    /// A part is to have the log too.
    log: Option<String>,
    line: Option<u64>,
    style: Option<u32>,
}

pub(super) async fn show(State(ui): State<Ui>, Path(derivation): Path<String>, headers: HeaderMap, uri: Uri) -> Response {
    if let Some(page) = of_leader(&ui, &derivation, &headers, &uri).await {
        return page;
    }
    ui.answer(&headers, &uri, async |asker| {
        let absent = || NoPage::Absent(format!("There is no job {derivation}, or it is not yours to see."));
        let derivation = DrvPath::parse(&derivation).map_err(|_| absent())?;
        let asked: Asked = params(&uri)?;
        if !sees(&ui, &derivation, &asker.caller.sight) {
            return Err(absent());
        }
        if asked.part.as_deref() == Some("log") {
            let log = logged(&ui, &derivation, &asked).await?;
            return log.map(|log| log_part(&derivation, &log)).ok_or_else(absent);
        }
        // What is asked for again and again is what changes: the log grows by itself.
        let log = if asker.part && asked.log.is_none() { None } else { logged(&ui, &derivation, &asked).await? };
        match of_farm(&ui, asker, &derivation).await? {
            Some(model) => Ok(page(&Job { log, ..model })),
            None => left_over(&ui, &derivation, log).await?.map(|model| left_page(&model)).ok_or_else(absent),
        }
    })
    .await
}

/// Has the leader make the page of a job that runs, whose log comes to the leader alone.
async fn of_leader(ui: &Ui, derivation: &str, headers: &HeaderMap, uri: &Uri) -> Option<Response> {
    let (asker, derivation) = (ui.asker(headers, uri).ok()?, DrvPath::parse(derivation).ok()?);
    let runs = ui.parts().farm(|farm| farm.live_lease(&derivation)).is_some();
    if !runs || !sees(ui, &derivation, &asker.caller.sight) {
        return None;
    }
    forward::page(&ui.0.api, &asker.caller, uri.path_and_query()?.as_str(), headers).await
}

/// Returns whether somebody sees a job. Of one that has left the farm everybody sees what the binary cache has of it: nobody knows whose it was,
/// and somebody who follows a log is to see its end.
fn sees(ui: &Ui, derivation: &DrvPath, sight: &Sight) -> bool {
    ui.parts().farm(|farm| farm.sees_job(derivation, sight)).unwrap_or(true)
}

async fn of_farm(ui: &Ui, asker: &Asker, derivation: &DrvPath) -> Result<Option<Job>, NoPage> {
    let (parts, sight) = (ui.parts(), &asker.caller.sight);
    let Some(explanation) = ui.0.api.explanation(derivation, sight).await.map_err(|_| busy())? else { return Ok(None) };
    let (builds, limits, neighbours, outputs) = parts.farm(|farm| {
        let named = explanation.job.builds.iter().filter_map(|id| Some((*id, farm.build_glance(*id)?.name)));
        let outputs = match farm.outputs_of(derivation) {
            Some(built) => built.iter().map(|output| built_output(ui, output)).collect(),
            None => {
                farm.outputs_declared(derivation).unwrap_or_default().into_iter().map(|(name, path)| declared(ui, &name, path)).collect()
            }
        };
        (named.collect::<Vec<_>>(), farm.limits_of(derivation), farm.neighbours(derivation, NEIGHBOURS_MAX, sight), outputs)
    });
    let view = &explanation.job;
    let (Some(neighbours), Some(state)) = (neighbours, JobState::of_word(&view.state)) else { return Ok(None) };
    let [(inputs, inputs_more), (dependents, dependents_more)] = neighbours;
    let (mut inputs, before) = (named(inputs), built_before(ui, derivation).await);
    let room = NEIGHBOURS_MAX.saturating_sub(inputs.len());
    let inputs_more = inputs_more + before.len().saturating_sub(room) as u64;
    inputs.extend(before.into_iter().map(|input| (input, JobState::Built)).take(room));
    let known = |limit: u64| (limit > 0).then_some(limit);
    let limits = limits.unwrap_or_default();
    Ok(Some(Job {
        now: parts.clock.now(),
        derivation: derivation.clone(),
        state,
        reason: view.reason.clone(),
        builds: builds.into_iter().map(|(id, name)| titled(id, name)).collect(),
        facts: facts(&explanation),
        workers: explanation.workers.iter().map(|group| (group.what.clone(), group.count, group.first.clone())).collect(),
        behind: behind(&explanation),
        attempts: attempts(view),
        limits: Limits {
            wall_ms: known(limits.wall_ms_max),
            memory_bytes: known(explanation.resources.memory_mib.saturating_mul(1 << 20)),
            log_bytes: known(limits.log_bytes_max),
        },
        log: None,
        inputs,
        inputs_more,
        outputs,
        dependents: named(dependents),
        dependents_more,
        dependents_all: explanation.dependents_all,
    }))
}

/// Returns those of a job's inputs that were there before anybody asked for it: they are no jobs of the farm.
async fn built_before(ui: &Ui, derivation: &DrvPath) -> Vec<DrvPath> {
    let parts = ui.parts();
    let Ok(outline) = parts.derivations.outline(parts, derivation).await else { return Vec::new() };
    parts.farm(|farm| {
        outline.inputs().map(|(input, _)| input).filter(|input| farm.sees_job(input, &Sight::All).is_none()).cloned().collect()
    })
}

fn titled(id: BuildId, name: String) -> (BuildId, String) {
    let name = if name.is_empty() { format!("build {id}") } else { name };
    (id, name)
}

fn named(jobs: Vec<(DrvPath, &'static str)>) -> Vec<(DrvPath, JobState)> {
    jobs.into_iter().filter_map(|(job, word)| Some((job, JobState::of_word(word)?))).collect()
}

fn facts(of: &Explanation) -> Vec<(&'static str, String)> {
    let mib = |mib: u64| words::bytes(mib.saturating_mul(1 << 20));
    let memory = match (of.resources.memory_mib, of.memory_wish_mib) {
        (0, 0) => "none in particular".to_owned(),
        (0, wish) => format!("{} where there is as much, as builds of its like took", mib(wish)),
        (asked, _) => mib(asked),
    };
    let features = of.features.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let mut facts = vec![
        ("System", of.system.clone()),
        ("Features", if features.is_empty() { "none".to_owned() } else { features }),
        ("Cores", of.resources.cores.to_string()),
        ("Memory", memory),
    ];
    if !of.job.attributes.is_empty() {
        facts.insert(0, ("Attributes", of.job.attributes.join(", ")));
    }
    if of.expected_ms > 0 {
        facts.push(("Expected", words::duration(of.expected_ms)));
        facts.push(("To the end", words::duration(of.job.upward_rank_ms)));
    }
    facts.extend(of.running_ms.map(|ms| ("Runs for", words::duration(ms))));
    facts.extend(of.ahead.map(|ahead| ("Ahead of it", words::counted(ahead, "more urgent job", "more urgent jobs"))));
    if of.inputs_unbuilt > 0 {
        facts.push(("Waits for", words::counted(of.inputs_unbuilt, "input", "inputs")));
        facts.push(("Which take", words::duration(of.behind_ms)));
    }
    facts
}

fn behind(of: &Explanation) -> Vec<Behind> {
    let step = |step: &kiln_wire::Step| {
        let state = JobState::of_word(&step.state)?;
        Some(Behind { derivation: step.derivation.clone(), state, reason: step.reason.clone(), expected_ms: step.expected_ms })
    };
    of.behind.iter().filter_map(step).collect()
}

fn attempts(view: &JobView) -> Vec<Attempt> {
    let attempt = |attempt: &AttemptView| Attempt {
        attempt: attempt.attempt.0,
        worker: attempt.worker.clone(),
        started_at: attempt.started_at,
        ended_at: attempt.ended_at,
        failure: attempt.failure.clone(),
        usage: attempt.usage,
    };
    view.attempts.iter().map(attempt).collect()
}

fn built_output(ui: &Ui, output: &BuiltOutput) -> Output {
    Output {
        name: output.name.to_string(),
        path: Some(ui.parts().store_dir.join(&output.info.path)),
        nar_size_bytes: Some(output.info.nar_size_bytes),
        nar_hash: Some(output.info.nar_hash.to_string()),
        references: u64::try_from(output.info.references.len()).unwrap_or(u64::MAX),
    }
}

fn declared(ui: &Ui, name: &kiln_wire::OutputName, path: Option<kiln_wire::StorePath>) -> Output {
    let path = path.map(|path| ui.parts().store_dir.join(&path));
    Output { name: name.to_string(), path, nar_size_bytes: None, nar_hash: None, references: 0 }
}

/// Returns what is left of a job that has left the farm: its log, its outputs, if it was built, and why it failed, if that is remembered.
async fn left_over(ui: &Ui, derivation: &DrvPath, log: Option<Log>) -> Result<Option<LeftFarm>, NoPage> {
    let parts = ui.parts();
    let made = realised::outputs(parts, vec![derivation.clone()]).await.unwrap_or_default().remove(derivation).unwrap_or_default();
    let has_log = log.is_some() || kept_logs::latest_attempt(parts, derivation).await.ok().flatten().is_some();
    if made.is_empty() && !has_log {
        return Ok(None);
    }
    let mut outputs = Vec::new();
    for (name, path) in made {
        let info = parts.path_info(&path).await.ok().flatten();
        outputs.push(match info {
            Some(info) => built_output(ui, &BuiltOutput { name, info }),
            None => declared(ui, &name, Some(path)),
        });
    }
    let failed = parts.consensus.history().failure_of(derivation).filter(|failure| !failure.is_retried && outputs.is_empty());
    let reason = failed.map(|failure| format!("{}: {}", failure.class, failure.message));
    Ok(Some(LeftFarm { derivation: derivation.clone(), reason, log, outputs }))
}

/// Returns a part of the log of an attempt: of the one that is asked for, or the latest.
async fn logged(ui: &Ui, derivation: &DrvPath, asked: &Asked) -> Result<Option<Log>, NoPage> {
    let parts = ui.parts();
    let failed = |error: &(dyn std::error::Error + Send + Sync)| {
        NoPage::Refused(StatusCode::SERVICE_UNAVAILABLE, "The log cannot be read", Chain(error).to_string())
    };
    let attempt = match asked.attempt {
        Some(attempt) => Some(AttemptId(attempt)),
        None => kept_logs::latest_attempt(parts, derivation).await.map_err(|error| failed(&error))?,
    };
    let Some(attempt) = attempt else { return Ok(None) };
    let _turn = ui.0.reading.acquire().await.expect("never closed");
    // One that has written nothing, or whose log is with another coordinator.
    let Ok(mut reader) = kept_logs::read(parts, derivation, attempt).await else { return Ok(None) };
    let is_live = parts.farm(|farm| farm.live_lease(derivation)).is_some_and(|lease| lease.attempt == attempt);
    let search: String = asked.q.as_deref().unwrap_or_default().chars().take(API_SEARCH_BYTES_MAX).collect();
    let wanted = Wanted { at: asked.at, search };
    let log = heavy(|| match (asked.part.as_deref(), asked.at, asked.line) {
        (Some("log"), Some(at), Some(line)) => {
            read_on(&mut reader, attempt.0, at, line, Style::of_code(asked.style.unwrap_or_default()), is_live)
        }
        _ => {
            let known = ui.0.logs.of((derivation.clone(), attempt, is_live));
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            read(&mut reader, &mut known, attempt.0, &wanted, is_live)
        }
    });
    log.map(Some).map_err(|error| failed(&error))
}

/// Jobs that are named of those that a job needs, and of those that need it.
const NEIGHBOURS_MAX: usize = 60;
