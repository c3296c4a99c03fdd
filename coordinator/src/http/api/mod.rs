//! The HTTP API: versioned JSON under `/api/v1` of everything that the command line shows, and what it steers (ADR 0047).
//!
//! Goals: any coordinator answers, from replicated state or the archive; what only the leader knows is asked of it on the way. No look at
//! the farm takes long, however large it is: pages are made piece by piece, counts are kept. Non-goals: submitting builds (QUIC), HTML.
//!
//! Where to look: `routes` is the one table of what there is and what it needs, `guard` holds it against who asks, `reads` finds what is
//! shown, the modules by noun are the handlers, `document` describes them.

mod ask;
mod builds;
mod document;
mod ended;
mod events;
mod explained;
mod farm;
pub(crate) mod forward;
pub(crate) mod guard;
mod jobs;
mod log;
mod log_stream;
pub(crate) mod reads;
mod refused;
mod routes;
mod session;
mod steer;
mod streamed;
#[cfg(test)]
mod tests;
mod turns;
mod workers;

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use kiln_api::ErrorCode;
use kiln_core::Reasons;
use kiln_wire::limits::API_BODY_BYTES_MAX;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use self::ended::Ended;
use self::explained::Explained;
pub(crate) use self::refused::Refused;
use self::routes::ROUTES;
use self::turns::{Streams, Turns};
use crate::parts::Parts;

/// What the handlers share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Api(Arc<Shared>);

struct Shared {
    parts: Arc<Parts>,
    /// For what the leader is to do; none if it cannot be made.
    client: Option<reqwest::Client>,
    /// Why ready jobs wait, as of a moment ago.
    reasons: Mutex<Option<(Instant, Arc<Reasons>)>>,
    ended: Ended,
    /// Requests that are answered.
    turns: Turns,
    /// Streams that are open.
    streams: Streams,
    explained: Explained,
}

impl Api {
    pub(crate) fn new(parts: Arc<Parts>) -> Self {
        Self(Arc::new(Shared {
            parts,
            client: forward::client(),
            reasons: Mutex::default(),
            ended: Ended::default(),
            turns: Turns::default(),
            streams: Streams::default(),
            explained: Explained::default(),
        }))
    }

    pub(crate) fn parts(&self) -> &Arc<Parts> {
        &self.0.parts
    }

    /// Has every stream end: the coordinator stops, and nobody is to wait for it.
    pub(crate) fn end_streams(&self) {
        self.0.streams.end();
    }

    /// Returns leave to answer one more request; none if as many are being answered as may be.
    pub(crate) fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.0.turns.look()
    }
}

/// Returns the routes, below `/api/v1`.
pub(crate) fn router(api: &Api) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let guarded = (route.handler)().route_layer(from_fn_with_state((api.clone(), route), guard::guard));
        router = router.route(route.path, guarded);
    }
    let wrong_method = || async {
        let text = "this address has no such method; the `Allow` header lists those that it has";
        Refused::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::MethodNotAllowed, text, "see /api/v1/openapi.json")
    };
    let router = router.method_not_allowed_fallback(wrong_method).fallback(|| async {
        Refused::new(StatusCode::NOT_FOUND, ErrorCode::NotFound, "there is nothing at this address", "see /api/v1/openapi.json")
    });
    Router::new().nest("/api/v1", router.layer(DefaultBodyLimit::max(API_BODY_BYTES_MAX)).with_state(api.clone()))
}
