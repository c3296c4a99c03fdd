//! The one shape of errors.

use serde::Serialize;
use utoipa::ToSchema;

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Error {
    /// Why.
    pub error: ErrorBody,
}

/// Why a request has no answer: for programs, for people, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ErrorBody {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

/// What kind of error it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request breaks a rule.
    Invalid,
    /// No token was shown, or one that the farm does not know.
    Unauthorised,
    /// The token does not allow it.
    Forbidden,
    /// There is no such thing, or it is another tenant's.
    NotFound,
    /// The address has no such method.
    MethodNotAllowed,
    /// What was sent is too large.
    TooLarge,
    /// The range that was asked for is not there.
    RangeNotSatisfiable,
    /// Too many ask at once: wait for as long as `Retry-After` says.
    Busy,
    /// The farm cannot do it at the moment: wait for as long as `Retry-After` says.
    Unavailable,
}
