//! Workers.

use axum::Extension;
use axum::extract::State;
use kiln_api::{Worker, Workers};
use kiln_wire::WorkerId;
use serde::Deserialize;
use utoipa::IntoParams;

use super::ask::{self, Answer, Named, Params};
use super::{Api, Refused};
use crate::access::Caller;

/// Which workers.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WorkersPage {
    /// What `next` said on the page before.
    #[param(max_length = 64)]
    cursor: Option<String>,
    /// Workers on the page.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
}

/// The registered workers, by name.
#[utoipa::path(get, path = "/workers", tag = "workers", params(WorkersPage), responses((status = 200, body = Workers)))]
pub(super) async fn list(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Params(asked): Params<WorkersPage>,
) -> Result<Answer<Workers>, Refused> {
    let limit = ask::limit(asked.limit, WORKERS_USUAL, WORKERS_USUAL)?;
    ask::search(&[("cursor", &asked.cursor, NAME_CHARS)])?;
    let mut workers = api.workers(&caller.sight);
    if let Some(after) = &asked.cursor {
        workers.retain(|worker| worker.worker > *after);
    }
    let is_whole = workers.len() <= limit;
    workers.truncate(limit);
    let next = workers.last().filter(|_| !is_whole).map(|worker| worker.worker.clone());
    Ok(Answer(Workers { workers, next }))
}

/// One worker.
#[utoipa::path(
    get,
    path = "/workers/{worker}",
    tag = "workers",
    params(ask::OfWorker),
    responses((status = 200, body = Worker))
)]
pub(super) async fn one(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(worker): Named<WorkerId>,
) -> Result<Answer<Worker>, Refused> {
    let found = api.workers(&caller.sight).into_iter().find(|found| found.worker == worker.as_str());
    found.map(Answer).ok_or_else(|| Refused::absent(format_args!("worker `{worker}`; /api/v1/workers lists them")))
}

/// Workers on a page: all of most farms.
const WORKERS_USUAL: usize = 1000;
/// Characters of a worker's name.
const NAME_CHARS: usize = 64;
