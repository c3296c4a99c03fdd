//! The fleet, and what an administrator changes of it.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use kiln_core::Sight;
use kiln_pages::Viewer;
use kiln_pages::fleet::{Fleet, WorkerLine, page};
use kiln_wire::client::WorkerView;
use kiln_wire::worker::Lacking;
use kiln_wire::{Standing, WorkerId};
use serde::Deserialize;

use super::look::{Look, is_ill, is_kept_from_work};
use super::{Asker, NoPage, Ui, busy, form, go, is_admin, params};
use crate::drain;

/// Which page of it.
#[derive(Deserialize)]
struct Asked {
    after: Option<String>,
}

/// What a form says.
#[derive(Deserialize)]
struct Change {
    worker: String,
    drain: String,
}

pub(super) async fn show(State(ui): State<Ui>, headers: HeaderMap, uri: Uri) -> Response {
    ui.answer(&headers, &uri, async |asker| {
        let asked: Asked = params(&uri)?;
        // Who does not lead drains nobody: the page says who leads.
        let may_drain = is_admin(&asker.caller) && ui.parts().consensus.leads().is_some();
        let viewer = Viewer { is_admin: may_drain, ..Viewer::default() };
        Ok(page(&model(&ui, asker, asked.after.as_deref()).await, &viewer))
    })
    .await
}

async fn model(ui: &Ui, asker: &Asker, after: Option<&str>) -> Fleet {
    let look = ui.look().await;
    let mut workers: Vec<&WorkerView> = look.workers.iter().collect();
    workers.sort_by_key(|worker| (urgency(&look, worker), &worker.worker));
    let begin = after.and_then(|after| workers.iter().position(|worker| worker.worker.as_str() == after)).map_or(0, |at| at + 1);
    let rest = workers.get(begin..).unwrap_or_default();
    let shown = rest.iter().take(WORKERS_MAX);
    let next = (rest.len() > WORKERS_MAX).then(|| rest[WORKERS_MAX - 1].worker.clone());
    let lines = shown.map(|worker| line(ui, &look, worker, &asker.caller.sight)).collect();
    Fleet { now: look.now, sum: look.fleet(), workers: lines, next }
}

/// Returns where a worker stands in the list: those first that somebody should look at.
fn urgency(look: &Look, worker: &WorkerView) -> u8 {
    let standing = worker.ailing.as_ref().map_or(Standing::Working, |ailing| ailing.standing);
    if is_ill(standing) {
        0
    } else if !look.is_connected(worker) {
        1
    } else if worker.strain.is_some() {
        2
    } else if is_kept_from_work(worker) || standing != Standing::Working {
        3
    } else {
        4
    }
}

fn line(ui: &Ui, look: &Look, worker: &WorkerView, sight: &Sight) -> WorkerLine {
    let (offer, ailing) = (&worker.offer, worker.ailing.as_ref());
    let mut running = worker.running.clone();
    if *sight != Sight::All {
        ui.parts().farm(|farm| running.retain(|job| farm.sees_job(job, sight) == Some(true)));
    }
    WorkerLine {
        worker: worker.worker.clone(),
        is_connected: look.is_connected(worker),
        systems: offer.systems.iter().cloned().collect(),
        features: offer.features.iter().cloned().collect(),
        capacity: offer.capacity,
        used: worker.used,
        slots: offer.slots,
        running,
        strain: worker.strain.as_ref().map(|strain| (lacks(strain.lacks), strain.message.clone())),
        standing: ailing.map_or(Standing::Working, |ailing| ailing.standing),
        is_drained: ailing.is_some_and(|ailing| ailing.drained),
        failures: ailing.map_or(0, |ailing| ailing.failures),
        // What a builder of another tenant said may be in it.
        message: ailing.filter(|_| *sight == Sight::All).map(|ailing| ailing.message.clone()).unwrap_or_default(),
        guarantees: offer.guarantees.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        speed_per_mille: offer.speed_per_mille,
    }
}

fn lacks(what: Lacking) -> &'static str {
    match what {
        Lacking::Disk => "disk",
        Lacking::Memory => "memory",
        Lacking::Cpu => "processor time",
        Lacking::Io => "disk throughput",
    }
}

/// Drains a worker, or gives it jobs again, if an administrator says so on a page of this coordinator.
pub(super) async fn drain(State(ui): State<Ui>, headers: HeaderMap, uri: Uri, body: String) -> Response {
    match change(&ui, &headers, &uri, &body).await {
        Ok(worker) => go(&format!("/ui/fleet#w-{worker}")).into_response(),
        Err(none) => {
            let asker = ui.asker(&headers, &uri).ok();
            ui.none(&none, asker.as_ref())
        }
    }
}

async fn change(ui: &Ui, headers: &HeaderMap, uri: &Uri, body: &str) -> Result<WorkerId, NoPage> {
    let refuse = |status, why: &str| NoPage::Refused(status, "The worker is as it was", why.to_owned());
    let asker = ui.asker(headers, uri)?;
    let _turn = ui.0.api.turn().ok_or_else(busy)?;
    let role = asker.caller.role.as_ref().filter(|_| is_admin(&asker.caller));
    let role =
        role.ok_or_else(|| refuse(StatusCode::FORBIDDEN, "Only an administrator drains workers: log in with a token of the scope admin."))?;
    let Change { worker, drain: wanted } = form(body)?;
    let worker = WorkerId::parse(&worker).map_err(|error| refuse(StatusCode::BAD_REQUEST, &error.to_string()))?;
    let drained = drain::drain(ui.parts(), role, worker.clone(), wanted == "yes").await;
    drained.map_err(|refusal| refuse(StatusCode::CONFLICT, &refusal.message))?;
    ui.forget().await;
    Ok(worker)
}

/// Workers on a page.
const WORKERS_MAX: usize = 100;
