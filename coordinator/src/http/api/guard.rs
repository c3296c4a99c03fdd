//! Holds what a route needs against who asks, before its handler sees the request.
//!
//! A browser shows a token in a cookie, which it sends whatever page asks: that changes something only if the page is this
//! coordinator's own, by `SameSite=Strict` and by the `Origin` that the browser names. Source: RFC 6265bis; OWASP on cross-site requests.

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, COOKIE, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::routes::{Answers, Route, Verb};
use super::{Api, Refused, forward};
use crate::access::{Access, Caller, Shown, Standing};
use crate::leading;

/// Lets a request through to its handler, or to the leader, or refuses it.
pub(super) async fn guard(State((api, route)): State<(Api, &'static Route)>, mut request: Request, next: Next) -> Response {
    let caller = match admit(&api.parts().access, request.headers(), route) {
        Ok(caller) => caller,
        Err(refused) => return refused.into_response(),
    };
    let Ok(_turn) = api.0.turns.clone().try_acquire_owned() else { return Refused::busy("requests").into_response() };
    if route.answers != Answers::Any
        && leading::own(api.parts()).is_none()
        && let Some(answer) = forward::forward(&api, route.answers, &mut request).await
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

fn admit(access: &Access, headers: &HeaderMap, route: &Route) -> Result<Caller, Refused> {
    let caller = caller(access, headers)?;
    if caller.standing < route.needs {
        return Err(match (&caller.token, caller.standing) {
            (None, Standing::Nobody | Standing::Anonymous) => Refused::unauthorised("this wants a token"),
            (None | Some(_), standing) => {
                Refused::forbidden(format!("a token of scope `{}` does not allow this; it wants `{}`", standing.word(), route.needs.word()))
            }
        });
    }
    if route.verb == Verb::Post && !headers.contains_key(AUTHORIZATION) && !is_same_origin(headers) {
        return Err(Refused::forbidden("a cookie alone changes nothing: the page that asks is not this coordinator's own"));
    }
    Ok(caller)
}

/// Returns who asks, by a bearer token, the password of a `Basic` header, or the cookie that [`cookie`] sets. A cookie of a token that is
/// no more is as none: whoever comes with it logs in again.
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
    by_cookie.or_else(|| access.caller(None)).ok_or_else(unknown)
}

/// Returns the token in a request's cookies.
pub(super) fn in_cookie(headers: &HeaderMap) -> Option<&str> {
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
