//! The live stream: what happens, as server-sent events.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use kiln_api::ResyncEvent;
use kiln_core::Sight;
use kiln_wire::BuildId;
use kiln_wire::limits::API_STREAM_PIECE_BYTES;
use serde::Deserialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use utoipa::IntoParams;

use super::ask::Params;
use super::forward::LAST_EVENT_ID;
use super::{Api, Refused, streamed};
use crate::access::Caller;
use crate::live::{self, Batch, EventId, Hearing, Told};

/// Which events.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsPage {
    /// Those alone of this build and its jobs, and what concerns everybody.
    build: Option<u64>,
}

/// What happens, as server-sent events: `job` (JobEvent), `build` (BuildEvent), `worker` (WorkerEvent), `leader` (LeaderEvent), `many`
/// (ManyEvent), `resync` (ResyncEvent).
///
/// `Last-Event-ID` goes on where another stream ended, also at another coordinator; if some of it is gone, `resync` says so.
#[utoipa::path(
    get,
    path = "/events",
    tag = "events",
    params(EventsPage),
    responses((status = 200, description = "Events without end.", content_type = "text/event-stream", body = String))
)]
pub(super) async fn events(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Params(asked): Params<EventsPage>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let turn = api.0.streams.open(&caller)?;
    let after = match headers.get(&LAST_EVENT_ID) {
        None => None,
        Some(id) => {
            let read = id.to_str().ok().and_then(EventId::parse);
            Some(read.ok_or_else(|| Refused::invalid("`Last-Event-ID` is none of this stream's events"))?)
        }
    };
    let (sight, build) = (caller.sight, asked.build.map(BuildId));
    let newest = api.parts().consensus.metrics().last_log_index;
    let Hearing { missed, last, batches } = api.parts().live.hear(after, newest);
    let mut first = String::from("retry: 1000\n");
    match (&missed, after) {
        // Who hears nothing for long can go on from here all the same; who missed something goes on from each event of it.
        (Some(missed), after) => first.push_str(&format!("id: {}\n\n", after.filter(|_| !missed.is_empty()).unwrap_or(last))),
        (None, _) => first.push_str(&resync(last, "what happened since then is not remembered here")),
    }
    let missed = missed.unwrap_or_default();
    let hearing = Heard { api, sight, build, batches, last, first: Some(Bytes::from(first)), missed };
    Ok(streamed::events(turn, stream::unfold(hearing, |mut hearing| async move { Some((hearing.next().await?, hearing)) })))
}

struct Heard {
    api: Api,
    sight: Sight,
    build: Option<BuildId>,
    batches: Receiver<Arc<Batch>>,
    /// The last event that was told, or left out because it is not for this one.
    last: EventId,
    first: Option<Bytes>,
    /// What is told before anything else, a piece at a time.
    missed: VecDeque<Arc<Told>>,
}

impl Heard {
    /// Returns the next events, or a sign of life; none when the coordinator stops.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        if let Some(piece) = piece(&mut self.missed, &self.sight, self.build) {
            return Some(piece);
        }
        loop {
            match tokio::time::timeout(LIFE, self.batches.recv()).await {
                Ok(Ok(batch)) if batch.after_gap => {
                    self.last = batch.upto;
                    return Some(Bytes::from(resync(
                        self.last,
                        "this coordinator took a snapshot over, and did not hear what was before it",
                    )));
                }
                Ok(Ok(batch)) => {
                    let bytes = batch.bytes(&self.sight, self.build, self.last);
                    self.last = self.last.max(batch.upto);
                    if !bytes.is_empty() {
                        return Some(bytes);
                    }
                }
                Ok(Err(RecvError::Lagged(_))) => {
                    self.last = self.api.parts().live.last();
                    return Some(Bytes::from(resync(self.last, "events came faster than they were read")));
                }
                Ok(Err(RecvError::Closed)) => return None,
                // An id without data is no event; the browser notes it.
                Err(_) => return Some(Bytes::from(format!(":\nid: {}\n\n", self.last))),
            }
        }
    }
}

/// Writes the next events that somebody is told of, about as many as a stream takes at a time; none at the end.
fn piece(missed: &mut VecDeque<Arc<Told>>, sight: &Sight, build: Option<BuildId>) -> Option<Bytes> {
    let mut text = String::new();
    while text.len() < API_STREAM_PIECE_BYTES
        && let Some(told) = missed.pop_front()
    {
        told.write(sight, build, &mut text);
    }
    (!text.is_empty()).then(|| Bytes::from(text))
}

fn resync(id: EventId, reason: &str) -> String {
    live::text(id, "resync", &ResyncEvent { reason: reason.to_owned() })
}

/// A comment, which says that the stream lives.
pub(super) const HEARTBEAT: &[u8] = b":\n\n";
/// How long nothing may be said.
const LIFE: Duration = Duration::from_secs(15);
