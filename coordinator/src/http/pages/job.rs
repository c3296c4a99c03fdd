//! A job: of the farm, or of which something is left.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use kiln_core::Sight;
use kiln_pages::JobState;
use kiln_pages::ansi::Style;
use kiln_pages::job::{Attempt, Behind, Job, Limits, Log, Output, log_part, page};
use kiln_pages::words;
use kiln_wire::client::{AttemptView, JobView};
use kiln_wire::limits::API_SEARCH_BYTES_MAX;
use kiln_wire::{AttemptId, BuildId, BuiltOutput, DrvPath, Explanation};
use serde::Deserialize;

use super::log::{Wanted, read, read_on};
use super::{Asker, NoPage, Ui, params};
use crate::driver::Chain;
use crate::heavy::heavy;
use crate::{kept_logs, realised, views};

/// Which part of which log.
#[derive(Default, Deserialize)]
struct Asked {
    attempt: Option<u64>,
    q: Option<String>,
    at: Option<u64>,
    part: Option<String>,
    line: Option<u64>,
    style: Option<u32>,
}

pub(super) async fn show(State(ui): State<Ui>, Path(derivation): Path<String>, headers: HeaderMap, uri: Uri) -> Response {
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
        let log = logged(&ui, &derivation, &asked).await?;
        let model = match of_farm(&ui, asker, &derivation) {
            Some(model) => Some(Job { log, ..model }),
            None => left_over(&ui, &derivation, log).await?,
        };
        model.map(|model| page(&model)).ok_or_else(absent)
    })
    .await
}

/// Returns whether somebody sees a job. Of one that has left the farm, only who sees all does.
fn sees(ui: &Ui, derivation: &DrvPath, sight: &Sight) -> bool {
    ui.parts().farm(|farm| farm.sees_job(derivation, sight)).unwrap_or(*sight == Sight::All)
}

fn of_farm(ui: &Ui, asker: &Asker, derivation: &DrvPath) -> Option<Job> {
    let parts = ui.parts();
    let explanation = heavy(|| views::explain(parts, derivation)).ok()?;
    let sight = &asker.caller.sight;
    let (builds, limits, neighbours, outputs) = parts.farm(|farm| {
        let seen = farm.builds_seen(&explanation.job.builds, sight);
        let named = seen.into_iter().filter_map(|id| Some((id, farm.build_glance(id)?.name)));
        let outputs = match farm.outputs_of(derivation) {
            Some(built) => built.iter().map(|output| built_output(ui, output)).collect(),
            None => {
                farm.outputs_declared(derivation).unwrap_or_default().into_iter().map(|(name, path)| declared(ui, &name, path)).collect()
            }
        };
        (named.collect::<Vec<_>>(), farm.limits_of(derivation), farm.neighbours(derivation, NEIGHBOURS_MAX), outputs)
    });
    let [(inputs, inputs_more), (dependents, dependents_more)] = neighbours?;
    let view = &explanation.job;
    let known = |limit: u64| (limit > 0).then_some(limit);
    let limits = limits.unwrap_or_default();
    Some(Job {
        now: parts.clock.now(),
        derivation: derivation.clone(),
        state: JobState::of_word(&view.state)?,
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
        inputs: named(inputs),
        inputs_more,
        outputs,
        dependents: named(dependents),
        dependents_more,
        dependents_all: explanation.dependents_all,
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

/// Returns what is left of a job that has left the farm: its log, and its outputs, if it was built.
async fn left_over(ui: &Ui, derivation: &DrvPath, log: Option<Log>) -> Result<Option<Job>, NoPage> {
    let parts = ui.parts();
    let made = realised::outputs(parts, vec![derivation.clone()]).await.unwrap_or_default().remove(derivation).unwrap_or_default();
    if made.is_empty() && log.is_none() {
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
    let failed = parts.consensus.history().failures(kiln_wire::Timestamp(0)).into_iter().find(|failure| failure.derivation == *derivation);
    let (state, reason) = match failed.filter(|failure| !failure.is_retried) {
        Some(failure) if outputs.is_empty() => (JobState::Failed, format!("{}: {}", failure.class, failure.message)),
        Some(_) | None => (JobState::Built, "it has left the farm with its build; this is what is kept of it".to_owned()),
    };
    let state = if outputs.is_empty() && state == JobState::Built { JobState::Cancelled } else { state };
    Ok(Some(Job {
        now: parts.clock.now(),
        derivation: derivation.clone(),
        state,
        reason,
        builds: Vec::new(),
        facts: Vec::new(),
        workers: Vec::new(),
        behind: Vec::new(),
        attempts: Vec::new(),
        limits: Limits::default(),
        log,
        inputs: Vec::new(),
        inputs_more: 0,
        outputs,
        dependents: Vec::new(),
        dependents_more: 0,
        dependents_all: 0,
    }))
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
    // One that has written nothing, or whose log is with another coordinator.
    let Ok(mut reader) = kept_logs::read(parts, derivation, attempt).await else { return Ok(None) };
    let is_live = parts.farm(|farm| farm.live_lease(derivation)).is_some_and(|lease| lease.attempt == attempt);
    let search: String = asked.q.as_deref().unwrap_or_default().chars().take(API_SEARCH_BYTES_MAX).collect();
    let wanted = Wanted { at: asked.at, search };
    let log = heavy(|| match (asked.part.as_deref(), asked.at, asked.line) {
        (Some("log"), Some(at), Some(line)) => {
            read_on(&mut reader, attempt.0, at, line, Style::of_code(asked.style.unwrap_or_default()), is_live)
        }
        _ => read(&mut reader, attempt.0, &wanted, is_live),
    });
    log.map(Some).map_err(|error| failed(&error))
}

/// Jobs that are named of those that a job needs, and of those that need it.
const NEIGHBOURS_MAX: usize = 60;
