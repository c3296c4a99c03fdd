//! The dashboard: pages for people under `/ui/`, made by `kiln-pages` from what this coordinator knows.
//!
//! Goals: a page costs a bounded look at the farm, however many people look; what walks over all jobs is done once a second at most, for
//! all of them ([`look`]). Who may see and do what is `access`'s; a cookie changes something only for pages of this coordinator. The
//! cache's addresses are left alone. Non-goals: HTML (`kiln-pages`), JSON (`http::api`), decisions about builds (`kiln-core`).

mod build;
mod cluster;
mod failures;
mod fleet;
mod job;
mod log;
mod login;
mod look;
mod overview;
#[cfg(test)]
mod tests;
mod timeline;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use kiln_pages::{Document, Shell, Viewer, assets, words};
use kiln_wire::limits::API_BODY_BYTES_MAX;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, Semaphore};

use self::log::KnownLogs;
use self::look::Seen;
use super::api::forward::NOW;
use super::api::{Api, Refused, guard};
use super::kept::Keep;
use crate::access::{Caller, Standing};
use crate::parts::Parts;

/// What the pages share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Ui(Arc<Shared>);

struct Shared {
    parts: Arc<Parts>,
    api: Api,
    seen: Mutex<Option<Seen>>,
    /// What is known of logs that were looked at.
    logs: KnownLogs,
    /// Logs that are read at a time: one may have 64 MiB.
    reading: Semaphore,
}

/// Why there is no page.
enum NoPage {
    /// Who asks has to say who they are first.
    LogIn { next: String, wrong: bool },
    /// There is no such thing, in words.
    Absent(String),
    /// It cannot be done: what, and why not.
    Refused(StatusCode, &'static str, String),
}

impl From<Refused> for NoPage {
    fn from(refused: Refused) -> Self {
        match refused.status {
            StatusCode::NOT_FOUND => Self::Absent(refused.message),
            status => Self::Refused(status, "This cannot be done", refused.message),
        }
    }
}

/// Who asks, and for how much of a page.
struct Asker {
    caller: Caller,
    part: bool,
}

/// What every page's address may say.
#[derive(Deserialize)]
struct Part {
    part: Option<String>,
}

/// Returns the routes.
pub(crate) fn router(api: &Api) -> Router {
    let parts = api.parts().clone();
    parts.consensus.history().begin(parts.clock.now());
    let (logs, reading) = (KnownLogs::default(), Semaphore::new(LOGS_READ_MAX));
    let ui = Ui(Arc::new(Shared { parts, api: api.clone(), seen: Mutex::default(), logs, reading }));
    Router::new()
        .route("/", get(|| async { go("/ui/") }))
        .route("/ui", get(|| async { go("/ui/") }))
        .route("/ui/", get(overview::show))
        .route("/ui/builds/{build}", get(build::show))
        .route("/ui/jobs/{derivation}", get(job::show))
        .route("/ui/fleet", get(fleet::show))
        .route("/ui/fleet/drain", post(fleet::drain))
        .route("/ui/timeline", get(timeline::show))
        .route("/ui/cluster", get(cluster::show))
        .route("/ui/login", get(login::show).post(login::enter))
        .route("/ui/logout", post(login::leave))
        .route("/ui/assets/{file}", get(asset))
        .route("/ui/{*rest}", get(nothing))
        .route_layer(from_fn_with_state(ui.clone(), own_forms))
        .layer(DefaultBodyLimit::max(API_BODY_BYTES_MAX))
        .with_state(ui)
}

/// Lets a form through that a page of this coordinator sent, before its body is read: a cookie comes with whatever page asks.
async fn own_forms(State(ui): State<Ui>, request: Request, next: Next) -> Response {
    if *request.method() == Method::POST && !guard::is_same_origin(request.headers()) {
        let why = "The page that asked is not one of this coordinator.".to_owned();
        return ui.none(&NoPage::Refused(StatusCode::FORBIDDEN, "Nothing was done", why), None);
    }
    next.run(request).await
}

async fn asset(Path(file): Path<String>) -> Response {
    let Some(asset) = assets::find(&file) else { return super::kept::absent() };
    let kept = HeaderValue::from_static("public, max-age=31536000, immutable");
    let head = [(CONTENT_TYPE, HeaderValue::from_static(asset.content_type)), (CACHE_CONTROL, kept)];
    (head, [(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))], asset.text).into_response()
}

async fn nothing(State(ui): State<Ui>, headers: HeaderMap, uri: Uri) -> Response {
    ui.answer(&headers, &uri, async |_| Err::<Document, _>(NoPage::Absent(format!("There is no page {}.", uri.path())))).await
}

impl Ui {
    fn parts(&self) -> &Arc<Parts> {
        &self.0.parts
    }

    /// Answers with a page for who may look.
    async fn answer(&self, headers: &HeaderMap, uri: &Uri, page: impl AsyncFnOnce(&Asker) -> Result<Document, NoPage>) -> Response {
        let asker = match self.asker(headers, uri) {
            Ok(asker) => asker,
            Err(none) => return self.none(&none, None),
        };
        let Some(_turn) = self.0.api.turn() else { return self.none(&busy(), Some(&asker)) };
        match page(&asker).await {
            Ok(document) => self.show(StatusCode::OK, &document, Some(&asker)),
            Err(none) => self.none(&none, Some(&asker)),
        }
    }

    /// Returns who asks, if they may look.
    fn asker(&self, headers: &HeaderMap, uri: &Uri) -> Result<Asker, NoPage> {
        let next = || uri.path_and_query().map_or("/ui/", |path| path.as_str()).to_owned();
        let caller = guard::caller(&self.parts().access, headers).map_err(|_unknown| NoPage::LogIn { next: next(), wrong: true })?;
        match caller.standing {
            Standing::Nobody => Err(NoPage::LogIn { next: next(), wrong: false }),
            Standing::Anonymous | Standing::Reader | Standing::Submitter | Standing::Admin => {
                let part = params::<Part>(uri).is_ok_and(|asked| asked.part.is_some());
                Ok(Asker { caller, part })
            }
        }
    }

    fn none(&self, none: &NoPage, asker: Option<&Asker>) -> Response {
        match none {
            NoPage::LogIn { next, wrong } => {
                let wrong = wrong.then_some("The farm does not know the token that this browser has. Log in again.");
                self.show(StatusCode::UNAUTHORIZED, &kiln_pages::login::page(wrong, next), None)
            }
            NoPage::Absent(what) => self.show(StatusCode::NOT_FOUND, &kiln_pages::absent(what), asker),
            NoPage::Refused(status, what, why) => self.show(*status, &kiln_pages::refused(what, why), asker),
        }
    }

    fn show(&self, status: StatusCode, document: &Document, asker: Option<&Asker>) -> Response {
        let shell = self.shell(asker.map(|asker| &asker.caller));
        let text = if asker.is_some_and(|asker| asker.part) { document.part(&shell) } else { document.page(&shell) };
        let now = HeaderValue::from_str(&format!("{} UTC", words::moment(shell.now))).expect("a moment is plain text");
        let head = [
            (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
            (CACHE_CONTROL, Keep::Never.header()),
            (CONTENT_SECURITY_POLICY, HeaderValue::from_static(assets::SECURITY_POLICY)),
            (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            (REFERRER_POLICY, HeaderValue::from_static("same-origin")),
            (NOW, now),
        ];
        (status, head, text).into_response()
    }

    fn shell(&self, caller: Option<&Caller>) -> Shell {
        let parts = self.parts();
        let leads = parts.consensus.leads().is_some();
        let node = parts.consensus.node();
        // Who has not said who they are learns nothing of the farm's inside.
        let notice = (!leads && caller.is_some()).then(|| match parts.consensus.leader() {
            Some((leader, member)) => (
                format!(
                    "Coordinator {} leads. This one, {node}, knows what is committed, and not which workers are connected.",
                    leader.node
                ),
                Some(format!("http://{}/ui/", member.http)),
            ),
            None => ("No coordinator leads at this moment: nothing new is started until one does.".to_owned(), None),
        });
        Shell {
            now: parts.clock.now(),
            viewer: Viewer {
                name: caller.and_then(|caller| caller.token.clone()),
                is_admin: caller.is_some_and(is_admin),
                can_log_in: true,
            },
            farm: parts.about.farm.clone(),
            version: caller.map(|_| env!("CARGO_PKG_VERSION").to_owned()).unwrap_or_default(),
            coordinator: caller.map(|_| format!("coordinator {node}{}", if leads { ", which leads" } else { "" })).unwrap_or_default(),
            events: caller.map(|_| EVENTS),
            notice,
        }
    }
}

fn busy() -> NoPage {
    let why = "Too many ask at once. Ask again in a moment.".to_owned();
    NoPage::Refused(StatusCode::TOO_MANY_REQUESTS, "This coordinator is busy", why)
}

fn is_admin(caller: &Caller) -> bool {
    caller.standing == Standing::Admin
}

/// Returns what an address says.
fn params<T: DeserializeOwned>(uri: &Uri) -> Result<T, NoPage> {
    let read = Query::<T>::try_from_uri(uri).map(|Query(asked)| asked);
    read.map_err(|error| NoPage::Refused(StatusCode::BAD_REQUEST, "This address cannot be read", error.body_text()))
}

/// Returns what a form says: it is written as an address is.
fn form<T: DeserializeOwned>(body: &str) -> Result<T, NoPage> {
    let bad =
        || NoPage::Refused(StatusCode::BAD_REQUEST, "This form cannot be read", "it is not what a page of this farm sends".to_owned());
    let uri = Uri::try_from(format!("/?{body}")).map_err(|_| bad())?;
    Query::<T>::try_from_uri(&uri).map(|Query(said)| said).map_err(|_| bad())
}

/// Sends a browser to another page of this coordinator.
fn go(to: &str) -> Response {
    let to = HeaderValue::from_str(to).unwrap_or(HeaderValue::from_static("/ui/"));
    (StatusCode::SEE_OTHER, [(LOCATION, to), (CACHE_CONTROL, Keep::Never.header())]).into_response()
}

/// Logs that are read at a time.
const LOGS_READ_MAX: usize = 4;
/// Where the API tells what happens.
const EVENTS: &str = "/api/v1/events";
