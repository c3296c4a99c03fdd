//! Logging in: a token that the farm knows becomes a cookie, which the browser shows to this coordinator alone.

use axum::extract::State;
use axum::http::header::SET_COOKIE;
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::response::Response;
use serde::Deserialize;

use super::{Ui, form, go, params};
use crate::access::{Shown, Standing};
use crate::http::api::guard;

/// Where to go afterwards.
#[derive(Deserialize)]
struct Asked {
    next: Option<String>,
}

/// What the form says.
#[derive(Deserialize)]
struct Entry {
    token: String,
    next: Option<String>,
}

pub(super) async fn show(State(ui): State<Ui>, uri: Uri) -> Response {
    let next = params::<Asked>(&uri).ok().and_then(|asked| asked.next);
    ui.show(StatusCode::OK, &kiln_pages::login::page(None, within(next.as_deref())), None)
}

pub(super) async fn enter(State(ui): State<Ui>, body: String) -> Response {
    let entry: Entry = match form(&body) {
        Ok(entry) => entry,
        Err(none) => return ui.none(&none, None),
    };
    let (token, next) = (entry.token.trim(), within(entry.next.as_deref()));
    let caller = ui.parts().access.caller(Some(Shown::Token(token))).filter(|caller| caller.standing > Standing::Anonymous);
    match caller.and_then(|_| guard::cookie(token)) {
        Some(cookie) => with_cookie(go(next), cookie),
        None => {
            let wrong = "The farm knows no such token, or it is one for uploads.";
            ui.show(StatusCode::UNAUTHORIZED, &kiln_pages::login::page(Some(wrong), next), None)
        }
    }
}

pub(super) async fn leave() -> Response {
    with_cookie(go("/ui/"), guard::no_cookie())
}

fn with_cookie(mut answer: Response, cookie: HeaderValue) -> Response {
    answer.headers_mut().insert(SET_COOKIE, cookie);
    answer
}

/// Returns where to go if that is within the dashboard, else its beginning: no link sends anybody elsewhere through a login.
fn within(next: Option<&str>) -> &str {
    let is_within = |next: &&str| next.starts_with("/ui/") && !next.contains(['\\', '\r', '\n']) && !next.contains("//");
    next.filter(is_within).unwrap_or("/ui/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_leads_to_pages_of_the_dashboard_alone() {
        for (next, to) in [
            (Some("/ui/fleet?after=w1"), "/ui/fleet?after=w1"),
            (None, "/ui/"),
            (Some("https://evil.example/"), "/ui/"),
            (Some("//evil.example/ui/"), "/ui/"),
            (Some("/ui//evil.example"), "/ui/"),
            (Some("/ui/\\evil"), "/ui/"),
            (Some("/ui/x\r\nset-cookie: a=b"), "/ui/"),
            (Some("/metrics"), "/ui/"),
        ] {
            assert_eq!(within(next), to, "{next:?}");
        }
    }
}
