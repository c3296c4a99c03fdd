//! Traces, as somebody receives them by OTLP: whole trees across processes, and nothing where nobody asked for them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use prost::Message;

use crate::crashes::Daemons;
use crate::farm::{Place, Process, free_port, wait_for};

const SET: &str = r#"
rec {
  common = drv "common" "echo 'Running phase: unpackPhase'; echo 'Running phase: buildPhase'; echo common > $out" [ ];
  one = drv "one" "cat $deps > $out" [ common ];
  two = drv "two" "cat $deps > $out" [ common ];
  broken = drv "broken" "echo no; exit 1" [ common ];
}
"#;

/// A span as it was received.
#[derive(Clone, Debug)]
pub struct Seen {
    service: BTreeMap<String, String>,
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    pub name: String,
    from: u64,
    to: u64,
    pub attributes: BTreeMap<String, String>,
    links: Vec<(Vec<u8>, Vec<u8>)>,
    failure: Option<String>,
}

/// Receives spans by OTLP over HTTP, on a port of its own, as long as the test runs.
pub struct Receiver {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Receiver {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let port = listener.local_addr().expect("it is bound").port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let into = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let into = into.clone();
                std::thread::spawn(move || serve(&stream, &into));
            }
        });
        Self { port, seen }
    }

    /// Returns its address, as senders are configured.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns what has come so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }
}

/// Answers the requests of a connection; what is no export of spans ends it.
fn serve(stream: &TcpStream, into: &Mutex<Vec<Seen>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(read) if read > 0 && line.trim().is_empty() => break,
                Ok(read) if read > 0 => head.push(line.trim().to_lowercase()),
                Ok(_) | Err(_) => return,
            }
        }
        if !head.first().is_some_and(|line| line.starts_with("post /v1/traces ")) {
            return;
        }
        let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let request = ExportTraceServiceRequest::decode(&body[..]).expect("it is an export of spans");
        into.lock().expect("no panic").extend(spans(request));
        let answered = (&mut &*stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n");
        if answered.is_err() {
            return;
        }
    }
}

fn spans(request: ExportTraceServiceRequest) -> Vec<Seen> {
    let mut seen = Vec::new();
    for resource in request.resource_spans {
        let service = texts(resource.resource.map(|resource| resource.attributes).unwrap_or_default());
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            seen.push(Seen {
                service: service.clone(),
                trace: span.trace_id,
                id: span.span_id,
                parent: span.parent_span_id,
                name: span.name,
                from: span.start_time_unix_nano,
                to: span.end_time_unix_nano,
                attributes: texts(span.attributes),
                links: span.links.into_iter().map(|link| (link.trace_id, link.span_id)).collect(),
                failure: span.status.filter(|status| status.code == 2).map(|status| status.message),
            });
        }
    }
    seen
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.into_iter().map(|attribute| (attribute.key, text(attribute.value))).collect()
}

/// What was received of one trace.
struct Tree<'a>(Vec<&'a Seen>);

impl<'a> Tree<'a> {
    /// Returns the spans of the trace that this one is of.
    fn of(seen: &'a [Seen], trace: &[u8]) -> Self {
        Self(seen.iter().filter(|span| span.trace == trace).collect())
    }

    fn children(&self, of: &Seen) -> Vec<&'a Seen> {
        self.0.iter().filter(|span| span.parent == of.id).copied().collect()
    }

    /// Returns a span with all below it, names in brackets, in the order of names.
    fn text(&self, of: &Seen) -> String {
        let job = of.attributes.get("kiln.job").filter(|_| of.name == "job").and_then(|job| Some(job.split_once('-')?.1));
        let mut below: Vec<String> = self.children(of).iter().map(|span| self.text(span)).collect();
        below.sort();
        let below = if below.is_empty() { String::new() } else { format!("({})", below.join(" ")) };
        format!("{}{}{below}", of.name, job.map(|job| format!("={job}")).unwrap_or_default())
    }

    fn named(&self, name: &str) -> Vec<&'a Seen> {
        self.0.iter().filter(|span| span.name == name).copied().collect()
    }

    /// Returns the only job of this name, or attempt at one.
    fn about(&self, name: &str, job: &str) -> &'a Seen {
        let is_it = |span: &&&Seen| span.attributes.get("kiln.job").is_some_and(|path| path.ends_with(&format!("-{job}.drv")));
        let named = self.named(name);
        let found: Vec<_> = named.iter().filter(is_it).collect();
        assert_eq!(found.len(), 1, "{name} of {job}: {:?}", self.0);
        found[0]
    }

    /// Fails the test if something is not within the time of what it is a part of. What the log says is in whole milliseconds: what a worker
    /// measured may end within the one that has begun.
    fn check_times(&self) {
        for whole in &self.0 {
            for part in self.children(whole) {
                let is_within = whole.from <= part.from && part.from <= part.to && part.to < whole.to + 1_000_000;
                assert!(is_within, "`{}` {}-{} of `{}` {}-{}", part.name, part.from, part.to, whole.name, whole.from, whole.to);
            }
        }
    }
}

/// Configures the daemons to send spans.
pub fn trace_to(daemons: &Daemons, url: &str) {
    for file in ["coordinator.toml", "worker.toml"] {
        let path = daemons.place.path(file);
        let text = std::fs::read_to_string(&path).expect("it was written");
        std::fs::write(path, format!("{text}[traces]\notlp_endpoint = '{url}'\n")).expect("write");
    }
}

#[test]
fn each_build_is_one_tree_of_spans_across_client_coordinator_and_worker() {
    let daemons = Daemons::with(SET);
    let receiver = Receiver::start();
    trace_to(&daemons, &receiver.url());
    let coordinator = daemons.start("coordinator");
    daemons.wait_until_up();
    // The client of the first traces what it does itself.
    let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let build = |attributes: &[&str], trace: &str| {
        let wanted: Vec<&str> = attributes.iter().flat_map(|attribute| ["-A", *attribute]).collect();
        let args = [&["build", "-f", "set.nix", "--keep-going", "--json"][..], &wanted, &daemons.farm()].concat();
        Process::start(daemons.place.kiln(&args).env("TRACEPARENT", trace).stderr(std::process::Stdio::null()))
    };
    let submitted = |name: &str| {
        wait_for("the build is submitted", || {
            let jobs = daemons.place.run(&[&["jobs", "--json"], &daemons.farm()[..]].concat()).out();
            jobs.contains(&format!("-{name}.drv")).then_some(())
        });
    };
    let first = build(&["one"], given);
    submitted("one");
    let second = build(&["two", "broken"], "");
    submitted("two");
    let worker = daemons.start("worker");
    assert_eq!((first.finish().0, second.finish().0), (0, 1));
    // What ends in order sends the rest first.
    drop(worker);
    drop(coordinator);

    let seen = receiver.seen();
    let roots: Vec<&Seen> = seen.iter().filter(|span| span.name == "build" && span.attributes.contains_key("kiln.state")).collect();
    let [one, two] = roots[..] else { panic!("two builds: {roots:?}") };
    assert_eq!((hex(&one.trace), hex(&one.parent)), (given[3..35].to_owned(), given[36..52].to_owned()), "it belongs to its client's");
    assert!(two.parent.is_empty() && two.trace != one.trace, "{two:?}");
    assert!(seen.iter().all(|span| span.trace == one.trace || span.trace == two.trace), "nothing is told elsewhere: {seen:?}");
    let (first, second) = (Tree::of(&seen, &one.trace), Tree::of(&seen, &two.trace));
    let ran = |build: &str| format!("attempt(commit run({build} fetch import sandbox upload)) publish wait");
    let expect = format!("build(job=common.drv({}) job=one.drv({}) submit)", ran("build(buildPhase unpackPhase)"), ran("build"));
    assert_eq!(first.text(one), expect);
    let broken = "attempt(run(build fetch sandbox)) wait";
    assert_eq!(second.text(two), format!("build(job=broken.drv({broken}) job=common.drv job=two.drv({}) submit)", ran("build")));
    first.check_times();
    second.check_times();

    // What ran once for both is told once, and each knows of the other.
    let (job, attempt, shared) = (first.about("job", "common"), first.about("attempt", "common"), second.about("job", "common"));
    assert_eq!(attempt.links, [(two.trace.clone(), two.id.clone())]);
    assert_eq!(shared.links, [(job.trace.clone(), job.id.clone())]);

    for (tree, jobs) in [(&first, &["common", "one"][..]), (&second, &["two", "broken"])] {
        jobs.iter().for_each(|job| check_attempt(tree, job, *job == "broken"));
    }
    let why = second.about("attempt", "broken").failure.clone().unwrap_or_default();
    assert!(why.contains("failed with exit code 1"), "{why}");
    assert_eq!((one.failure.is_some(), two.failure.is_some()), (false, true));
}

/// Fails the test unless coordinator and worker say the same of the attempt at a job, each as itself.
fn check_attempt(tree: &Tree<'_>, job: &str, has_failed: bool) {
    let (attempt, run) = (tree.about("attempt", job), tree.about("run", job));
    assert_eq!(run.parent, attempt.id, "{job}");
    for name in ["kiln.job", "kiln.attempt", "kiln.worker", "kiln.term"] {
        assert!(attempt.attributes.contains_key(name), "{name}: {attempt:?}");
        assert_eq!(attempt.attributes.get(name), run.attributes.get(name), "{name}");
    }
    assert_eq!(attempt.attributes["kiln.worker"], "w1");
    for (span, service, instance) in [(attempt, "kiln-coordinator", "1"), (run, "kiln-worker", "w1")] {
        let of = |name: &str| span.service.get(name).map(String::as_str);
        assert_eq!((of("service.name"), of("service.instance.id")), (Some(service), Some(instance)));
    }
    assert_eq!((attempt.failure.is_some(), run.failure.is_some()), (has_failed, has_failed), "{job}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_environment_says_where_spans_go_and_that_none_do() {
    let receiver = Receiver::start();
    let up = |place: &Place, more: &[(&str, &str)]| {
        let mut command = place.kiln(&["up", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url()).envs(more.iter().copied());
        let mut farm = Process::start(&mut command);
        farm.wait_for_line("Build with");
        place.run(&["build", "-f", "set.nix", "-A", "one"]).expect_success();
        // Its last spans go before it ends.
        farm.interrupt();
        assert_eq!(farm.finish().0, 0);
    };
    up(&Place::new(SET), &[("OTEL_SDK_DISABLED", "true")]);
    assert!(receiver.seen().is_empty(), "{:?}", receiver.seen());
    up(&Place::new(SET), &[("OTEL_SERVICE_NAME", "mine")]);
    let seen = receiver.seen();
    assert!(seen.iter().any(|span| span.name == "run") && seen.iter().any(|span| span.name == "attempt"), "{seen:?}");
    assert!(seen.iter().all(|span| span.service.get("service.name").is_some_and(|name| name == "mine")), "{seen:?}");
}

#[test]
fn a_receiver_that_is_not_there_costs_no_build() {
    let daemons = Daemons::with(SET);
    let secret = "trace-password-9c41";
    trace_to(&daemons, &format!("http://me:{secret}@127.0.0.1:{}", free_port()));
    let _processes = [daemons.start("coordinator"), daemons.start("worker")];
    daemons.wait_until_up();
    daemons.place.run(&[&["build", "-f", "set.nix", "-A", "one"][..], &daemons.farm()].concat()).expect_success();
    wait_for("the daemons say that spans are lost", || {
        let log = std::fs::read_to_string(daemons.place.path("daemons.log")).expect("the daemons log");
        assert!(!log.contains(secret), "{log}");
        log.contains("spans of traces are lost").then_some(())
    });
}
