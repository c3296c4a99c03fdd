//! The binary cache's files.

use std::ops::Range;

use axum::body::Body;
use axum::extract::{Path, State as Shared};
use axum::http::header::{ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, RANGE};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::TryStreamExt;
use kiln_nix::hash::nix32;
use kiln_store::{KeptListing, Store, StoreError};

use super::State;
use super::kept::{Keep, Tag, absent, answer};
use super::pieces::pieces;
use super::transcode;
use crate::driver::Chain;

/// `nix-cache-info`.
pub(super) async fn info(Shared(state): Shared<State>, headers: HeaderMap) -> Response {
    answer(&headers, Keep::Minutes, "text/x-nix-cache-info", state.store.cache_info())
}

/// `<hash part>.narinfo`, or `<hash part>.ls`: what the path's NAR holds.
pub(super) async fn described(Shared(state): Shared<State>, method: Method, Path(file): Path<String>, headers: HeaderMap) -> Response {
    let answer = match file.rsplit_once('.') {
        Some((hash_part, "narinfo")) => narinfo(&state, hash_part, &headers).await,
        Some((hash_part, "ls")) => listing(&state, hash_part, &method, &headers).await,
        Some(_) | None => Ok(None),
    };
    match answer {
        Ok(Some(answer)) => answer,
        Ok(None) => absent(),
        Err(error) => failed(&file, &error),
    }
}

/// `debuginfo/<build id>`, with or without `.debug`: where the debugging information is.
pub(super) async fn debuginfo(Shared(state): Shared<State>, Path(file): Path<String>, headers: HeaderMap) -> Response {
    match state.store.debuginfo(file.strip_suffix(".debug").unwrap_or(&file)).await {
        Ok(Some(json)) => answer(&headers, Keep::Minutes, "application/json", json),
        Ok(None) => absent(),
        Err(error) => failed(&file, &error),
    }
}

async fn narinfo(state: &State, hash_part: &str, headers: &HeaderMap) -> Result<Option<Response>, StoreError> {
    let found = state.store.narinfo(hash_part, &state.keys).await?;
    Ok(found.map(|text| answer(headers, Keep::Minutes, "text/x-nix-narinfo", text)))
}

async fn listing(state: &State, hash_part: &str, method: &Method, headers: &HeaderMap) -> Result<Option<Response>, StoreError> {
    let Some(KeptListing { nar_hash, json }) = state.store.listing(hash_part).await? else { return Ok(None) };
    let tag = Tag::of_name(&nix32(&nar_hash.0));
    if tag.is_had(headers) {
        return Ok(Some(tag.not_modified(Keep::Minutes)));
    }
    let size_bytes = json.size_bytes();
    let answer = Response::builder()
        .header(CONTENT_TYPE, "application/json")
        .header(CONTENT_LENGTH, size_bytes)
        .header(ETAG, tag.header())
        .header(CACHE_CONTROL, Keep::Minutes.header());
    let body = match *method == Method::HEAD {
        true => Body::empty(),
        false => Body::from_stream(pieces(json.object_key().to_owned(), json.into_bytes(), 0..size_bytes)),
    };
    Ok(Some(answer.body(body).expect("the headers are well-formed")))
}

/// `nar/<NAR hash>.nar.zst`, whole or, for GET, one range of it.
pub(super) async fn nar(Shared(state): Shared<State>, method: Method, Path(file): Path<String>, headers: HeaderMap) -> Response {
    let size_bytes = match state.store.nar_file_size(&file).await {
        Ok(Some(size_bytes)) => size_bytes,
        // Another compression, or a name by which somebody uploaded it.
        Ok(None) => return transcode::archive(&state, &method, &file).await.unwrap_or_else(|error| failed(&file, &error)),
        Err(error) => return failed(&file, &error),
    };
    // The name holds the hash of the bytes; the store knows no other names.
    let tag = Tag::of_name(&file);
    if tag.is_had(&headers) {
        return tag.not_modified(Keep::Day);
    }
    // HTTP defines ranges for GET only: RFC 9110, section 14.2.
    let wanted = headers.get(RANGE).filter(|_| method == Method::GET && tag.allows_range(&headers));
    let wanted = wanted.and_then(|value| value.to_str().ok()).and_then(|text| range(text, size_bytes));
    let mut answer = Response::builder().header(CONTENT_TYPE, "application/x-nix-nar").header(ACCEPT_RANGES, "bytes");
    let span = match wanted {
        None => 0..size_bytes,
        Some(span) if span.is_empty() => {
            let answer = answer.status(StatusCode::RANGE_NOT_SATISFIABLE).header(CONTENT_RANGE, format!("bytes */{size_bytes}"));
            return answer.body(Body::empty()).expect("the headers are well-formed");
        }
        Some(span) => {
            let text = format!("bytes {}-{}/{size_bytes}", span.start, span.end - 1);
            answer = answer.status(StatusCode::PARTIAL_CONTENT).header(CONTENT_RANGE, text);
            span
        }
    };
    answer = answer.header(CONTENT_LENGTH, span.end - span.start).header(ETAG, tag.header()).header(CACHE_CONTROL, Keep::Day.header());
    let body = match method {
        Method::HEAD => Ok(Some(Body::empty())),
        // Hyper asks nothing of a body of no bytes, and no store has a span of none.
        _ if span.is_empty() => Ok(Some(Body::empty())),
        _ => body(&state.store, &file, span).await,
    };
    match body {
        Ok(Some(body)) => answer.body(body).expect("the headers are well-formed"),
        Ok(None) => absent(),
        Err(error) => failed(&file, &error),
    }
}

/// Returns a span of a blob as it comes: from its file, or from the bucket as the bytes arrive.
async fn body(store: &Store, file: &str, span: Range<u64>) -> Result<Option<Body>, StoreError> {
    if !store.is_shared() {
        let counting = store.clone();
        let blob = store.open_nar_file(file).await?;
        return Ok(blob.map(|blob| {
            let key = blob.object_key().to_owned();
            let pieces = pieces(key, blob.into_bytes(), span);
            Body::from_stream(pieces.inspect_ok(move |piece| counting.count_served(piece.len() as u64)))
        }));
    }
    let counting = store.clone();
    let bytes = store.stream_nar_file(file, span).await?;
    Ok(bytes.map(|bytes| Body::from_stream(bytes.inspect_ok(move |piece| counting.count_served(piece.len() as u64)))))
}

/// Reads `bytes=first-last`, `bytes=first-` or `bytes=-count`. Anything else, several ranges included, is as if nothing had been
/// asked, which HTTP allows. An empty span: there is no such byte.
fn range(text: &str, size_bytes: u64) -> Option<Range<u64>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u64>().unwrap_or(u64::MAX));
    match (first, last) {
        ("", "") => None,
        ("", count) => Some(size_bytes.saturating_sub(number(count)?)..size_bytes),
        (first, "") => Some(number(first)?.min(size_bytes)..size_bytes),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            Some(first.min(size_bytes)..last.saturating_add(1).min(size_bytes))
        }
    }
}

pub(super) fn failed(file: &str, error: &StoreError) -> Response {
    tracing::error!(file, error = %Chain(error), "a cache object cannot be served");
    (StatusCode::INTERNAL_SERVER_ERROR, [(CACHE_CONTROL, Keep::Never.header())]).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_as_http_defines_it() {
        let table = [
            ("bytes=0-99", Some(0..100)),
            ("bytes=10-10", Some(10..11)),
            ("bytes=90-", Some(90..100)),
            ("bytes=-10", Some(90..100)),
            ("bytes=-1000", Some(0..100)),
            ("bytes=50-1000", Some(50..100)),
            ("bytes=100-", Some(100..100)),
            ("bytes=99999999999999999999999-", Some(100..100)),
            ("bytes=5-4", None),
            ("bytes=-", None),
            ("bytes=a-b", None),
            ("bytes=0-1,3-4", None),
            ("lines=0-1", None),
        ];
        for (text, expected) in table {
            assert_eq!(range(text, 100), expected, "{text}");
        }
    }
}
