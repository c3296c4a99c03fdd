//! Hands a request on to the coordinator that leads: a browser's credentials are for one host, so that it is not sent there itself.

use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, RANGE, REFERRER_POLICY,
    RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::Stream;

use super::guard::shown;
use super::routes::Answers;
use super::{Api, Refused};
use crate::access::Caller;
use crate::driver::Chain;

/// Has the leader answer; none if this coordinator is to answer as well as it can.
pub(super) async fn forward(api: &Api, answers: Answers, caller: &Caller, request: &mut Request) -> Option<Response> {
    let nobody = || match answers {
        Answers::Leader => Some(Refused::unavailable("no coordinator leads at this moment").into_response()),
        Answers::LeaderFirst | Answers::Any => None,
    };
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    // Nested routes see what follows their prefix.
    let path = format!("/api/v1{path}");
    let Some((leader, mut onward)) = onward(api, request.method().clone(), &path, caller, request.headers()) else { return nobody() };
    if request.method() == Method::POST {
        let body = std::mem::replace(request.body_mut(), Body::empty());
        // It was read before, by the guard.
        let body = axum::body::to_bytes(body, kiln_wire::limits::API_BODY_BYTES_MAX).await;
        match body {
            Ok(bytes) => onward = onward.body(bytes),
            Err(error) => return Some(Refused::invalid(format!("read the body: {error}")).into_response()),
        }
    }
    match send(onward).await {
        Ok(answer) => Some(answer),
        Err(why) if answers == Answers::Leader => {
            Some(Refused::unavailable(format!("hand the request on to the leader at {leader}: {why}")).into_response())
        }
        Err(why) => {
            tracing::debug!(why, "the leader does not answer: what is known here stands");
            None
        }
    }
}

/// Has the leader make a page; none if this coordinator leads, or is to make it as well as it can.
pub(crate) async fn page(api: &Api, caller: &Caller, path: &str, headers: &HeaderMap) -> Option<Response> {
    let (_, onward) = onward(api, Method::GET, path, caller, headers)?;
    match send(onward).await {
        Ok(answer) => Some(answer),
        Err(why) => {
            tracing::debug!(why, "the leader does not answer: the page is made here");
            None
        }
    }
}

/// Returns a request of the leader for somebody, and the leader's address; none if none is known but this coordinator.
fn onward(api: &Api, method: Method, path: &str, caller: &Caller, headers: &HeaderMap) -> Option<(String, reqwest::RequestBuilder)> {
    let consensus = &api.parts().consensus;
    let (_, member) = consensus.leader().filter(|(leader, _)| leader.node != consensus.node())?;
    let client = api.0.client.as_ref().filter(|_| !headers.contains_key(FORWARDED))?;
    let mut onward = client.request(method, format!("http://{}{path}", member.http)).header(FORWARDED, "1");
    // What a cookie may do was looked at here: the leader has another name. What is no token of this farm goes nowhere.
    if let Some(token) = caller.token.as_ref().and_then(|_| shown(headers)) {
        onward = onward.bearer_auth(token);
    }
    for name in [CONTENT_TYPE, RANGE, LAST_EVENT_ID] {
        if let Some(value) = headers.get(&name) {
            onward = onward.header(name, value.clone());
        }
    }
    Some((member.http, onward))
}

async fn send(onward: reqwest::RequestBuilder) -> Result<Response, String> {
    match tokio::time::timeout(HEAD_PATIENCE, onward.send()).await {
        Ok(Ok(answer)) => Ok(copy(answer)),
        Ok(Err(error)) => Err(Chain(&error).to_string()),
        Err(_elapsed) => Err(format!("no answer within {HEAD_PATIENCE:?}; what was asked may be done all the same")),
    }
}

/// Returns what asks leaders. A leader sends nobody elsewhere, least of all with a token; one that is cut off is not waited for.
pub(super) fn client() -> Option<reqwest::Client> {
    // Coordinators serve each other without TLS, so that no roots are needed.
    let client = reqwest::Client::builder().tls_certs_only([]).no_proxy().connect_timeout(CONNECT_PATIENCE);
    client.redirect(reqwest::redirect::Policy::none()).build().ok()
}

fn copy(answer: reqwest::Response) -> Response {
    let status = answer.status();
    let kept = [
        CONTENT_TYPE,
        CACHE_CONTROL,
        CONTENT_LENGTH,
        CONTENT_RANGE,
        ACCEPT_RANGES,
        RETRY_AFTER,
        WWW_AUTHENTICATE,
        X_CONTENT_TYPE_OPTIONS,
        CONTENT_SECURITY_POLICY,
        REFERRER_POLICY,
        NOW,
    ];
    let headers: Vec<(HeaderName, HeaderValue)> =
        kept.into_iter().filter_map(|name| Some((name.clone(), answer.headers().get(&name)?.clone()))).collect();
    let pieces: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>> = Box::pin(answer.bytes_stream());
    let mut copied = (status, Body::from_stream(pieces)).into_response();
    copied.headers_mut().extend(headers);
    copied
}

/// How long a connection to the leader may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);
/// How long the leader may think before it begins to answer.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);
/// Set on what another coordinator handed on: it is not handed on again.
const FORWARDED: HeaderName = HeaderName::from_static("x-kiln-forwarded");
/// The last event that a browser has seen of a stream.
pub(super) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// The moment at which a page is true, for the script that puts it in.
pub(crate) const NOW: HeaderName = HeaderName::from_static("x-kiln-now");
