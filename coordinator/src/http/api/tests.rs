//! The API of a real coordinator: who gets what of every route, what the document says, pages, and streams that go on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use kiln_core::{Asker, Command};
use kiln_link::{Authority, Identity, Role};
use kiln_wire::limits::{API_BODY_BYTES_MAX, API_OPEN_REQUESTS_MAX, API_REQUESTS_MAX};
use kiln_wire::worker::Offer;
use kiln_wire::{
    Account, AttemptId, BuildId, DerivedInput, DrvPath, JobKind, JobLimits, JobSpec, NodeId, Order, Priority, RequestId, Resources, Root,
    Steering, Subject, TenantName, WorkerId,
};
use reqwest::header::{AUTHORIZATION, COOKIE, HOST, ORIGIN};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::document::document;
use super::routes::{ROUTES, Route, Verb};
use crate::access::Standing;
use crate::tokens::{Scope, Token, TokenHash};
use crate::{Config, Coordinator};

/// A coordinator that leads a farm of two tenants.
struct Place {
    coordinator: Coordinator,
    client: reqwest::Client,
    _dir: tempfile::TempDir,
}

const A: &str = "00000000000000000000000000000000-of-a.drv";
const SHARED: &str = "11111111111111111111111111111111-shared.drv";
const B: &str = "22222222222222222222222222222222-of-b.drv";

impl Place {
    async fn start(anonymous_readers: bool) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config: Config = toml::from_str("dir = '/nowhere'\nidentity = '/nowhere'").expect("defaults fill the rest");
        config.dir = dir.path().to_path_buf();
        config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.http = config.listen;
        config.anonymous_readers = anonymous_readers;
        let token = |name: &str, scope, tenant: Option<&str>| Token {
            name: name.to_owned(),
            hash: TokenHash::of(name),
            scope,
            tenant: tenant.map(|tenant| TenantName::parse(tenant).expect("a name")),
        };
        config.tokens = vec![
            token("readera", Scope::Reader, Some("a")),
            token("submittera", Scope::Submitter, Some("a")),
            token("readerb", Scope::Reader, Some("b")),
            token("submitterb", Scope::Submitter, Some("b")),
            token("admin", Scope::Admin, None),
            token("upload", Scope::Upload, None),
        ];
        let authority = Authority::ephemeral(&"kiln".parse().expect("a name")).expect("makes keys");
        let issued = authority.issue(&Role::Coordinator(NodeId(1)), std::time::Duration::from_secs(3600)).expect("issues");
        let identity = Identity::from_credentials(&issued).expect("an identity");
        let coordinator = Coordinator::start(config, &identity).await.expect("starts");
        let client = reqwest::Client::builder().tls_certs_only([]).no_proxy().build().expect("a client");
        Self { coordinator, client, _dir: dir }
    }

    async fn propose(&self, commands: Vec<Command>) {
        let consensus = &self.coordinator.parts().consensus;
        consensus.propose(commands).await.expect("applies");
    }

    /// Submits jobs for a tenant, each of which needs the one before; returns the build.
    async fn submit(&self, request: u64, tenant: &str, jobs: &[&str]) -> BuildId {
        let (request, now) = (RequestId(request), self.coordinator.parts().clock.now());
        let drv = |name: &str| DrvPath::parse(name).expect("a derivation");
        let specs = jobs.iter().enumerate().map(|(at, name)| JobSpec {
            derivation: drv(name),
            system: "x86_64-linux".to_owned(),
            required_features: BTreeSet::new(),
            outputs: BTreeMap::from([(kiln_wire::OutputName::parse("out").expect("a name"), None)]),
            inputs: jobs[..at]
                .last()
                .map(|input| DerivedInput { derivation: drv(input), outputs: kiln_wire::OutputNames::default() })
                .into_iter()
                .collect(),
            kind: JobKind::Ordinary,
            prefer_local: false,
            resources: Resources { cores: 1, memory_mib: 0 },
            limits: JobLimits::default(),
            resolve: false,
        });
        let specs: Vec<JobSpec> = specs.collect();
        let account = Account { tenant: Some(TenantName::parse(tenant).expect("a name")), project: None };
        let asker = Asker { account, priority: Priority::NORMAL, security: false, trace: None };
        let roots = jobs.iter().map(|name| Root { derivation: drv(name), outputs: BTreeSet::new() }).collect();
        for jobs in specs.chunks(1_000) {
            self.propose(vec![Command::Stage { request, jobs: jobs.to_vec(), now }]).await;
        }
        let name = format!("set of {tenant}");
        let submit = Command::Submit { request, name, roots, keep_going: true, asker: Some(asker), now };
        self.propose(vec![submit]).await;
        self.coordinator.parts().farm(|farm| farm.builds().last()).expect("a build")
    }

    /// A build of each tenant with a job in common, a worker without slots, and a log.
    async fn with_builds(&self) -> (BuildId, BuildId) {
        let parts = self.coordinator.parts();
        let offer = Offer { systems: BTreeSet::from(["x86_64-linux".to_owned()]), ..Offer::default() };
        let worker = WorkerId::parse("w1").expect("a name");
        let now = parts.clock.now();
        self.propose(vec![Command::Register { worker, offer, attempts: Vec::new(), since: None, judge: false, now }]).await;
        let a = self.submit(1, "a", &[SHARED, A]).await;
        let b = self.submit(2, "b", &[SHARED, B]).await;
        for job in [A, B, SHARED] {
            let job = DrvPath::parse(job).expect("a derivation");
            parts.logs.append(&job, AttemptId(7), 0, b"one\ntwo\nthree").expect("appends");
            parts.logs.close(&job, AttemptId(7));
        }
        (a, b)
    }

    fn request(&self, verb: Verb, path: &str, token: Option<&str>) -> reqwest::RequestBuilder {
        let url = format!("http://{}/api/v1{path}", self.coordinator.http_addr());
        let request = match verb {
            Verb::Get => self.client.get(url),
            Verb::Post => self.client.post(url),
        };
        let request = match path.ends_with("/bump") {
            true => request.header("content-type", "application/json").body("{\"priority\":5}"),
            false => request,
        };
        match token {
            Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    async fn status(&self, verb: Verb, path: &str, token: Option<&str>) -> u16 {
        self.request(verb, path, token).send().await.expect("answers").status().as_u16()
    }

    async fn json(&self, path: &str, token: Option<&str>) -> Value {
        let answer = self.request(Verb::Get, path, token).send().await.expect("answers");
        assert_eq!(answer.status().as_u16(), 200, "{path}");
        serde_json::from_slice(&answer.bytes().await.expect("a body")).expect("JSON")
    }

    /// Reads a stream until it has this in it.
    async fn read_until(&self, answer: reqwest::Response, part: &str) -> String {
        let (mut text, mut answer) = (String::new(), answer);
        while !text.contains(part) {
            let piece = answer.chunk().await.expect("goes on").unwrap_or_else(|| panic!("`{part}` is not in {text}"));
            text.push_str(&String::from_utf8_lossy(&piece));
        }
        text
    }
}

/// Returns the address of what is `tenant`'s.
fn address(route: &Route, build: BuildId, job: &str) -> String {
    let path = route.path.replace("{build}", &build.to_string()).replace("{derivation}", job).replace("{worker}", "w1");
    let path = path.replace("{hash}", "00000000000000000000000000000000");
    if path == "/durations" { "/durations?pname=x".to_owned() } else { path }
}

/// Who asks, with which token, and what that is good for where nobody may look without one.
const ROLES: [(&str, Option<&str>, Standing); 8] = [
    ("nobody", None, Standing::Nobody),
    ("a reader of a", Some("readera"), Standing::Reader),
    ("a submitter of a", Some("submittera"), Standing::Submitter),
    ("a reader of b", Some("readerb"), Standing::Reader),
    ("a submitter of b", Some("submitterb"), Standing::Submitter),
    ("an administrator", Some("admin"), Standing::Admin),
    ("an uploader", Some("upload"), Standing::Nobody),
    ("a stranger", Some("strange"), Standing::Nobody),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_is_refused_to_everybody_who_may_not_use_it() {
    for anonymous in [false, true] {
        let place = Place::start(anonymous).await;
        let (build, _) = place.with_builds().await;
        for route in ROUTES {
            let path = address(route, build, A);
            let is_owned = route.path.contains("{build}") || route.path.contains("{derivation}");
            for (who, token, standing) in ROLES {
                let standing = if anonymous { standing.max(Standing::Anonymous) } else { standing };
                // Where everybody may look, nothing is hidden; to steer it is another thing.
                let is_others = is_owned && who.ends_with("of b");
                let expected: &[u16] = match (who, standing) {
                    ("a stranger", _) => &[401],
                    (_, standing) if standing < route.needs && token.is_none() => &[401],
                    (_, standing) if standing < route.needs => &[403],
                    _ if is_others && !anonymous => &[404],
                    _ if is_others && route.verb == Verb::Post => &[403, 200],
                    // What is allowed changes the farm: see the test of what steering does.
                    _ if route.verb == Verb::Post => continue,
                    _ if route.path == "/paths/{hash}" => &[404],
                    _ => &[200],
                };
                if expected == [403, 200] && path.ends_with("/restart") {
                    continue;
                }
                let status = place.status(route.verb, &path, token).await;
                assert!(expected.contains(&status), "{who}, anonymous {anonymous}: {path} answers {status}, want {expected:?}");
            }
        }
        let kept = place.json(&format!("/builds/{build}"), Some("admin")).await;
        assert_eq!(kept["state"], "active", "nobody has cancelled it");
        place.coordinator.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_see_of_what_they_share_their_own_part() {
    let place = Place::start(false).await;
    let (a, b) = place.with_builds().await;
    let numbers = |value: &Value| value.as_array().map(|all| all.iter().filter_map(Value::as_u64).collect::<Vec<_>>());
    for (token, builds) in [("readera", vec![a.0]), ("readerb", vec![b.0]), ("admin", vec![a.0, b.0])] {
        let shared = place.json(&format!("/jobs/{SHARED}"), Some(token)).await;
        assert_eq!(numbers(&shared["builds"]), Some(builds.clone()), "{token}");
        let explained = place.json(&format!("/jobs/{SHARED}/explanation"), Some(token)).await;
        assert_eq!(numbers(&explained["job"]["builds"]), Some(builds.clone()), "{token}");
        let listed = place.json("/builds", Some(token)).await;
        let listed: Vec<u64> = listed["builds"].as_array().expect("a list").iter().filter_map(|build| build["build"].as_u64()).collect();
        assert_eq!(listed, builds.iter().rev().copied().collect::<Vec<_>>(), "{token}");
        let jobs = place.json("/jobs", Some(token)).await;
        assert_eq!(jobs["jobs"].as_array().map(Vec::len), Some(1 + builds.len()), "{token}");
        let shares = place.json("/shares", Some(token)).await;
        assert_eq!(shares["shares"].as_array().map(Vec::len), Some(builds.len()), "{token}");
    }
    // What somebody else wants too is steered by administrators; who that is nobody is told.
    let path = format!("/jobs/{SHARED}/cancel");
    let refused = place.request(Verb::Post, &path, Some("submittera")).send().await.expect("answers");
    assert_eq!(refused.status().as_u16(), 403);
    let said = String::from_utf8_lossy(&refused.bytes().await.expect("a body")).into_owned();
    assert!(said.contains("others want it too") && !said.contains("`b`"), "{said}");
    assert_eq!(place.status(Verb::Post, &path, Some("admin")).await, 200);
    place.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_steered_changes_and_a_cookie_changes_nothing_from_elsewhere() {
    let place = Place::start(false).await;
    let (a, _) = place.with_builds().await;
    let here = format!("http://{}", place.coordinator.http_addr());
    let with_cookie = |path: String, origin: Option<&str>| {
        let request = place.request(Verb::Post, &path, None).header(COOKIE, "other=1; kiln_token=submittera");
        origin.map_or(request.try_clone(), |origin| Some(request.header(ORIGIN, origin))).expect("no stream").send()
    };
    let bump = format!("/builds/{a}/bump");
    for (origin, expected) in [(None, 403), (Some("http://evil.example"), 403), (Some("null"), 403), (Some(here.as_str()), 200)] {
        let status = with_cookie(bump.clone(), origin).await.expect("answers").status().as_u16();
        assert_eq!(status, expected, "{origin:?}");
    }
    // A browser repeats `Basic` by itself too; and whoever names a page is held to it.
    let basic = "Basic YTpzdWJtaXR0ZXJh";
    for (header, origin, expected) in [
        (basic, None, 403),
        (basic, Some("http://evil.example"), 403),
        (basic, Some(here.as_str()), 200),
        ("Bearer submittera", Some("http://evil.example"), 403),
        ("bearer submittera", None, 200),
        ("Basic OnN1Ym1pdHRlcmE=", None, 403),
        ("Bearer ", None, 401),
        ("Basic Og==", None, 401),
    ] {
        let request = place.request(Verb::Post, &bump, None).header(AUTHORIZATION, header);
        let request = origin.map_or(request.try_clone(), |origin| Some(request.header(ORIGIN, origin))).expect("no stream");
        assert_eq!(request.send().await.expect("answers").status().as_u16(), expected, "{header} from {origin:?}");
    }
    for (path, token, expected) in [
        (bump.as_str(), "submittera", 200),
        (&format!("/jobs/{A}/bump"), "submittera", 200),
        (&format!("/jobs/{A}/restart"), "submittera", 400),
        (&format!("/jobs/{A}/cancel"), "submittera", 200),
        (&format!("/jobs/{A}/restart"), "admin", 200),
        ("/workers/w1/drain", "admin", 200),
        ("/workers/w2/drain", "admin", 404),
        ("/workers/w1/undrain", "admin", 200),
        (&format!("/builds/{a}/restart"), "submittera", 200),
        (&format!("/builds/{a}/cancel"), "submittera", 200),
    ] {
        assert_eq!(place.status(Verb::Post, path, Some(token)).await, expected, "{path}");
    }
    let cancelled = place.json(&format!("/builds/{a}"), Some("readera")).await;
    assert_eq!((&cancelled["state"], &cancelled["tenant"]), (&"cancelled".into(), &"a".into()));
    assert_eq!(place.status(Verb::Get, &format!("/builds/{a}"), Some("readerb")).await, 404, "its record says whose it was");
    place.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_logs_in_on_a_page_of_the_coordinator_alone() {
    let place = Place::start(false).await;
    let here = format!("http://{}", place.coordinator.http_addr());
    let login = |token: &str, origin: &str| {
        let request = place.request(Verb::Post, "/session", None).header(ORIGIN, origin).header("content-type", "application/json");
        request.header(COOKIE, "kiln_token=old").body(format!("{{\"token\":\"{token}\"}}")).send()
    };
    for (token, origin, expected) in
        [("readera", "http://evil.example", 403), ("strange", &here, 401), ("upload", &here, 401), ("readera", &here, 200)]
    {
        let answer = login(token, origin).await.expect("answers");
        assert_eq!(answer.status().as_u16(), expected, "{token} from {origin}");
        let cookie = answer.headers().get("set-cookie").and_then(|cookie| cookie.to_str().ok()).unwrap_or_default();
        assert_eq!(cookie.starts_with("kiln_token=readera; Path=/; HttpOnly; SameSite=Strict"), expected == 200, "{cookie}");
    }
    for (cookie, scope) in [("kiln_token=readera", "reader"), ("kiln_token=old", "nobody")] {
        let answer = place.request(Verb::Get, "/viewer", None).header(COOKIE, cookie).send().await.expect("answers");
        let viewer: Value = serde_json::from_slice(&answer.bytes().await.expect("a body")).expect("JSON");
        assert_eq!(viewer["scope"], scope);
    }
    place.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_token_nobody_looks_under_a_name_that_is_not_the_coordinators() {
    let place = Place::start(true).await;
    let port = place.coordinator.http_addr().port();
    for (host, token, expected) in [
        (format!("evil.example:{port}"), None, 401),
        (format!("evil.example:{port}"), Some("readera"), 200),
        (format!("localhost:{port}"), None, 200),
        (format!("127.0.0.1:{port}"), None, 200),
    ] {
        let answer = place.request(Verb::Get, "/builds", token).header(HOST, &host).send().await.expect("answers");
        assert_eq!(answer.status().as_u16(), expected, "{host} {token:?}");
    }
    place.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_no_body_holds_up_nobody() {
    let place = Place::start(true).await;
    let address = place.coordinator.http_addr();
    let mut silent = Vec::new();
    for _ in 0..API_REQUESTS_MAX + API_OPEN_REQUESTS_MAX {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connects");
        let head = format!(
            "POST /api/v1/session HTTP/1.1\r\nhost: {address}\r\norigin: http://{address}\r\ncontent-type: application/json\r\n\
             content-length: 20\r\nexpect: 100-continue\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("sends");
        // The body is waited for.
        let mut line = [0; 21];
        stream.read_exact(&mut line).await.expect("answers");
        assert_eq!(line, *b"HTTP/1.1 100 Continue");
        silent.push(stream);
    }
    for path in ["/farm", "/viewer"] {
        assert_eq!(place.status(Verb::Get, path, None).await, 200, "{path}");
    }
    drop(silent);
    let large = place.request(Verb::Post, "/session", Some("readera")).body(vec![b' '; API_BODY_BYTES_MAX + 1]);
    assert_eq!(large.send().await.expect("answers").status().as_u16(), 413);
    place.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ended_build_is_restarted_by_whoevers_it_was() {
    let place = Place::start(false).await;
    let (a, _) = place.with_builds().await;
    assert_eq!(place.status(Verb::Post, &format!("/builds/{a}/cancel"), Some("submittera")).await, 200);
    let parts = place.coordinator.parts();
    while parts.farm(|farm| farm.build_glance(a)).is_some() {
        tokio::task::yield_now().await;
    }
    let record = parts.archive.get(a).await.expect("reads").expect("it is kept");
    crate::archiving::archive(parts.clone(), kiln_core::BuildRecord { account: None, ..record.clone() }).await;
    assert_eq!(parts.archive.get(a).await.expect("reads"), Some(record), "who comes late does not make it nobody's");
    for (tenant, is_allowed) in [("b", false), ("a", true)] {
        let steering = Steering { subject: Subject::Build(a), order: Order::Restart };
        let peer = Role::Client(tenant.parse().expect("a name"));
        let steered = crate::shares::steer(place.coordinator.parts(), &peer, steering).await;
        // Whoever may goes on to be told that the derivations are not there.
        let is_forbidden = steered.as_ref().is_err_and(|refusal| refusal.kind == kiln_wire::client::RefusalKind::Forbidden);
        assert_eq!(is_forbidden, !is_allowed, "{tenant}: {steered:?}");
    }
    place.coordinator.stop().await;
}

#[test]
fn the_document_has_just_the_routes_that_there_are() {
    let document = document();
    let mut described = BTreeSet::new();
    for (path, item) in &document.paths.paths {
        for (verb, operation) in [("get", &item.get), ("post", &item.post), ("put", &item.put), ("delete", &item.delete)] {
            if operation.is_some() {
                described.insert((path.as_str(), verb));
            }
        }
    }
    let verb = |route: &Route| match route.verb {
        Verb::Get => "get",
        Verb::Post => "post",
    };
    let there: BTreeSet<(&str, &str)> = ROUTES.iter().map(|route| (route.path, verb(route))).collect();
    assert_eq!(described, there);
    assert_eq!(there.len(), ROUTES.len(), "no route is there twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_follow_on_each_other_and_what_breaks_a_rule_is_refused_in_one_shape() {
    let place = Place::start(true).await;
    let names: Vec<String> = (0..250).map(|n| format!("{n:032}-job-{n}.drv")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let build = place.submit(1, "a", &names).await;
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = place.json(&format!("/builds/{build}/jobs?limit=100{cursor}"), None).await;
        found.extend(page["jobs"].as_array().expect("a list").iter().map(|job| job["derivation"].to_string()));
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(found.len(), names.len());
    assert!(found.iter().zip(&names).all(|(found, name)| found.contains(*name)), "inputs come first");
    let searched = place.json(&format!("/builds/{build}/jobs?search=JOB-24&state=blocked"), None).await;
    assert_eq!(searched["jobs"].as_array().map(Vec::len), Some(11), "24 and 240 to 249");
    assert_eq!(place.json(&format!("/builds/{build}"), None).await["jobs"]["blocked"], 249);
    for (path, expected) in [
        ("/builds?limit=0", 400),
        ("/builds?limit=x", 400),
        ("/builds?limit=1&limit=2", 400),
        ("/builds?what=1", 400),
        ("/builds?state=none", 400),
        ("/builds?cursor=%00", 400),
        ("/builds/x", 400),
        ("/builds/999999", 404),
        ("/jobs/x", 400),
        ("/jobs/%ff", 400),
        ("/paths/x", 400),
        ("/durations", 400),
        ("/nothing", 404),
    ] {
        let answer = place.request(Verb::Get, path, None).send().await.expect("answers");
        assert_eq!(answer.status().as_u16(), expected, "{path}");
        let said: Value = serde_json::from_slice(&answer.bytes().await.expect("a body")).expect("JSON");
        assert!(["code", "message", "hint"].iter().all(|name| said["error"][name].is_string()), "{path}: {said}");
    }
    assert_eq!(place.status(Verb::Post, "/farm", None).await, 405);
    place.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_had_whole_in_part_or_line_by_line_from_where_it_was_left() {
    let place = Place::start(true).await;
    place.with_builds().await;
    let path = format!("/jobs/{A}/log");
    for (query, range, status, expected) in [
        ("", None, 200, "one\ntwo\nthree"),
        ("?attempt=7", None, 200, "one\ntwo\nthree"),
        ("?offset=4", None, 200, "two\nthree"),
        ("", Some("bytes=4-6"), 206, "two"),
        ("", Some("bytes=-5"), 206, "three"),
    ] {
        let request = place.request(Verb::Get, &format!("{path}{query}"), None);
        let answer = range.map_or(request.try_clone(), |range| Some(request.header("range", range))).expect("no stream").send().await;
        let answer = answer.expect("answers");
        assert_eq!(answer.status().as_u16(), status, "{query} {range:?}");
        assert_eq!(answer.bytes().await.expect("a body"), expected.as_bytes(), "{query} {range:?}");
    }
    assert_eq!(place.status(Verb::Get, &format!("{path}?offset=14"), None).await, 416);
    assert_eq!(place.status(Verb::Get, &format!("{path}?follow=1&offset=14"), None).await, 416);
    assert_eq!(place.status(Verb::Get, &format!("{path}?follow=1&offset={}", u64::MAX), None).await, 416);
    assert_eq!(place.status(Verb::Get, &format!("{path}?attempt=8"), None).await, 404);
    let follow = place.request(Verb::Get, &format!("{path}?follow=1"), None);
    let whole = place.read_until(follow.try_clone().expect("no stream").send().await.expect("answers"), "event: end").await;
    let ids = |text: &str| text.lines().filter_map(|line| line.strip_prefix("id: ")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(ids(&whole), ["7:4", "7:8", "7:13", "7:13"], "{whole}");
    let rest = place.read_until(follow.header("last-event-id", "7:4").send().await.expect("answers"), "event: end").await;
    assert_eq!(ids(&rest), ["7:8", "7:13", "7:13"], "{rest}");
    place.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_go_on_where_a_stream_ended() {
    let place = Place::start(false).await;
    let events = |token: &str, last: Option<&str>| {
        let request = place.request(Verb::Get, "/events", Some(token));
        last.map_or(request.try_clone(), |last| Some(request.header("last-event-id", last))).expect("no stream").send()
    };
    let listening = events("admin", None).await.expect("answers");
    let (a, b) = place.with_builds().await;
    let heard = place.read_until(listening, &format!("\"build\":{b},\"state\":\"submitted\"")).await;
    assert!(heard.contains(&format!("\"build\":{a},\"state\":\"submitted\"")) && heard.contains("\"state\":\"registered\""), "{heard}");
    let first = heard.lines().find_map(|line| line.strip_prefix("id: ")).expect("an id").to_owned();
    let again = place.read_until(events("readerb", Some(&first)).await.expect("answers"), "\"state\":\"submitted\"").await;
    assert!(again.contains(&format!("\"build\":{b},")) && !again.contains(&format!("\"build\":{a},")), "b hears of its own: {again}");
    let lost = place.read_until(events("admin", Some("0.0")).await.expect("answers"), "\n\n").await;
    assert!(lost.contains("event: resync"), "{lost}");
    let restored = place.read_until(events("admin", Some("999999.0")).await.expect("answers"), "\n\n").await;
    assert!(restored.contains("event: resync"), "{restored}");
    assert_eq!(events("admin", Some("x")).await.expect("answers").status().as_u16(), 400);
    place.coordinator.stop().await;
}
