//! Uploads: what `nix copy --to http://…` sends, for holders of a token.
//!
//! Goals: an unmodified Nix can upload, to whichever coordinator; bytes, time and number of uploads are bounded; what is refused is told
//! why, in words. Non-goals: what makes a path valid (`intake`). A coordinator that does not lead hands the request on to the one that
//! does: clients' credentials are for one host, and Nix cannot send a body twice.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::put;
use bytes::Bytes;
use futures::StreamExt;
use kiln_nix::NarInfo;
use kiln_nix::hash::{Algorithm, Hasher, nix32};
use kiln_store::{Compression, ForeignError, Repacked, Store, StoreError};
use kiln_wire::limits::{NAR_BYTES_MAX, UPSTREAM_NARINFO_BYTES_MAX};

use super::told;
use crate::body::{BodyReader, Bounds, read_blocking};
use crate::driver::Chain;
use crate::intake::{self, IntakeError};
use crate::leading;
use crate::parts::Parts;
use crate::tokens::{self, Scope, Token};

/// What the routes share.
#[derive(Clone)]
pub(super) struct Uploads {
    pub(super) parts: Arc<Parts>,
    /// For what the leader is to do; none if it cannot be made.
    client: Option<reqwest::Client>,
}

/// Returns the routes of uploads.
pub(crate) fn router(parts: Arc<Parts>) -> Router {
    // Coordinators serve each other without TLS, so that no roots are needed.
    let client = reqwest::Client::builder().tls_certs_only([]).no_proxy().build().ok();
    Router::new()
        .route("/nar/{file}", put(archive))
        .route("/log/{file}", put(told::log))
        .route("/debuginfo/{file}", put(ignore))
        .route("/realisations/{file}", put(told::by_hash))
        .route("/build-trace-v2/{derivation}/{file}", put(told::by_path))
        .route("/{file}", put(described))
        .with_state(Uploads { parts, client })
}

/// An answer in words, which Nix shows.
pub(super) fn said(status: StatusCode, text: impl Into<String>) -> Response {
    let mut text: String = text.into();
    text.push('\n');
    (status, text).into_response()
}

/// Returns the token that a request shows, or the answer to one that shows none.
pub(super) fn authorised<'a>(parts: &'a Parts, headers: &HeaderMap) -> Result<&'a Token, Box<Response>> {
    if parts.intake.tokens.is_empty() {
        let text = "this farm takes no uploads: make a token with `kiln token create` and give its hash to the coordinators";
        return Err(Box::new(said(StatusCode::FORBIDDEN, text)));
    }
    let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|text| tokens::shown(&parts.intake.tokens, text));
    shown.ok_or_else(|| {
        let mut answer = said(StatusCode::UNAUTHORIZED, "uploads want a token: as a bearer, or as the password in a `netrc` file");
        answer.headers_mut().insert(WWW_AUTHENTICATE, "Basic realm=\"kiln\"".parse().expect("plain text"));
        Box::new(answer)
    })
}

/// `nar/<hash>.nar[.xz|.zst|.bz2]`.
async fn archive(State(uploads): State<Uploads>, Path(file): Path<String>, request: Request) -> Response {
    let token = match authorised(&uploads.parts, request.headers()) {
        Ok(token) => token.name.clone(),
        Err(refused) => return *refused,
    };
    let Some((hash, compression)) = Compression::of_file(&file).filter(|(hash, _)| hash.len() == SHA256_CHARS) else {
        let text = format!("`{file}` is no name for an archive: want its SHA-256, and `.nar`, `.nar.xz`, `.nar.zst` or `.nar.bz2`");
        return said(StatusCode::UNSUPPORTED_MEDIA_TYPE, text);
    };
    if leading::own(&uploads.parts).is_none() {
        return forward(&uploads, request).await;
    }
    let _turn = uploads.parts.intake.turns.acquire().await.expect("never closed");
    let (store, hash, name) = (uploads.parts.store.clone(), hash.to_owned(), file.clone());
    let work = move |body: BodyReader| read_archive(&store, &name, &hash, compression, body);
    match read_blocking(request.into_body().into_data_stream(), ARCHIVE, work).await {
        Ok(Ok(archive)) => {
            tracing::info!(file, token, nar_hash = %archive.nar_hash(), "an archive was uploaded");
            uploads.parts.intake.stage(file, token, archive);
            StatusCode::CREATED.into_response()
        }
        Ok(Err(error @ ForeignError::Archive { .. })) => said(StatusCode::BAD_REQUEST, Chain(&error).to_string()),
        Ok(Err(error @ ForeignError::Pack { .. })) => said(StatusCode::SERVICE_UNAVAILABLE, Chain(&error).to_string()),
        Err(error) => said(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Reads an archive whose file has this hash.
fn read_archive(store: &Store, name: &str, hash: &str, compression: Compression, body: BodyReader) -> Result<Repacked, ForeignError> {
    let refuse = |err| ForeignError::Archive { name: name.to_owned(), err: kiln_nix::nar::NarError::Read(err) };
    let mut hashing = Hashing { inner: body, hasher: Hasher::new(Algorithm::Sha256) };
    let archive = store.repack(name, &mut hashing, compression, NAR_BYTES_MAX)?;
    // What follows the archive is part of the file that was named.
    io::copy(&mut hashing, &mut io::sink()).map_err(refuse)?;
    let found = nix32(hashing.hasher.finish().digest());
    match found == hash {
        true => Ok(archive),
        false => Err(refuse(io::Error::new(io::ErrorKind::InvalidData, format!("what was sent has SHA-256 {found}")))),
    }
}

struct Hashing<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

/// `<hash part>.narinfo`, which makes a path valid, or `.ls`, which the farm makes itself.
async fn described(State(uploads): State<Uploads>, Path(file): Path<String>, request: Request) -> Response {
    let is_trusted = match authorised(&uploads.parts, request.headers()) {
        Ok(token) => token.scope == Scope::Trusted,
        Err(refused) => return *refused,
    };
    let Some(hash_part) = file.strip_suffix(".narinfo") else {
        return match file.ends_with(".ls") {
            true => said(StatusCode::OK, "the farm lists archives itself"),
            false => said(StatusCode::FORBIDDEN, format!("`{file}` is the farm's own")),
        };
    };
    if leading::own(&uploads.parts).is_none() {
        return forward(&uploads, request).await;
    }
    let text = match small(request.into_body()).await {
        Ok(text) => text,
        Err(refused) => return *refused,
    };
    let narinfo = match NarInfo::parse(&uploads.parts.store_dir, &text) {
        Ok(narinfo) if narinfo.path.hash_part() == hash_part => narinfo,
        Ok(narinfo) => return said(StatusCode::BAD_REQUEST, format!("`{file}` describes `{}`", narinfo.path)),
        Err(error) => return said(StatusCode::BAD_REQUEST, Chain(&error).to_string()),
    };
    let path = narinfo.path.clone();
    match intake::take(&uploads.parts, narinfo, is_trusted).await {
        Ok(()) => {
            tracing::info!(%path, "a path was uploaded");
            StatusCode::CREATED.into_response()
        }
        Err(error) => {
            tracing::warn!(%path, error = %Chain(&error), "an uploaded path is not taken");
            said(status_of(&error), Chain(&error).to_string())
        }
    }
}

fn status_of(error: &IntakeError) -> StatusCode {
    match error {
        IntakeError::NoArchive { .. } | IntakeError::Differs { .. } | IntakeError::Store(StoreError::MissingReference { .. }) => {
            StatusCode::CONFLICT
        }
        IntakeError::Doubted { .. } => StatusCode::FORBIDDEN,
        IntakeError::Store(error) if error.is_peers_fault() => StatusCode::BAD_REQUEST,
        IntakeError::Store(_) | IntakeError::NotLeader => StatusCode::SERVICE_UNAVAILABLE,
        IntakeError::Died(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The farm finds debugging information itself.
async fn ignore(State(uploads): State<Uploads>, headers: HeaderMap) -> Response {
    match authorised(&uploads.parts, &headers) {
        Ok(_) => StatusCode::OK.into_response(),
        Err(refused) => *refused,
    }
}

/// Reads a body that is always small.
pub(super) async fn small(body: Body) -> Result<Bytes, Box<Response>> {
    let mut bytes = Vec::new();
    let mut pieces = body.into_data_stream();
    let reading = async {
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| said(StatusCode::BAD_REQUEST, error.to_string()))?;
            if bytes.len() + piece.len() > UPSTREAM_NARINFO_BYTES_MAX {
                return Err(said(StatusCode::PAYLOAD_TOO_LARGE, format!("it may have {UPSTREAM_NARINFO_BYTES_MAX} bytes at most")));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(())
    };
    match tokio::time::timeout(ARCHIVE.stall, reading).await {
        Ok(Ok(())) => Ok(bytes.into()),
        Ok(Err(refused)) => Err(Box::new(refused)),
        Err(_) => Err(Box::new(said(StatusCode::REQUEST_TIMEOUT, "it was sent too slowly"))),
    }
}

/// Has the leader do it.
pub(super) async fn forward(uploads: &Uploads, request: Request) -> Response {
    let leader = uploads.parts.consensus.leader().filter(|(leader, _)| leader.node != uploads.parts.consensus.node());
    let leader = leader.filter(|_| !request.headers().contains_key(FORWARDED));
    let Some(((_, member), client)) = leader.zip(uploads.client.as_ref()) else {
        return said(StatusCode::SERVICE_UNAVAILABLE, "no coordinator leads at this moment; try again");
    };
    let url = format!("http://{}{}", member.http, request.uri().path());
    let (head, body) = request.into_parts();
    let mut onward = client.request(Method::PUT, url).header(FORWARDED, "1");
    for name in [AUTHORIZATION, CONTENT_LENGTH, CONTENT_ENCODING] {
        if let Some(value) = head.headers.get(&name) {
            onward = onward.header(name, value.clone());
        }
    }
    match onward.body(reqwest::Body::wrap_stream(body.into_data_stream())).send().await {
        Ok(answer) => {
            let status = answer.status();
            (status, Body::from_stream(answer.bytes_stream())).into_response()
        }
        Err(error) => said(StatusCode::BAD_GATEWAY, format!("hand an upload to the leader at {}: {}", member.http, Chain(&error))),
    }
}

/// Set on what another coordinator handed on: it is not handed on again.
const FORWARDED: HeaderName = HeaderName::from_static("x-kiln-forwarded");
/// Characters of a SHA-256 in Nix's base 32.
const SHA256_CHARS: usize = 52;
/// What the sender of an archive may take.
const ARCHIVE: Bounds =
    Bounds { bytes_max: NAR_BYTES_MAX + (1 << 30), whole: Duration::from_secs(6 * 3600), stall: Duration::from_secs(60) };
