//! The timeline: what this coordinator remembers of attempts, and what runs.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use kiln_core::Sight;
use kiln_pages::timeline::{Lane, Span, SpanEnd, Timeline, page};
use kiln_pages::verdict::HOUR_MS;
use kiln_wire::client::BuildState;
use kiln_wire::{BuildId, DrvPath, Timestamp, WorkerId};
use serde::Deserialize;

use super::look::Look;
use super::{Asker, NoPage, Ui, params};
use crate::history;

/// Which stretch of time, and from which worker on.
#[derive(Deserialize)]
struct Asked {
    from: Option<u64>,
    to: Option<u64>,
    last: Option<u64>,
    after: Option<String>,
    build: Option<u64>,
}

pub(super) async fn show(State(ui): State<Ui>, headers: HeaderMap, uri: Uri) -> Response {
    ui.answer(&headers, &uri, async |asker| {
        let asked: Asked = params(&uri)?;
        Ok::<_, NoPage>(page(&model(&ui, asker, &asked).await))
    })
    .await
}

async fn model(ui: &Ui, asker: &Asker, asked: &Asked) -> Timeline {
    let (look, sight) = (ui.look().await, &asker.caller.sight);
    let now = look.now;
    let (from, to, is_live) = stretch(asked, now);
    let (critical_of, critical) = critical(ui, &look, sight, asked.build.map(BuildId));
    let mut lanes: BTreeMap<WorkerId, Vec<Span>> = BTreeMap::new();
    for span in ui.parts().consensus.history().ended(from, to, sight) {
        lanes.entry(span.worker.clone()).or_default().push(ended(&span, &critical));
    }
    running(ui, &look, sight, to, &critical, &mut lanes);
    let after = asked.after.as_deref().and_then(|after| WorkerId::parse(after).ok());
    let mut rest = lanes.into_iter().filter(|(worker, _)| after.as_ref().is_none_or(|after| worker > after));
    let lanes: Vec<Lane> = rest.by_ref().take(LANES_MAX).map(|(worker, spans)| Lane { worker, spans }).collect();
    let next = rest.next().and_then(|_| lanes.last().map(|lane| lane.worker.clone()));
    let (known_since, _) = ui.parts().consensus.history().since(now);
    Timeline { now, from, to, is_live, known_since, critical_of, lanes, next }
}

/// Returns the stretch of time that is asked for, and whether it moves on.
fn stretch(asked: &Asked, now: Timestamp) -> (Timestamp, Timestamp, bool) {
    match (asked.from, asked.to) {
        (Some(from), Some(to)) if from < to => (Timestamp(from), Timestamp(to.min(from.saturating_add(STRETCH_MS_MAX))), false),
        _ => {
            let last = asked.last.unwrap_or(HOUR_MS).clamp(STRETCH_MS_MIN, STRETCH_MS_MAX);
            (Timestamp(now.0.saturating_sub(last)), now, true)
        }
    }
}

/// Returns whose critical path is marked, and the jobs on it: of the build that is asked for, or the live one that ends last, those of the
/// security class first.
fn critical(ui: &Ui, look: &Look, sight: &Sight, asked: Option<BuildId>) -> (Option<(u64, String)>, BTreeSet<DrvPath>) {
    ui.parts().farm(|farm| {
        let live = farm.builds_before(BuildId(u64::MAX), sight).filter(|glance| glance.state == BuildState::Active);
        let chosen = live.filter(|glance| asked.is_none_or(|asked| asked == glance.build)).max_by_key(|glance| {
            (farm.is_security(glance.build), look.survey.outlooks.get(&glance.build).map(|outlook| outlook.likely_ms))
        });
        let Some(glance) = chosen else { return (None, BTreeSet::new()) };
        let outlook = look.survey.outlooks.get(&glance.build);
        let path = outlook.map(|outlook| farm.critical_path(outlook, CHAIN_MAX)).unwrap_or_default();
        let jobs = path.past.into_iter().chain(path.left.into_iter().map(|step| step.derivation)).collect();
        let name = if glance.name.is_empty() { format!("build {}", glance.build) } else { glance.name };
        (Some((glance.build.0, name)), jobs)
    })
}

fn ended(span: &history::Span, critical: &BTreeSet<DrvPath>) -> Span {
    Span {
        attempt: span.attempt.0,
        is_critical: critical.contains(&span.derivation),
        derivation: span.derivation.clone(),
        from: span.from,
        to: Some(span.to),
        end: match span.end {
            history::SpanEnd::Open => SpanEnd::Running,
            history::SpanEnd::Built => SpanEnd::Built,
            history::SpanEnd::Failed => SpanEnd::Failed,
            history::SpanEnd::Retried => SpanEnd::Retried,
            history::SpanEnd::GivenUp => SpanEnd::GivenUp,
        },
    }
}

/// Adds a lane for every worker, with what it runs and ran before the stretch's end already.
fn running(ui: &Ui, look: &Look, sight: &Sight, to: Timestamp, critical: &BTreeSet<DrvPath>, lanes: &mut BTreeMap<WorkerId, Vec<Span>>) {
    ui.parts().farm(|farm| {
        for worker in &look.workers {
            let lane = lanes.entry(worker.worker.clone()).or_default();
            let seen = worker.running.iter().filter(|job| *sight == Sight::All || farm.sees_job(job, sight) == Some(true));
            let open = seen.filter_map(|job| Some((job, farm.job_view(job)?.attempts.pop()?)));
            lane.extend(open.filter(|(_, attempt)| attempt.ended_at.is_none() && attempt.started_at <= to).map(|(job, attempt)| Span {
                attempt: attempt.attempt.0,
                derivation: job.clone(),
                from: attempt.started_at,
                to: None,
                end: SpanEnd::Running,
                is_critical: critical.contains(job),
            }));
        }
    });
}

/// Workers on a page.
const LANES_MAX: usize = 40;
/// Jobs of a critical path that are marked.
const CHAIN_MAX: usize = 2000;
/// The shortest and the longest stretch of time.
const STRETCH_MS_MIN: u64 = 1000;
const STRETCH_MS_MAX: u64 = 31 * 24 * HOUR_MS;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_of_time_is_what_the_address_says_within_bounds() {
        let now = Timestamp(10 * HOUR_MS);
        let asked = |from, to, last| Asked { from, to, last, after: None, build: None };
        for (asked, from, to, is_live) in [
            (asked(None, None, None), 9 * HOUR_MS, now.0, true),
            (asked(None, None, Some(2 * HOUR_MS)), 8 * HOUR_MS, now.0, true),
            (asked(None, None, Some(0)), now.0 - STRETCH_MS_MIN, now.0, true),
            (asked(None, None, Some(u64::MAX)), 0, now.0, true),
            (asked(Some(5), Some(9), None), 5, 9, false),
            (asked(Some(9), Some(5), None), 9 * HOUR_MS, now.0, true),
            (asked(Some(5), None, None), 9 * HOUR_MS, now.0, true),
            (asked(Some(5), Some(u64::MAX), None), 5, 5 + STRETCH_MS_MAX, false),
        ] {
            assert_eq!(stretch(&asked, now), (Timestamp(from), Timestamp(to), is_live));
        }
    }
}
