//! The pages of a real coordinator: who sees what, what browsers are told, and what is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use kiln_core::{Asker, Command};
use kiln_link::{Authority, Identity, Role};
use kiln_pages::assets;
use kiln_wire::worker::Offer;
use kiln_wire::{
    Account, AttemptId, BuildId, DrvPath, JobKind, JobLimits, JobSpec, NodeId, OutputName, Priority, RequestId, Resources, Root,
    TenantName, WorkerId,
};
use reqwest::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, COOKIE, HeaderValue, LOCATION, ORIGIN, SET_COOKIE};

use crate::tokens::{Scope, Token, TokenHash};
use crate::{Config, Coordinator};

const A: &str = "00000000000000000000000000000000-of-a.drv";
const B: &str = "22222222222222222222222222222222-of-b.drv";
const NAME: &str = "<b>set</b>";

/// A coordinator that leads a farm of two tenants.
struct Place {
    coordinator: Coordinator,
    client: reqwest::Client,
    _dir: tempfile::TempDir,
}

/// What a browser gets.
struct Got {
    status: u16,
    headers: reqwest::header::HeaderMap,
    text: String,
}

impl Place {
    async fn start(anonymous_readers: bool) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config: Config = toml::from_str("dir = '/nowhere'\nidentity = '/nowhere'").expect("defaults fill the rest");
        config.dir = dir.path().to_path_buf();
        config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.http = config.listen;
        config.anonymous_readers = anonymous_readers;
        let tenant = |name: &str| TenantName::parse(name).expect("a name");
        let token = |name: &str, scope, tenant| Token { name: name.to_owned(), hash: TokenHash::of(name), scope, tenant };
        config.tokens = vec![
            token("readera", Scope::Reader, Some(tenant("a"))),
            token("readerb", Scope::Reader, Some(tenant("b"))),
            token("admin", Scope::Admin, None),
            token("upload", Scope::Upload, None),
        ];
        let authority = Authority::ephemeral(&"kiln".parse().expect("a name")).expect("makes keys");
        let issued = authority.issue(&Role::Coordinator(NodeId(1)), std::time::Duration::from_secs(3600)).expect("issues");
        let identity = Identity::from_credentials(&issued).expect("an identity");
        let coordinator = Coordinator::start(config, &identity).await.expect("starts");
        let client = reqwest::Client::builder().tls_certs_only([]).no_proxy().redirect(reqwest::redirect::Policy::none());
        Self { coordinator, client: client.build().expect("a client"), _dir: dir }
    }

    async fn propose(&self, command: Command) {
        self.coordinator.parts().consensus.propose(vec![command]).await.expect("applies");
    }

    /// A worker, and a build of each tenant with a job and its log.
    async fn with_builds(&self) -> (BuildId, BuildId) {
        let parts = self.coordinator.parts();
        let offer = Offer { systems: BTreeSet::from(["x86_64-linux".to_owned()]), ..Offer::default() };
        let (worker, now) = (WorkerId::parse("w1").expect("a name"), parts.clock.now());
        self.propose(Command::Register { worker, offer, attempts: Vec::new(), since: None, judge: false, now }).await;
        let mut builds = Vec::new();
        for (request, tenant, job) in [(1, "a", A), (2, "b", B)] {
            builds.push(self.submit(RequestId(request), tenant, job).await);
            let job = DrvPath::parse(job).expect("a derivation");
            parts.logs.append(&job, AttemptId(7), 0, b"one\n<i>two</i>\nthree").expect("appends");
            parts.logs.close(&job, AttemptId(7));
        }
        (builds[0], builds[1])
    }

    async fn submit(&self, request: RequestId, tenant: &str, job: &str) -> BuildId {
        let (derivation, now) = (DrvPath::parse(job).expect("a derivation"), self.coordinator.parts().clock.now());
        let spec = JobSpec {
            derivation: derivation.clone(),
            system: "x86_64-linux".to_owned(),
            required_features: BTreeSet::new(),
            outputs: BTreeMap::from([(OutputName::parse("out").expect("a name"), None)]),
            inputs: Vec::new(),
            kind: JobKind::Ordinary,
            prefer_local: false,
            resources: Resources { cores: 1, memory_mib: 0 },
            limits: JobLimits::default(),
            resolve: false,
        };
        self.propose(Command::Stage { request, jobs: vec![spec], now }).await;
        let account = Account { tenant: Some(TenantName::parse(tenant).expect("a name")), project: None };
        let asker = Some(Asker { account, priority: Priority::NORMAL, security: false, trace: None });
        let roots = vec![Root { derivation, outputs: BTreeSet::new() }];
        self.propose(Command::Submit { request, name: NAME.to_owned(), roots, keep_going: true, asker, now }).await;
        self.coordinator.parts().farm(|farm| farm.builds().last()).expect("a build")
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.coordinator.http_addr())
    }

    async fn get(&self, path: &str, token: Option<&str>) -> Got {
        let request = self.client.get(self.url(path));
        got(token.iter().fold(request, |request, token| request.header(COOKIE, format!("kiln_token={token}")))).await
    }

    /// Sends a form, from a page of this origin.
    async fn post(&self, path: &str, token: Option<&str>, origin: Option<&str>, form: &str) -> Got {
        let request = self.client.post(self.url(path)).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form.to_owned());
        let request = token.iter().fold(request, |request, token| request.header(COOKIE, format!("kiln_token={token}")));
        got(origin.iter().fold(request, |request, origin| request.header(ORIGIN, *origin))).await
    }

    fn own(&self) -> String {
        format!("http://{}", self.coordinator.http_addr())
    }
}

async fn got(request: reqwest::RequestBuilder) -> Got {
    let answer = request.send().await.expect("answers");
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    Got { status, headers, text: String::from_utf8_lossy(&answer.bytes().await.expect("a body")).into_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_is_html_under_a_strict_policy_and_what_is_not_there_is_a_page_too() {
    let place = Place::start(true).await;
    let (a, _) = place.with_builds().await;
    for (path, status) in [
        ("/ui/".to_owned(), 200),
        (format!("/ui/builds/{a}"), 200),
        (format!("/ui/builds/{a}?q=of&state=ready&after=0"), 200),
        (format!("/ui/jobs/{A}"), 200),
        (format!("/ui/jobs/{A}?q=two"), 200),
        ("/ui/fleet".to_owned(), 200),
        ("/ui/timeline".to_owned(), 200),
        ("/ui/timeline?from=5&to=9&after=w1".to_owned(), 200),
        ("/ui/cluster".to_owned(), 200),
        ("/ui/login".to_owned(), 200),
        ("/ui/builds/9999".to_owned(), 404),
        ("/ui/builds/x".to_owned(), 404),
        ("/ui/jobs/nonsense".to_owned(), 404),
        ("/ui/jobs/33333333333333333333333333333333-none.drv".to_owned(), 404),
        ("/ui/nothing/here".to_owned(), 404),
        ("/ui/timeline?from=x".to_owned(), 400),
    ] {
        let got = place.get(&path, None).await;
        assert_eq!(got.status, status, "{path}: {}", got.text);
        assert_eq!(got.headers.get(CONTENT_TYPE), Some(&HeaderValue::from_static("text/html; charset=utf-8")), "{path}");
        assert_eq!(got.headers.get(CONTENT_SECURITY_POLICY), Some(&HeaderValue::from_static(assets::SECURITY_POLICY)), "{path}");
        assert!(got.text.starts_with("<!DOCTYPE html>") && got.text.contains("<h1"), "{path}");
        assert!(!got.text.contains("<b>set</b>") && !got.text.contains("<i>two</i>"), "{path}: what a client writes is text");
    }
    let part = place.get("/ui/?part=main", None).await;
    assert!(part.status == 200 && !part.text.contains("<html") && part.text.contains("data-live"), "{}", part.text);
    place.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_caches_addresses_are_left_alone_and_files_are_kept_for_ever() {
    let place = Place::start(false).await;
    for path in ["/", "/ui"] {
        let got = place.get(path, None).await;
        assert_eq!((got.status, got.headers.get(LOCATION)), (303, Some(&HeaderValue::from_static("/ui/"))), "{path}");
    }
    assert!(place.get("/nix-cache-info", None).await.text.starts_with("StoreDir: "));
    assert_eq!(place.get("/00000000000000000000000000000000.narinfo", None).await.status, 404);
    for asset in [&assets::STYLE, &assets::SCRIPT, &assets::ICON] {
        let got = place.get(&asset.href(), None).await;
        assert_eq!((got.status, got.text.as_str()), (200, asset.text), "{}", asset.name());
        assert!(got.headers["cache-control"].to_str().is_ok_and(|kept| kept.contains("immutable")));
    }
    assert_eq!(place.get("/ui/assets/kiln-0000000000000000.css", None).await.status, 404);
    place.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_no_token_is_asked_for_one_and_a_tenant_sees_its_own() {
    let place = Place::start(false).await;
    let (a, b) = place.with_builds().await;
    for (token, status) in [(None, 401), (Some("wrong"), 401), (Some("upload"), 401), (Some("readera"), 200), (Some("admin"), 200)] {
        for path in ["/ui/", "/ui/fleet", "/ui/timeline", "/ui/cluster"] {
            let got = place.get(path, token).await;
            assert_eq!(got.status, status, "{token:?} {path}");
            assert_eq!(got.text.contains("name=\"token\""), status == 401, "{token:?} {path}: asks for a token");
        }
    }
    for (token, path, status) in [
        ("readera", format!("/ui/builds/{a}"), 200),
        ("readera", format!("/ui/builds/{b}"), 404),
        ("readera", format!("/ui/jobs/{A}"), 200),
        ("readera", format!("/ui/jobs/{B}"), 404),
        ("readera", format!("/ui/jobs/{B}?part=log&at=0&line=1"), 404),
        ("admin", format!("/ui/builds/{b}"), 200),
        ("admin", format!("/ui/jobs/{B}"), 200),
    ] {
        assert_eq!(place.get(&path, Some(token)).await.status, status, "{token} {path}");
    }
    assert!(!place.get("/ui/", Some("readera")).await.text.contains(&format!("/ui/builds/{b}")));
    place.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_becomes_a_cookie_for_pages_of_this_coordinator_alone() {
    let place = Place::start(false).await;
    let own = place.own();
    for (token, origin, status) in [
        ("admin", Some(own.as_str()), 303),
        ("readera", Some(own.as_str()), 303),
        ("admin", None, 403),
        ("admin", Some("http://evil.example"), 403),
        ("wrong", Some(own.as_str()), 401),
        ("upload", Some(own.as_str()), 401),
    ] {
        let got = place.post("/ui/login", None, origin, &format!("token={token}&next=%2Fui%2Ffleet")).await;
        assert_eq!(got.status, status, "{token} {origin:?}");
        assert_eq!(got.headers.contains_key(SET_COOKIE), status == 303, "{token} {origin:?}");
    }
    let got = place.post("/ui/login", None, Some(&own), "token=admin&next=%2Fui%2Ffleet").await;
    assert_eq!(got.headers.get(LOCATION), Some(&HeaderValue::from_static("/ui/fleet")));
    let cookie = got.headers[SET_COOKIE].to_str().expect("text").to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    assert_eq!(place.post("/ui/logout", Some("admin"), Some("http://evil.example"), "").await.status, 403);
    let left = place.post("/ui/logout", Some("admin"), Some(&own), "").await;
    assert!(left.headers[SET_COOKIE].to_str().expect("text").contains("Max-Age=0"));
    place.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_administrator_on_a_page_of_this_coordinator_drains_a_worker() {
    let place = Place::start(true).await;
    place.with_builds().await;
    let own = place.own();
    let drained = || place.coordinator.parts().farm(|farm| farm.workers()[0].ailing.as_ref().is_some_and(|ailing| ailing.drained));
    for (token, origin, form, status) in [
        (None, Some(own.as_str()), "worker=w1&drain=yes", 403),
        (Some("readera"), Some(own.as_str()), "worker=w1&drain=yes", 403),
        (Some("admin"), None, "worker=w1&drain=yes", 403),
        (Some("admin"), Some("http://evil.example"), "worker=w1&drain=yes", 403),
        (Some("admin"), Some(own.as_str()), "worker=%2F&drain=yes", 400),
        (Some("admin"), Some(own.as_str()), "drain=yes", 400),
    ] {
        let got = place.post("/ui/fleet/drain", token, origin, form).await;
        assert_eq!((got.status, drained()), (status, false), "{token:?} {origin:?} {form}: {}", got.text);
    }
    assert!(place.get("/ui/fleet", Some("admin")).await.text.contains(">Drain<"));
    assert_eq!(place.post("/ui/fleet/drain", Some("admin"), Some(&own), "worker=w1&drain=yes").await.status, 303);
    assert!(drained());
    assert!(place.get("/ui/fleet", Some("admin")).await.text.contains(">Undrain<"), "the page is of the moment after");
    assert_eq!(place.post("/ui/fleet/drain", Some("admin"), Some(&own), "worker=w1&drain=no").await.status, 303);
    assert!(!drained());
    place.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_of_another_page_or_of_any_size_is_turned_away() {
    let place = Place::start(true).await;
    let (own, large) = (place.own(), format!("token={}", "x".repeat(kiln_wire::limits::API_BODY_BYTES_MAX)));
    for (path, origin, form, status) in [
        ("/ui/login", Some(own.as_str()), large.as_str(), 413),
        ("/ui/login", Some("http://evil.example"), large.as_str(), 403),
        ("/ui/fleet/drain", Some(own.as_str()), large.as_str(), 413),
        ("/ui/fleet/drain", None, "", 403),
        ("/ui/logout", None, "", 403),
    ] {
        let got = place.post(path, Some("admin"), origin, form).await;
        assert_eq!(got.status, status, "{path} {origin:?}: {}", got.text);
    }
    place.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_not_who_they_are_learns_neither_version_nor_coordinator() {
    let place = Place::start(false).await;
    for (path, token, is_told) in [("/ui/login", None, false), ("/ui/", None, false), ("/ui/", Some("readera"), true)] {
        let text = place.get(path, token).await.text;
        let told = text.contains(concat!("Kiln ", env!("CARGO_PKG_VERSION"))) && text.contains("coordinator 1");
        assert_eq!(told, is_told, "{path} {token:?}");
        assert_eq!(text.contains(env!("CARGO_PKG_VERSION")), is_told, "{path} {token:?}");
    }
    place.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_has_the_log_only_where_the_page_has_none() {
    let place = Place::start(true).await;
    place.with_builds().await;
    for (query, has_log) in [("", true), ("?part=main", false), ("?part=main&log=1", true), ("?q=two&part=log&at=0&line=1", true)] {
        let text = place.get(&format!("/ui/jobs/{A}{query}"), None).await.text;
        assert_eq!(text.contains("id=\"log-lines\""), has_log, "{query}");
    }
    place.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_take_turns_with_the_api() {
    let place = Place::start(true).await;
    let api = crate::http::api::Api::new(place.coordinator.parts().clone());
    let router = super::router(&api);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}/ui/cluster", listener.local_addr().expect("an address"));
    let server = tokio::spawn(std::future::IntoFuture::into_future(axum::serve(listener, router)));
    let ask = async || got(place.client.get(&url)).await.status;
    assert_eq!(ask().await, 200);
    let turns: Vec<_> = std::iter::from_fn(|| api.turn()).collect();
    assert_eq!((turns.len(), ask().await), (kiln_wire::limits::API_REQUESTS_MAX, 429));
    drop(turns);
    assert_eq!(ask().await, 200);
    server.abort();
    place.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_needs_is_named_also_if_it_was_there_before() {
    let place = Place::start(true).await;
    let store = &place.coordinator.parts().store;
    let text = br#"Derive([("out","","r:sha256","")],[("/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv",["out"])],[],"x86_64-linux","/bin/sh",[],[("out","")])"#;
    let job = kiln_nix::drv_path_of(store.store_dir(), "of-a", text).expect("a derivation");
    store.put_derivation(&job, text.to_vec().into()).await.expect("stores");
    place.submit(RequestId(1), "a", job.as_str()).await;
    let page = place.get(&format!("/ui/jobs/{job}"), Some("admin")).await.text;
    assert!(page.contains("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv"), "{page}");
    place.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_in_which_something_fails_is_shown_with_its_numbers_to_whom_it_is_of() {
    let place = Place::start(false).await;
    let parts = place.coordinator.parts();
    // What the farm has no file of, it would give up by itself.
    let text = br#"Derive([("out","","r:sha256","")],[],[],"x86_64-linux","/bin/sh",[],[("out","")])"#;
    let job = kiln_nix::drv_path_of(parts.store.store_dir(), "of-a", text).expect("a derivation");
    parts.store.put_derivation(&job, text.to_vec().into()).await.expect("stores");
    let a = place.submit(RequestId(1), "a", job.as_str()).await;
    let now = parts.clock.now();
    let capacity = Resources { cores: 4, memory_mib: 4096 };
    let offer = Offer { systems: BTreeSet::from(["x86_64-linux".to_owned()]), slots: 4, capacity, ..Offer::default() };
    let worker = WorkerId::parse("w1").expect("a name");
    place.propose(Command::Register { worker, offer, attempts: Vec::new(), since: None, judge: false, now }).await;
    // The coordinator itself gives nothing to a worker without a session.
    let placements = parts.farm(|farm| kiln_core::plan(farm, now, &kiln_core::Limits::STANDARD).0.placements);
    let placements = placements.into_iter().filter(|placement| placement.derivation == job).collect();
    place.propose(Command::Assign { placements, now }).await;
    let lease = parts.farm(|farm| farm.live_lease(&job)).expect("it runs");
    let failure = kiln_wire::Failure { class: kiln_wire::FailureClass::BuildFailure, message: "all wrong".to_owned() };
    let outcome = kiln_wire::Outcome::Failed { failure, usage: kiln_wire::Usage::default() };
    place.propose(Command::Finish { lease, outcome, learn: false, judge: false, now }).await;
    for (token, is_seen) in [(Some("admin"), true), (Some("readera"), true), (Some("readerb"), false)] {
        let text = place.get("/ui/", token).await.text;
        assert_eq!(text.contains("1 package fails") && text.contains("all wrong"), is_seen, "{token:?} {text}");
    }
    let build = place.get(&format!("/ui/builds/{a}"), Some("readera")).await.text;
    assert!(build.contains("all wrong"), "{build}");
    place.coordinator.stop().await;
}
