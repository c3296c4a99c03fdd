//! Refusals in words: each names the operation, the subject, and what to do next.

use kiln_wire::StorePath;
use kiln_wire::client::{Refusal, RefusalKind};

use crate::driver::Chain;

/// The request breaks a rule or a limit.
pub(crate) fn invalid(message: impl Into<String>) -> Refusal {
    refusal(RefusalKind::Invalid, message)
}

/// There is no such thing.
pub(crate) fn not_found(message: impl Into<String>) -> Refusal {
    refusal(RefusalKind::NotFound, message)
}

/// The peer's certificate does not allow it.
pub(crate) fn forbidden(message: impl Into<String>) -> Refusal {
    refusal(RefusalKind::Forbidden, message)
}

/// The lease that the request names is not live.
pub(crate) fn stale_lease(message: impl Into<String>) -> Refusal {
    refusal(RefusalKind::StaleLease, message)
}

/// The farm cannot do it at the moment.
pub(crate) fn unavailable(operation: &str, error: &(dyn std::error::Error + Send + Sync)) -> Refusal {
    refusal(RefusalKind::Unavailable, format!("{operation}: {}; try again", Chain(error)))
}

/// Paths are missing.
pub(crate) fn missing(operation: &str, what: &str, mut paths: Vec<StorePath>) -> Refusal {
    let shown: Vec<&str> = paths.iter().take(SHOWN_MAX).map(StorePath::as_str).collect();
    let more = if paths.len() > SHOWN_MAX { format!(" and {} more", paths.len() - SHOWN_MAX) } else { String::new() };
    let message = format!("{operation}: the farm lacks {} {what}: {}{more}; upload them first", paths.len(), shown.join(", "));
    paths.truncate(LISTED_MAX);
    Refusal { kind: RefusalKind::Missing, message, paths }
}

fn refusal(kind: RefusalKind, message: impl Into<String>) -> Refusal {
    Refusal { kind, message: message.into(), paths: Vec::new() }
}

/// Paths that a message spells out; a person reads no more.
const SHOWN_MAX: usize = 10;
/// Paths that a refusal lists for programs.
const LISTED_MAX: usize = 4096;
