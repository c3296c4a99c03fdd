//! Logs as Nix asks a cache for them (`nix log`): by derivation, the newest one that is complete.

use axum::body::Body;
use axum::extract::{Path, State as Shared};
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use kiln_store::BlobBytes;
use kiln_wire::{AttemptId, DrvPath};

use super::State;
use super::kept::{Keep, Tag, absent};
use super::pieces::pieces;
use crate::driver::Chain;

/// The log of an attempt that has ended.
#[derive(Debug)]
pub struct FinishedLog {
    /// Whose.
    pub attempt: AttemptId,
    /// What its builder wrote.
    pub bytes: BlobBytes,
}

/// `log/<base name of a derivation>`. A later attempt replaces it, so it is asked for again each time.
pub(super) async fn log(Shared(state): Shared<State>, method: Method, Path(file): Path<String>, headers: HeaderMap) -> Response {
    let Ok(derivation) = DrvPath::parse(&file) else { return absent() };
    let found = (state.log)(derivation).await;
    let sized = found.map(|found| found.map(|log| (log.bytes.size_bytes(), log)));
    let (size_bytes, log) = match sized {
        Ok(Some((Ok(size_bytes), log))) => (size_bytes, log),
        Ok(None) => return absent(),
        Ok(Some((Err(error), _))) => return failed(&file, &error),
        Err(error) => return failed(&file, error.as_ref()),
    };
    // What is kept of an attempt may be a part at first, and the whole later.
    let tag = Tag::of_name(&format!("{}-{size_bytes}", log.attempt));
    if tag.is_had(&headers) {
        return tag.not_modified(Keep::Asking);
    }
    let answer = Response::builder()
        .header(CONTENT_TYPE, "text/plain; charset=utf-8")
        // A builder's bytes: no browser may take them for a page.
        .header(X_CONTENT_TYPE_OPTIONS, "nosniff")
        .header(CONTENT_LENGTH, size_bytes)
        .header(ETAG, tag.header())
        .header(CACHE_CONTROL, Keep::Asking.header());
    // Hyper asks nothing of a body of no bytes.
    let body = match method == Method::HEAD || size_bytes == 0 {
        true => Body::empty(),
        false => Body::from_stream(pieces(format!("log of {file}"), log.bytes, 0..size_bytes)),
    };
    answer.body(body).expect("the headers are well-formed")
}

fn failed(file: &str, error: &(dyn std::error::Error + Send + Sync)) -> Response {
    tracing::error!(file, error = %Chain(error), "a log cannot be served");
    (StatusCode::INTERNAL_SERVER_ERROR, [(CACHE_CONTROL, Keep::Never.header())]).into_response()
}
