//! Refusals over HTTP: one shape, the right status, and what to do next.

use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use kiln_api::{Error, ErrorBody, ErrorCode};
use kiln_wire::client::{Refusal, RefusalKind};

use crate::driver::Chain;

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
    pub(crate) hint: &'static str,
}

impl Refused {
    pub(super) fn new(status: StatusCode, code: ErrorCode, message: impl Into<String>, hint: &'static str) -> Self {
        Self { status, code, message: message.into(), hint }
    }

    /// The request breaks a rule.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::Invalid, message, "see /api/v1/openapi.json for what may be asked")
    }

    /// There is no such thing, or it is another tenant's: which of both, nobody is told.
    pub(super) fn absent(what: impl std::fmt::Display) -> Self {
        let hint = "/api/v1/builds and /api/v1/jobs list those that you may see";
        Self::new(StatusCode::NOT_FOUND, ErrorCode::NotFound, format!("there is no {what}"), hint)
    }

    pub(super) fn unauthorised(message: &str) -> Self {
        let hint = "send `Authorization: Bearer TOKEN`; `kiln token create --scope reader` makes one";
        Self::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorised, message, hint)
    }

    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        let hint = "use a token of a scope that allows it: `kiln token create --scope submitter` or `admin` makes one";
        Self::new(StatusCode::FORBIDDEN, ErrorCode::Forbidden, message, hint)
    }

    /// Too many ask at once.
    pub(super) fn busy(what: &str) -> Self {
        let text = format!("too many {what} at once");
        Self::new(StatusCode::TOO_MANY_REQUESTS, ErrorCode::Busy, text, "wait as long as `Retry-After` says")
    }

    /// The farm cannot do it at the moment.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, message, "wait as long as `Retry-After` says")
    }

    /// Something that is read failed.
    pub(super) fn failed(what: &str, error: &(dyn std::error::Error + Send + Sync)) -> Self {
        tracing::warn!(what, error = %Chain(error), "answer a request");
        Self::unavailable(format!("{what}: {}", Chain(error)))
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal.kind {
            RefusalKind::Forbidden => Self::forbidden(refusal.message),
            RefusalKind::Invalid | RefusalKind::Missing | RefusalKind::StaleLease => Self::invalid(refusal.message),
            RefusalKind::NotFound => Self::new(
                StatusCode::NOT_FOUND,
                ErrorCode::NotFound,
                refusal.message,
                "/api/v1/builds and /api/v1/jobs list those that you may see",
            ),
            RefusalKind::Unavailable => Self::unavailable(refusal.message),
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let body = Error { error: ErrorBody { code: self.code, message: self.message, hint: self.hint.to_owned() } };
        let mut answer = (self.status, super::ask::Answer(body)).into_response();
        let headers = answer.headers_mut();
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"kiln\""));
        }
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        debug_assert!(headers.contains_key(CONTENT_TYPE));
        answer
    }
}
