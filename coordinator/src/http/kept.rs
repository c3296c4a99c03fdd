//! Answers that clients, and proxies on the way, may keep: entity tags, `If-None-Match`, `If-Range`, `Cache-Control`.
//!
//! Source: RFC 9110, sections 8.8.3, 13.1.2 and 13.1.5; RFC 9111, section 5.2.

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

/// How long an answer may be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// For a day. Its name follows from its bytes, but nobody checks them on their way out: what was damaged on the farm's disk must
    /// not stay in a proxy after it has been mended there.
    Day,
    /// For five minutes. What a narinfo says of a path is true as long as the path is there; who signed it may change.
    Minutes,
    /// As long as the farm, asked again, says that it is still so.
    Asking,
    /// Not at all.
    Never,
}

impl Keep {
    pub(super) fn header(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Day => "public, max-age=86400",
            Self::Minutes => "public, max-age=300",
            Self::Asking => "public, no-cache",
            Self::Never => "no-store",
        })
    }
}

/// An entity tag, always a strong one: equal tags, equal bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag(HeaderValue);

impl Tag {
    /// Makes the tag of what this name names for ever. The name has letters, digits, dots and dashes.
    pub(super) fn of_name(name: &str) -> Self {
        Self(HeaderValue::from_str(&format!("\"{name}\"")).expect("names of objects are visible ASCII"))
    }

    /// Makes the tag of these bytes.
    pub(super) fn of_bytes(bytes: &[u8]) -> Self {
        Self::of_name(&blake3::hash(bytes).to_hex()[..32])
    }

    pub(super) fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    /// Says whether the client has this already, and wants it only if not.
    pub(super) fn is_had(&self, headers: &HeaderMap) -> bool {
        let listed = headers.get_all(IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
        listed.flat_map(tags).any(|tag| tag == "*" || self.0 == tag)
    }

    /// Says whether a range that is asked for is one of these bytes: a client that goes on with a download names what it has a part of.
    pub(super) fn allows_range(&self, headers: &HeaderMap) -> bool {
        headers.get(IF_RANGE).is_none_or(|tag| *tag == self.0)
    }

    /// Returns the answer to a client that has it.
    pub(super) fn not_modified(&self, keep: Keep) -> Response {
        (StatusCode::NOT_MODIFIED, [(ETAG, self.header()), (CACHE_CONTROL, keep.header())]).into_response()
    }
}

/// Returns the tags of a list, quotes included and `W/` not: for `If-None-Match` a weak tag is as good. Ends at what is none.
fn tags(list: &str) -> impl Iterator<Item = &str> {
    let mut rest = list;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if let Some(after) = rest.strip_prefix('*') {
            let star = &rest[..1];
            rest = after;
            return Some(star);
        }
        let tag = rest.strip_prefix("W/").unwrap_or(rest);
        let length = tag.strip_prefix('"')?.find('"')? + 2;
        rest = &tag[length..];
        Some(&tag[..length])
    })
}

/// Returns a whole small answer, or that the client has it.
pub(super) fn answer(headers: &HeaderMap, keep: Keep, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let body = body.into();
    let tag = Tag::of_bytes(&body);
    if tag.is_had(headers) {
        return tag.not_modified(keep);
    }
    let head = [(CONTENT_TYPE, HeaderValue::from_static(content_type)), (ETAG, tag.header()), (CACHE_CONTROL, keep.header())];
    (head, Body::from(body)).into_response()
}

/// Returns that there is no such thing. It may be there the next moment, so nobody keeps that.
pub(super) fn absent() -> Response {
    (StatusCode::NOT_FOUND, [(CACHE_CONTROL, Keep::Never.header())]).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: axum::http::HeaderName, values: &[&str]) -> HeaderMap {
        let value = |text: &&str| (name.clone(), HeaderValue::from_str(text).expect("a header"));
        values.iter().map(value).collect()
    }

    #[test]
    fn what_a_client_has_is_read_as_http_defines_it() {
        let tag = Tag::of_name("a,b");
        let table: [(&[&str], bool); 12] = [
            (&[], false),
            (&["\"a,b\""], true),
            (&["W/\"a,b\""], true),
            (&["\"x\", W/\"a,b\" ,\"y\""], true),
            (&["\"x\"", "\"a,b\""], true),
            (&["*"], true),
            (&["\"a\",\"b\""], false),
            (&["a,b"], false),
            (&["\"a,b"], false),
            (&["\"x\"\"a,b\""], true),
            (&["\""], false),
            (&["W/, ,"], false),
        ];
        for (values, had) in table {
            assert_eq!(tag.is_had(&headers(IF_NONE_MATCH, values)), had, "{values:?}");
        }
    }

    #[test]
    fn a_range_of_something_else_is_none() {
        let tag = Tag::of_name("a");
        for (value, allowed) in [("\"a\"", true), ("W/\"a\"", false), ("\"b\"", false), ("Mon, 30 Nov 2026 10:00:00 GMT", false)] {
            assert_eq!(tag.allows_range(&headers(IF_RANGE, &[value])), allowed, "{value}");
        }
        assert!(tag.allows_range(&HeaderMap::new()));
    }

    #[test]
    fn equal_bytes_have_equal_tags() {
        assert_eq!(Tag::of_bytes(b"a"), Tag::of_bytes(b"a"));
        assert_ne!(Tag::of_bytes(b"a"), Tag::of_bytes(b"b"));
    }
}
