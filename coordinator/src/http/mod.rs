//! HTTP: the binary cache for unmodified Nix clients, health, and metrics.
//!
//! Goals: what Nix asks of a cache, byte for byte; nothing is read but objects that the store itself names. Non-goals: TLS
//! (a reverse proxy's), who may read, checking NAR bytes on their way out: they are served as they lie, and Nix holds them against the
//! signed hash.

pub(crate) mod api;
mod cache;
mod kept;
mod log;
mod metrics;
pub(crate) mod pages;
mod pieces;
mod realisations;
#[cfg(feature = "simulation")]
mod simulated;
mod told;
mod transcode;
pub(crate) mod uploads;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt;
use futures::future::BoxFuture;
use kiln_nix::Keyring;
use kiln_store::Store;
use kiln_wire::DrvPath;
use kiln_wire::limits::{TRANSCODED_MAX, TRANSCODED_OPEN_MAX, TRANSCODED_WAITING_MAX};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

use self::kept::Keep;
pub use log::FinishedLog;
use metrics::Recent;
pub use metrics::{Answers, Fleet, Raft, Snapshot, Traffic, Upstream};
#[cfg(feature = "simulation")]
pub use simulated::Socket;
#[cfg(feature = "simulation")]
use simulated::send_at_once;
#[cfg(not(feature = "simulation"))]
pub use tokio::net::TcpListener as Socket;

/// What requests are answered from.
#[derive(Clone)]
pub struct State {
    store: Store,
    keys: Keyring,
    snapshot: Arc<dyn Fn() -> Snapshot + Send + Sync>,
    /// The last one.
    recent: Arc<Recent<Snapshot>>,
    log: Arc<dyn Fn(DrvPath) -> BoxFuture<'static, FoundLog> + Send + Sync>,
    answers: Arc<Answers>,
    /// Archives that are compressed anew at a time.
    transcoding: Arc<Semaphore>,
    /// Archives that are being sent so: most wait for their clients.
    transcoding_open: Arc<Semaphore>,
    /// Requests that wait for that.
    transcoding_waits: Arc<Semaphore>,
}

/// The newest complete log of a derivation; none if there is none.
pub type FoundLog = Result<Option<FinishedLog>, Box<dyn std::error::Error + Send + Sync>>;

impl State {
    /// Answers from this store, with signatures of these keys. `snapshot` is called once a second at most, however often metrics
    /// are read; `log` finds logs.
    pub fn new(
        store: Store,
        keys: Keyring,
        snapshot: impl Fn() -> Snapshot + Send + Sync + 'static,
        log: impl Fn(DrvPath) -> BoxFuture<'static, FoundLog> + Send + Sync + 'static,
    ) -> Self {
        Self {
            store,
            keys,
            snapshot: Arc::new(snapshot),
            recent: Arc::default(),
            log: Arc::new(log),
            answers: Arc::default(),
            transcoding: Arc::new(Semaphore::new(TRANSCODED_MAX)),
            transcoding_open: Arc::new(Semaphore::new(TRANSCODED_OPEN_MAX)),
            transcoding_waits: Arc::new(Semaphore::new(TRANSCODED_WAITING_MAX)),
        }
    }
}

/// A running HTTP server.
pub struct Http {
    stop: oneshot::Sender<()>,
    server: JoinHandle<std::io::Result<()>>,
}

impl Http {
    /// Serves requests that arrive at `listener`.
    pub fn serve(listener: Socket, state: State) -> Self {
        Self::serve_with(listener, state, Router::new())
    }

    /// Serves further routes beside them.
    pub(crate) fn serve_with(listener: Socket, state: State, more: Router) -> Self {
        let (stop, stopped) = oneshot::channel();
        let server = axum::serve(listener.tap_io(send_at_once), router(state).merge(more)).with_graceful_shutdown(async move {
            // A dropped handle stops the server as a call of `stop` does.
            let _ended = stopped.await;
        });
        Self { stop, server: tokio::spawn(server.into_future()) }
    }

    /// Stops listening and waits a moment for the requests that are being answered; the rest are cut off.
    pub async fn stop(mut self) {
        let _stopped_before = self.stop.send(());
        if tokio::time::timeout(STOP_GRACE, &mut self.server).await.is_err() {
            self.server.abort();
        }
    }
}

/// Has what is written sent without waiting for what the client confirms: an answer comes in pieces, and the last one is small.
#[cfg(not(feature = "simulation"))]
fn send_at_once(connection: &mut tokio::net::TcpStream) {
    if let Err(error) = connection.set_nodelay(true) {
        tracing::debug!(%error, "have answers sent at once");
    }
}

/// How long a stop waits for answers under way. A client that reads slowly must not hold up a restart.
const STOP_GRACE: std::time::Duration = std::time::Duration::from_secs(2);

/// Returns the routes. HEAD is answered as GET is, without the body.
pub fn router(state: State) -> Router {
    Router::new()
        .route("/nix-cache-info", get(cache::info))
        .route("/nar/{file}", get(cache::nar))
        .route("/debuginfo/{file}", get(cache::debuginfo))
        .route("/xz/nix-cache-info", get(cache::info))
        .route("/xz/nar/{file}", get(cache::nar))
        .route("/xz/log/{file}", get(log::log))
        .route("/xz/{file}", get(transcode::described))
        .route("/log/{file}", get(log::log))
        .route("/realisations/{file}", get(realisations::by_hash))
        .route("/build-trace-v2/{derivation}/{file}", get(realisations::by_path))
        .route("/healthz", get(healthz))
        .route("/metrics", get(scrape))
        .route("/{file}", get(cache::described))
        .fallback(|| async { kept::absent() })
        .layer(from_fn_with_state(state.clone(), counted))
        .with_state(state)
}

/// Alive, and able to answer: the snapshot comes from the driver's state.
async fn healthz(axum::extract::State(state): axum::extract::State<State>) -> Response {
    let _answered = state.recent.get(|| (state.snapshot)()).await;
    (live("text/plain"), "ok\n").into_response()
}

async fn scrape(axum::extract::State(state): axum::extract::State<State>) -> Response {
    let snapshot = Snapshot { answers: state.answers.read(), ..state.recent.get(|| (state.snapshot)()).await };
    (live("text/plain; version=0.0.4"), snapshot.render()).into_response()
}

/// Counts what is asked of the cache, and whether it was there.
async fn counted(axum::extract::State(state): axum::extract::State<State>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let answer = next.run(request).await;
    state.answers.count(&path, answer.status());
    answer
}

/// The head of what is true at one moment only.
fn live(content_type: &'static str) -> [(HeaderName, HeaderValue); 2] {
    [(CONTENT_TYPE, HeaderValue::from_static(content_type)), (CACHE_CONTROL, Keep::Never.header())]
}
