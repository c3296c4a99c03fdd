//! Uploads that make no path valid: realisations (`nix copy --to http://…` of content-addressed paths) and logs (`nix store copy-log --to`).
//!
//! A realisation is signed, or comes with a token of scope `trusted`. Nobody can tell who made a log, so it takes such a token, and the
//! logs of the farm's own attempts go before it. Source: ADR 0034.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_ENCODING;
use axum::response::{IntoResponse, Response};
use kiln_nix::realisation::{DerivedOutput, Told};
use kiln_wire::limits::LOG_BYTES_MAX;
use kiln_wire::{DrvPath, OutputName};

use super::uploads::{Uploads, authorised, forward, said, small};
use crate::body::{Bounds, read_blocking};
use crate::driver::Chain;
use crate::garbage::touch;
use crate::parts::Parts;
use crate::register::{RegisterError, register};
use crate::tokens::Scope;
use crate::{kept_logs, leading};

/// `realisations/sha256:<hash>!<output>.doi`.
pub(super) async fn by_hash(State(uploads): State<Uploads>, Path(file): Path<String>, request: Request) -> Response {
    let of = file.strip_suffix(".doi").and_then(|id| DerivedOutput::parse_by_hash(id).ok());
    realisation(&uploads, of, request).await
}

/// `build-trace-v2/<derivation>/<output>.doi`.
pub(super) async fn by_path(
    State(uploads): State<Uploads>,
    Path((derivation, file)): Path<(String, String)>,
    request: Request,
) -> Response {
    let output = file.strip_suffix(".doi").and_then(|output| OutputName::parse(output).ok());
    let of = DrvPath::parse(&derivation).ok().zip(output).map(|(derivation, output)| DerivedOutput::ByPath { derivation, output });
    realisation(&uploads, of, request).await
}

async fn realisation(uploads: &Uploads, of: Option<DerivedOutput>, request: Request) -> Response {
    let is_trusted = match authorised(&uploads.parts, request.headers()) {
        Ok(token) => token.scope == Scope::Trusted,
        Err(refused) => return *refused,
    };
    let Some(of) = of else { return said(StatusCode::BAD_REQUEST, "that is no name of a realisation") };
    if leading::own(&uploads.parts).is_none() {
        return forward(uploads, request).await;
    }
    let text = match small(request.into_body()).await {
        Ok(text) => text,
        Err(refused) => return *refused,
    };
    let told = match Told::parse(of, &text) {
        Ok(told) => told,
        Err(error) => return said(StatusCode::BAD_REQUEST, error.to_string()),
    };
    match register(&uploads.parts, told, is_trusted).await {
        Ok(()) => StatusCode::CREATED.into_response(),
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "a realisation is not taken");
            said(status_of(&error), Chain(&error).to_string())
        }
    }
}

fn status_of(error: &RegisterError) -> StatusCode {
    match error {
        RegisterError::Unsigned { .. } => StatusCode::FORBIDDEN,
        RegisterError::Absent { .. } | RegisterError::Differs { .. } => StatusCode::CONFLICT,
        RegisterError::NotLeader(_) | RegisterError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// `log/<derivation>`.
pub(super) async fn log(State(uploads): State<Uploads>, Path(file): Path<String>, request: Request) -> Response {
    match authorised(&uploads.parts, request.headers()) {
        Ok(token) if token.scope == Scope::Trusted => {}
        Ok(_) => return said(StatusCode::FORBIDDEN, "nobody can tell who made a log: it takes a token of scope `trusted`"),
        Err(refused) => return *refused,
    }
    if request.headers().get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return said(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "send logs as they are (`log-compression` of the store's URL): the farm compresses them itself",
        );
    }
    let Ok(derivation) = DrvPath::parse(&file) else { return said(StatusCode::BAD_REQUEST, format!("`{file}` is no derivation")) };
    if leading::own(&uploads.parts).is_none() {
        return forward(&uploads, request).await;
    }
    let parts = &uploads.parts;
    // A log is deleted with its derivation; of one that is not here nobody would delete it.
    touch(parts, [derivation.as_path()]).await;
    match parts.store.missing_derivations(std::slice::from_ref(&derivation)).await {
        Ok(missing) if missing.is_empty() => {}
        Ok(_) => {
            return said(StatusCode::CONFLICT, format!("the farm does not have the derivation `{derivation}`; submit or copy that first"));
        }
        Err(error) => return said(StatusCode::SERVICE_UNAVAILABLE, Chain(&error).to_string()),
    }
    keep(parts, derivation, request).await
}

async fn keep(parts: &Arc<Parts>, derivation: DrvPath, request: Request) -> Response {
    let _turn = parts.intake.turns.acquire().await.expect("never closed");
    let (logs, of) = (parts.logs.clone(), derivation.clone());
    let received = read_blocking(request.into_body().into_data_stream(), LOG, move |body| logs.put(&of, kept_logs::BROUGHT, body)).await;
    match received {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return said(StatusCode::BAD_REQUEST, Chain(&error).to_string()),
        Err(error) => return said(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
    match kept_logs::keep_brought(parts, &derivation).await {
        Ok(()) => {
            tracing::info!(job = %derivation, "a log was uploaded");
            StatusCode::CREATED.into_response()
        }
        Err(error) => said(StatusCode::SERVICE_UNAVAILABLE, Chain(&error).to_string()),
    }
}

/// What the sender of a log may take.
const LOG: Bounds = Bounds { bytes_max: LOG_BYTES_MAX, whole: Duration::from_secs(600), stall: Duration::from_secs(60) };
