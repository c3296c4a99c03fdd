//! Holds what a route needs against who asks, before its handler sees the request.
//!
//! A browser shows a token in a cookie, which it sends whatever page asks: that changes something only if the page is this
//! coordinator's own, by `SameSite=Strict` and by the `Origin` that the browser names. The same holds of `Basic`, which a browser repeats
//! by itself. Source: RFC 6265bis; OWASP on cross-site requests and DNS rebinding.
//!
//! Invariant: a body is there before a turn is taken, so that nobody holds one by sending slowly.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, COOKIE, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use kiln_api::ErrorCode;

use super::routes::{Answers, Route, Verb};
use super::{Api, Refused, ask, forward};
use crate::access::{Access, Caller, Shown, Standing};
use crate::{leading, tokens};

/// Lets a request through to its handler, or to the leader, or refuses it.
pub(super) async fn guard(State((api, route)): State<(Api, &'static Route)>, mut request: Request, next: Next) -> Response {
    let caller = match admit(&api.parts().access, request.headers(), route) {
        Ok(caller) => caller,
        Err(refused) => return refused.into_response(),
    };
    if route.verb == Verb::Post
        && let Err(refused) = collect(&mut request, BODY_PATIENCE).await
    {
        return refused.into_response();
    }
    let Ok(_turn) = api.0.turns.of(route).try_acquire() else { return Refused::busy("requests").into_response() };
    if route.answers != Answers::Any
        && leading::own(api.parts()).is_none()
        && let Some(answer) = forward::forward(&api, route.answers, &caller, &mut request).await
    {
        return answer;
    }
    request.extensions_mut().insert(caller);
    let mut answer = next.run(request).await;
    let headers = answer.headers_mut();
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// Reads the body of a request, which is small.
async fn collect(request: &mut Request, patience: Duration) -> Result<(), Refused> {
    let body = std::mem::take(request.body_mut());
    let (head, _) = std::mem::take(request).into_parts();
    let read = tokio::time::timeout(patience, ask::bytes(Request::from_parts(head.clone(), body))).await;
    let slow = || {
        let text = format!("read the body: it did not come within {patience:?}");
        Refused::new(StatusCode::REQUEST_TIMEOUT, ErrorCode::Invalid, text, "send it together with the request")
    };
    let bytes = read.map_err(|_elapsed| slow())??;
    *request = Request::from_parts(head, Body::from(bytes));
    Ok(())
}

fn admit(access: &Access, headers: &HeaderMap, route: &Route) -> Result<Caller, Refused> {
    let caller = caller(access, headers)?;
    if caller.standing < route.needs {
        return Err(match (&caller.token, caller.standing) {
            (None, Standing::Nobody) if access.is_open() => Refused::unauthorised(
                "without a token this is answered at an IP address, `localhost` and the name in `advertise_http` alone",
            ),
            (None, Standing::Nobody | Standing::Anonymous) => Refused::unauthorised("this wants a token"),
            (None | Some(_), standing) => {
                Refused::forbidden(format!("a token of scope `{}` does not allow this; it wants `{}`", standing.word(), route.needs.word()))
            }
        });
    }
    let is_from_elsewhere = match headers.contains_key(ORIGIN) {
        true => !is_same_origin(headers),
        false => !headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).is_some_and(is_bearer),
    };
    if route.verb == Verb::Post && is_from_elsewhere {
        let text = "what a browser sends by itself changes nothing: the page that asks is not this coordinator's own, or no page asks; \
                    programs send `Authorization: Bearer`";
        return Err(Refused::forbidden(text));
    }
    Ok(caller)
}

/// Returns who asks, by a bearer token, the password of a `Basic` header, or the cookie that [`cookie`] sets. A cookie of a token that is
/// no more is as none: whoever comes with it logs in again. Without a token nobody looks under a name that is not this coordinator's.
///
/// # Errors
/// [`Refused`] if a header shows a token that the farm does not know.
pub(crate) fn caller(access: &Access, headers: &HeaderMap) -> Result<Caller, Refused> {
    let unknown = || Refused::unauthorised("the farm knows no such token");
    if let Some(header) = headers.get(AUTHORIZATION) {
        let header = header.to_str().map_err(|_| unknown())?;
        return access.caller(Some(Shown::Header(header))).ok_or_else(unknown);
    }
    let by_cookie = in_cookie(headers).and_then(|token| access.caller(Some(Shown::Token(token))));
    if by_cookie.is_some() {
        return by_cookie.ok_or_else(unknown);
    }
    let caller = access.caller(None).ok_or_else(unknown)?;
    let is_own = access.is_own(headers.get(HOST).map(|host| host.to_str().unwrap_or_default()));
    Ok(if is_own { caller } else { Caller { standing: Standing::Nobody, ..caller } })
}

/// Returns the token that a request shows, in whichever way.
pub(super) fn shown(headers: &HeaderMap) -> Option<String> {
    match headers.get(AUTHORIZATION) {
        Some(header) => tokens::bare(header.to_str().ok()?),
        None => in_cookie(headers).map(str::to_owned),
    }
}

/// Returns the token in a request's cookies.
fn in_cookie(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE_NAME).map(|(_, token)| token)
}

/// Returns whether the page that asks is of this coordinator, by what the browser says of it.
pub(crate) fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let origin = text(ORIGIN).and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
    origin.is_some() && origin == text(HOST)
}

/// Returns the `Set-Cookie` by which a browser shows a token from here on; none if no header can hold it.
pub(crate) fn cookie(token: &str) -> Option<HeaderValue> {
    let is_plain = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let text = format!("{COOKIE_NAME}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age={COOKIE_SECONDS}");
    HeaderValue::from_str(&text).ok().filter(|_| is_plain)
}

/// Returns the `Set-Cookie` that ends that.
pub(crate) fn no_cookie() -> HeaderValue {
    HeaderValue::from_static("kiln_token=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0")
}

const COOKIE_NAME: &str = "kiln_token";
/// A month: who looks at a farm daily is asked seldom.
const COOKIE_SECONDS: u32 = 30 * 24 * 3600;
/// How long a body of some bytes may take.
const BODY_PATIENCE: Duration = Duration::from_secs(5);

/// Returns whether an `Authorization` header is one that no browser sends by itself.
fn is_bearer(header: &str) -> bool {
    header.split_once(' ').is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let begun = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"{"))]).chain(futures::stream::pending());
        let mut request = Request::new(Body::from_stream(begun));
        let refused = collect(&mut request, Duration::ZERO).await.expect_err("nothing ends it");
        assert_eq!(refused.status, StatusCode::REQUEST_TIMEOUT);
        let mut request = Request::new(Body::from("whole"));
        request.extensions_mut().insert(7_u8);
        collect(&mut request, BODY_PATIENCE).await.expect("it is there");
        assert_eq!(request.extensions().get::<u8>(), Some(&7), "what else the request has stays");
        assert_eq!(ask::bytes(request).await.expect("reads"), "whole");
    }
}
