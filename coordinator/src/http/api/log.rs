//! Logs: the bytes as they lie, a part of them, or line by line as they are written.

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use kiln_api::ErrorCode;
use kiln_wire::{AttemptId, DrvPath};
use serde::Deserialize;
use utoipa::IntoParams;

use super::ask::{self, Named, Params};
use super::forward::LAST_EVENT_ID;
use super::log_stream;
use super::{Api, Refused};
use crate::access::Caller;
use crate::driver::Chain;
use crate::kept_logs::{self, KeptLogError};
use crate::logs::LogReader;

/// Which part of which log.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LogPart {
    /// Of which attempt; of the last one that has a log if none is named.
    attempt: Option<u64>,
    /// Bytes to leave out at the beginning, as `Range: bytes=N-` does.
    offset: Option<u64>,
    /// 1: as server-sent events, from what is there until the attempt ends: `line` (LogLine), whose id is where to go on, then `end`
    /// (LogEnd). `Last-Event-ID` goes on without a line lost or told twice, also at another coordinator.
    #[param(minimum = 0, maximum = 1)]
    follow: Option<u8>,
}

/// The log of a job.
///
/// Of a job that has left the farm, what the binary cache serves everybody at `/log`.
#[utoipa::path(
    get,
    path = "/jobs/{derivation}/log",
    tag = "jobs",
    params(ask::OfJob, LogPart),
    responses(
        (status = 200, description = "The bytes; lines as events with `follow`.", content((String = "text/plain"), (String = "text/event-stream"))),
        (status = 206, description = "A part of the bytes.", content_type = "text/plain", body = String)
    )
)]
pub(super) async fn log(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(derivation): Named<DrvPath>,
    Params(part): Params<LogPart>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let parts = api.parts();
    if parts.farm(|farm| farm.sees_job(&derivation, &caller.sight)) == Some(false) {
        return Err(none(&derivation));
    }
    let follows = match part.follow {
        None | Some(0) => false,
        Some(1) => true,
        Some(_) => return Err(Refused::invalid("`follow` is 0 or 1")),
    };
    let resumed = match headers.get(&LAST_EVENT_ID).filter(|_| follows) {
        Some(id) => Some(log_stream::place(id).ok_or_else(|| Refused::invalid("`Last-Event-ID` is none of a log's events"))?),
        None => None,
    };
    let named = resumed.map(|(attempt, _)| attempt).or(part.attempt.map(AttemptId));
    let look = |error: KeptLogError| Refused::failed("look for logs", &error);
    let attempt = match named {
        Some(attempt) => Some(attempt),
        None if follows => kept_logs::current_attempt(parts, &derivation).await.map_err(look)?,
        None => kept_logs::latest_attempt(parts, &derivation).await.map_err(look)?,
    };
    let attempt = attempt.ok_or_else(|| none(&derivation))?;
    if follows {
        let offset_bytes = resumed.map_or(part.offset.unwrap_or(0), |(_, offset)| offset);
        return log_stream::follow(&api, &caller, derivation, attempt, offset_bytes).await;
    }
    let reader = kept_logs::read(parts, &derivation, attempt).await.map_err(|error| absent(&derivation, &error))?;
    whole_or_part(reader, part.offset, &method, &headers)
}

/// Says why there is no log.
pub(super) fn absent(derivation: &DrvPath, error: &KeptLogError) -> Refused {
    match error {
        KeptLogError::Store(store) if store.is_passing() => Refused::failed("read log", error),
        KeptLogError::Elsewhere => Refused::unavailable(error.to_string()),
        KeptLogError::Store(_) | KeptLogError::Own(_) => {
            tracing::debug!(job = %derivation, error = %Chain(error), "no log");
            none(derivation)
        }
    }
}

fn none(derivation: &DrvPath) -> Refused {
    Refused::absent(format_args!("log of `{derivation}`: no attempt of it has written one that is here"))
}

fn whole_or_part(mut reader: LogReader, offset: Option<u64>, method: &Method, headers: &HeaderMap) -> Result<Response, Refused> {
    let failed = |error: std::io::Error| Refused::failed("read log", &error);
    let size_bytes = reader.size_bytes().map_err(failed)?;
    let range = headers.get(RANGE).and_then(|value| value.to_str().ok()).and_then(|text| span(text, size_bytes));
    let span = match (range, offset) {
        (Some(span), _) => Some(span),
        (None, Some(offset)) => Some(if offset <= size_bytes { Ok((offset, size_bytes)) } else { Err(()) }),
        (None, None) => None,
    };
    let (status, (begin, end)) = match span {
        None => (StatusCode::OK, (0, size_bytes)),
        Some(Ok(span)) if offset.is_some() && range_absent(headers) => (StatusCode::OK, span),
        Some(Ok(span)) => (StatusCode::PARTIAL_CONTENT, span),
        Some(Err(())) => return Err(beyond(size_bytes)),
    };
    reader.skip_to(begin).map_err(failed)?;
    let body = match *method == Method::HEAD || begin == end {
        true => Body::empty(),
        false => Body::from_stream(stream::try_unfold((reader, end - begin), |(mut reader, left)| async move {
            if left == 0 {
                return Ok::<_, std::io::Error>(None);
            }
            let mut chunk = reader.next_chunk()?;
            chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            if chunk.is_empty() {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let left = left - chunk.len() as u64;
            Ok(Some((Bytes::from(chunk), (reader, left))))
        })),
    };
    let mut answer = Response::builder().status(status).body(body).expect("a status and a body");
    let head = answer.headers_mut();
    head.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    head.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    head.insert(CONTENT_LENGTH, HeaderValue::from(end - begin));
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {begin}-{}/{size_bytes}", end.saturating_sub(1));
        head.insert(CONTENT_RANGE, HeaderValue::from_str(&range).expect("digits"));
    }
    Ok(answer)
}

/// Refuses what is beyond the end of a log.
pub(super) fn beyond(size_bytes: u64) -> Refused {
    let text = format!("the log has {size_bytes} bytes");
    Refused::new(StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::RangeNotSatisfiable, text, "ask for a part that is there")
}

fn range_absent(headers: &HeaderMap) -> bool {
    !headers.contains_key(RANGE)
}

/// Returns the bytes that one range names, the end not included, or that it names none that are there; none if it is to be left aside.
fn span(text: &str, size_bytes: u64) -> Option<Result<(u64, u64), ()>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| text.parse::<u64>().ok();
    let (begin, end) = match (first, last) {
        ("", last) => (size_bytes.saturating_sub(number(last)?), size_bytes),
        (first, "") => (number(first)?, size_bytes),
        (first, last) => (number(first)?, number(last)?.checked_add(1)?.min(size_bytes)),
    };
    Some(if begin < end && begin < size_bytes { Ok((begin, end)) } else { Err(()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_names_bytes_that_are_there_or_is_refused_or_left_aside() {
        for (text, expected) in [
            ("bytes=0-", Some(Ok((0, 10)))),
            ("bytes=3-", Some(Ok((3, 10)))),
            ("bytes=3-4", Some(Ok((3, 5)))),
            ("bytes=3-99", Some(Ok((3, 10)))),
            ("bytes=-4", Some(Ok((6, 10)))),
            ("bytes=-99", Some(Ok((0, 10)))),
            ("bytes=10-", Some(Err(()))),
            ("bytes=5-4", Some(Err(()))),
            ("bytes=-0", Some(Err(()))),
            ("bytes=0-1,3-4", None),
            ("lines=0-1", None),
            ("bytes=", None),
            ("bytes=a-b", None),
        ] {
            assert_eq!(span(text, 10), expected, "{text}");
        }
    }
}
