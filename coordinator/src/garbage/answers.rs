//! What clients ask about the store as a whole, and hear.

use std::collections::BTreeSet;
use std::sync::Arc;

use kiln_link::{LinkError, Role, Sender};
use kiln_wire::client::{Refusal, Response};
use kiln_wire::limits::PINNED_PATHS_MAX;
use kiln_wire::{Collect, DrvPath, GarbageAnswer, GarbageRequest, StorePath, Timestamp};
use tokio::sync::mpsc;

use super::collection::{CollectError, Marked, collect, mark};
use super::notes::{self, NoteError};
use super::{graph, roots, touch};
use crate::driver::Chain;
use crate::parts::Parts;
use crate::refuse;

/// Answers one request. A collection that it began goes on when nobody listens any more.
pub(crate) async fn answer(parts: &Arc<Parts>, peer: &Role, request: GarbageRequest, sender: &mut Sender) -> Result<(), LinkError> {
    let answered = match request {
        GarbageRequest::Collect(order) => return answer_collect(parts, peer, order, sender).await,
        GarbageRequest::Roots => match roots::find(parts, false).await {
            Ok(kept) => return send_chunks(sender, &kept.named(), GarbageAnswer::Roots).await,
            Err(error) => Err(refuse::unavailable("find what is kept", &error)),
        },
        GarbageRequest::Paths | GarbageRequest::Referrers(_) => match paths(parts, &request).await {
            Ok(paths) => return send_chunks(sender, &paths, GarbageAnswer::Paths).await,
            Err(refusal) => Err(refusal),
        },
        GarbageRequest::Why(path) => why(parts, &path).await.map(GarbageAnswer::Why).map(Response::Garbage),
        GarbageRequest::Pin { name, paths } => pin(parts, peer, &name, paths).await.map(|()| Response::Done),
        GarbageRequest::Unpin { name, paths } => {
            notes::unpin(parts, peer, &name, &paths).await.map(|()| Response::Done).map_err(|error| refused(&error))
        }
        GarbageRequest::Pins => {
            let pins = notes::pins(parts).await.map_err(|error| refused(&error));
            pins.map(|pins| pins.into_iter().map(|pin| (pin.name, pin.paths.into_iter().collect())).collect())
                .map(|pins| Response::Garbage(GarbageAnswer::Pins(pins)))
        }
        GarbageRequest::Hold { holder, paths } => hold(parts, holder, paths).await.map(|()| Response::Done),
    };
    sender.send(&answered.unwrap_or_else(Response::Refused)).await
}

async fn answer_collect(parts: &Arc<Parts>, peer: &Role, order: Collect, sender: &mut Sender) -> Result<(), LinkError> {
    if !order.dry_run && !order.live && !matches!(peer, Role::Admin(_)) {
        let refusal = refuse::forbidden(format!(
            "a certificate of `{peer}` does not allow to delete garbage; `kiln ca issue --role admin/NAME` makes one that does, \
             and anybody may look (--dry-run)"
        ));
        return sender.send(&Response::Refused(refusal)).await;
    }
    let (told, mut paths) = mpsc::channel(PATHS_AHEAD);
    let collecting = tokio::spawn(collect(parts.clone(), order, told));
    while let Some(paths) = paths.recv().await {
        sender.send(&Response::Garbage(GarbageAnswer::Paths(paths))).await?;
    }
    let answer = match collecting.await {
        Ok(Ok(collected)) => Response::Garbage(GarbageAnswer::Collected(collected)),
        Ok(Err(error @ (CollectError::Version(_) | CollectError::Unready(_)))) => {
            Response::Refused(refuse::invalid(Chain(&error).to_string()))
        }
        Ok(Err(error)) => Response::Refused(refuse::unavailable("collect garbage", &error)),
        Err(error) => Response::Refused(refuse::unavailable("collect garbage", &error)),
    };
    sender.send(&answer).await
}

/// Lists the store, or what refers to a path in it.
async fn paths(parts: &Arc<Parts>, request: &GarbageRequest) -> Result<Vec<StorePath>, Refusal> {
    let _turn = parts.garbage.graphs.acquire().await;
    let listed = graph::inventory(parts, parts.garbage.settings.rules(), Timestamp(0)).await;
    let graph = listed.map_err(|error| refuse::unavailable("list the store", &error))?.graph;
    match request {
        GarbageRequest::Referrers(path) => {
            let found: Vec<StorePath> = graph.referrers(path).into_iter().collect();
            touch(parts, &found).await;
            Ok(found)
        }
        // Whoever lists everything relies on nothing of it: all of it touched, there would be no garbage.
        _ => Ok(graph.paths().cloned().collect()),
    }
}

async fn why(parts: &Arc<Parts>, path: &StorePath) -> Result<Option<(String, Vec<StorePath>)>, Refusal> {
    let _turn = parts.garbage.graphs.acquire().await;
    // As if it were collected without grace: who asks wants to know what keeps it for longer.
    let order = Collect { dry_run: true, grace_seconds: Some(0), ..Collect::default() };
    let marked = mark(parts, &order, &BTreeSet::new(), false).await;
    let Marked { inventory, roots, marks, .. } = marked.map_err(|error| refuse::unavailable("find what is kept", &error))?;
    Ok(inventory.graph.why(&marks, &roots, path))
}

async fn pin(parts: &Parts, peer: &Role, name: &str, paths: Vec<StorePath>) -> Result<(), Refusal> {
    touch(parts, &paths).await;
    let (derivations, others): (Vec<_>, Vec<_>) = paths.iter().cloned().partition(|path| path.name().ends_with(".drv"));
    let derivations: Vec<DrvPath> = derivations.into_iter().filter_map(|path| DrvPath::from_path(path).ok()).collect();
    let failed = |error| refuse::unavailable("pin", &error);
    let mut missing = parts.store.missing(&others).await.map_err(failed)?;
    // What is committed is published soon.
    missing.retain(|path| parts.farm(|farm| farm.path_info(path).is_none()));
    let lacking = parts.store.missing_derivations(&derivations).await.map_err(failed)?;
    missing.extend(lacking.into_iter().map(|path| path.as_path().clone()));
    if !missing.is_empty() {
        return Err(refuse::missing("pin", "paths", missing));
    }
    notes::pin(parts, peer, name, paths).await.map_err(|error| refused(&error))
}

async fn hold(parts: &Parts, holder: u64, paths: Vec<StorePath>) -> Result<(), Refusal> {
    if paths.len() > PINNED_PATHS_MAX {
        return Err(refuse::invalid(format!("hold: {} paths are over the limit of {PINNED_PATHS_MAX}", paths.len())));
    }
    touch(parts, &paths).await;
    notes::hold(parts, holder, paths.into_iter().collect()).await.map_err(|error| refused(&error))
}

fn refused(error: &NoteError) -> Refusal {
    match error {
        NoteError::Store(_) => refuse::unavailable("note down what is kept", error),
        NoteError::Others { .. } => refuse::forbidden(error.to_string()),
        NoteError::Damaged { .. } | NoteError::TooMany { .. } | NoteError::Name { .. } => refuse::invalid(Chain(error).to_string()),
    }
}

async fn send_chunks<T: Clone>(sender: &mut Sender, items: &[T], answer: impl Fn(Vec<T>) -> GarbageAnswer) -> Result<(), LinkError> {
    for chunk in items.chunks(ITEMS_PER_FRAME) {
        sender.send(&Response::Garbage(answer(chunk.to_vec()))).await?;
    }
    Ok(())
}

/// Messages of a collection that wait for their listener.
const PATHS_AHEAD: usize = 4;
/// Paths in one frame.
const ITEMS_PER_FRAME: usize = 4096;
