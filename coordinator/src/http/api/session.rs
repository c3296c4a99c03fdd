//! Browsers: a token is shown once, and after that in a cookie.

use axum::extract::State;
use axum::http::header::SET_COOKIE;
use axum::response::{IntoResponse, Response};
use kiln_api::{Done, Viewer};
use serde::Deserialize;
use utoipa::ToSchema;

use super::ask::{Answer, Body};
use super::{Api, Refused, farm, guard};
use crate::access::{Shown, Standing};

/// A token, as `kiln token create` prints it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    token: String,
}

/// Has a browser show a token in a cookie from here on. Only a page of the coordinator that is asked may.
#[utoipa::path(post, path = "/session", tag = "session", request_body = Login, responses((status = 200, body = Viewer)))]
pub(super) async fn begin(State(api): State<Api>, Body(login): Body<Login>) -> Result<Response, Refused> {
    let caller = api.parts().access.caller(Some(Shown::Token(&login.token)));
    let caller = caller.filter(|caller| caller.standing >= Standing::Reader);
    let (caller, cookie) = caller
        .zip(guard::cookie(&login.token))
        .ok_or_else(|| Refused::unauthorised("the farm knows no such token, or it is for uploads"))?;
    Ok(([(SET_COOKIE, cookie)], Answer::<Viewer>(farm::view(caller))).into_response())
}

/// Ends that.
#[utoipa::path(post, path = "/session/end", tag = "session", responses((status = 200, body = Done)))]
pub(super) async fn end() -> Response {
    ([(SET_COOKIE, guard::no_cookie())], Answer(Done { build: None })).into_response()
}
