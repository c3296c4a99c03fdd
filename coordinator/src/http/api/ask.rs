//! What is asked, read from addresses and bodies, and answers in JSON. What breaks a rule is refused in the one shape of errors.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use kiln_api::ErrorCode;
use kiln_core::garbage::HashPart;
use kiln_wire::{BuildId, DrvPath, WorkerId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;

use super::Refused;

/// An answer in JSON.
pub(super) struct Answer<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.0).expect("its maps have texts for keys");
        ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
    }
}

/// What follows the `?` of an address.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        let read = Query::<T>::try_from_uri(&parts.uri);
        read.map(|Query(params)| Self(params)).map_err(|error| Refused::invalid(format!("read the address: {}", error.body_text())))
    }
}

/// What an address names.
pub(super) struct Named<T>(pub(super) T);

/// A part of an address that names something.
pub(super) trait Name: Sized {
    /// Reads it; what is wrong with it if it is none.
    fn read(text: &str) -> Result<Self, String>;
}

impl<T: Name, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let named = Path::<String>::from_request_parts(parts, state).await;
        let Path(text) = named.map_err(|error| Refused::invalid(format!("read the address: {}", error.body_text())))?;
        T::read(&text).map(Self).map_err(|error| Refused::invalid(format!("read the address: {error}")))
    }
}

impl Name for BuildId {
    fn read(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("`{}` is no number of a build", text.escape_debug()))
    }
}

impl Name for DrvPath {
    fn read(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|error| format!("{error}; want the base name of a derivation, `HASH-NAME.drv`"))
    }
}

impl Name for WorkerId {
    fn read(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|error| error.to_string())
    }
}

/// The hash part of a store path.
pub(super) struct Hash(pub(super) String);

impl Name for Hash {
    fn read(text: &str) -> Result<Self, String> {
        let is_one = HashPart::parse(text).is_some();
        is_one.then(|| Self(text.to_owned())).ok_or_else(|| "want the 32 characters of a store path's hash part".to_owned())
    }
}

/// A job in an address, for the document.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "described here, and read by `Name`")]
pub(super) struct OfJob {
    /// The derivation's base name, `HASH-NAME.drv`.
    #[param(pattern = "^[0-9a-df-np-sv-z]{32}-[0-9A-Za-z][-+_?=0-9A-Za-z]{0,150}[.]drv$")]
    derivation: String,
}

/// A build in an address, for the document.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "described here, and read by `Name`")]
pub(super) struct OfBuild {
    /// The build's number.
    build: u64,
}

/// A worker in an address, for the document.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "described here, and read by `Name`")]
pub(super) struct OfWorker {
    /// The worker's name.
    #[param(pattern = "^[-+_?=0-9A-Za-z][-+._?=0-9A-Za-z]{0,63}$")]
    worker: String,
}

/// A body in JSON.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refused> {
        let is_json = is_json(request.headers());
        let bytes = bytes(request).await?;
        if !is_json {
            let hint = "send JSON, and `Content-Type: application/json`";
            return Err(Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, ErrorCode::Invalid, "the body is not said to be JSON", hint));
        }
        serde_json::from_slice(&bytes).map(Self).map_err(|error| Refused::invalid(format!("read the body: {error}")))
    }
}

/// Reads a body, as far as the limit that the router sets.
pub(super) async fn bytes(request: Request) -> Result<Bytes, Refused> {
    Bytes::from_request(request, &()).await.map_err(|error| {
        let text = format!("read the body: {}", error.body_text());
        let is_large = error.status() == StatusCode::PAYLOAD_TOO_LARGE;
        Refused::new(error.status(), if is_large { ErrorCode::TooLarge } else { ErrorCode::Invalid }, text, "it is small")
    })
}

fn is_json(headers: &HeaderMap) -> bool {
    let named = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    named.is_some_and(|named| named.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")))
}

/// Checks that what is searched for is not longer than it may be.
pub(super) fn search(texts: &[(&str, &Option<String>, usize)]) -> Result<(), Refused> {
    let is_long = |(_, text, max): &&(&str, &Option<String>, usize)| text.as_ref().is_some_and(|text| text.chars().count() > *max);
    match texts.iter().find(is_long) {
        Some((name, _, max)) => Err(Refused::invalid(format!("`{name}` has {max} characters at most"))),
        None => Ok(()),
    }
}

/// Returns a size of a page: what was asked for, if it is within its bounds, or what is usual.
pub(super) fn limit(asked: Option<u64>, usual: usize, max: usize) -> Result<usize, Refused> {
    let Some(asked) = asked else { return Ok(usual) };
    let asked = usize::try_from(asked).ok().filter(|asked| (1..=max).contains(asked));
    asked.ok_or_else(|| Refused::invalid(format!("`limit` is from 1 to {max}")))
}

/// Returns the number that a cursor stands for.
pub(super) fn cursor(text: Option<&str>) -> Result<Option<u64>, Refused> {
    let read = |text: &str| text.parse().map_err(|_| Refused::invalid("`cursor` is none: use what `next` said on the page before"));
    text.map(read).transpose()
}
