//! Our own log lines, at their most talkative: each is JSON and says what it is about in fields, and none gives a secret away.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::crashes::Daemons;
use crate::farm::{Process, wait_for};
use crate::shared::{Bucket, S3_SECRET, share_store};
use crate::traced::{Receiver, trace_to};

const SET: &str = r#"
rec {
  good = drv "good" "echo good > $out" [ ];
  bad = drv "bad" "exit 1" [ good ];
}
"#;

/// What daemons may know and must not say.
const TRACE_SECRET: &str = "trace-secret-51c2";
const WRONG_TOKEN: &str = "wrongtoken7d1e4c9a";

/// Everything that our own crates have to say.
const LEVELS: &str = "kiln=trace,kiln_agent=trace,kiln_coordinator=trace,kiln_core=trace,kiln_link=trace,kiln_nix=trace,kiln_route=trace,\
                      kiln_store=trace,kiln_trace=trace,kiln_wire=trace,kiln_worker=trace";

struct Farm {
    daemons: Daemons,
    receiver: Receiver,
    secrets: Vec<(&'static str, String)>,
    http: String,
    token: String,
    _bucket: Bucket,
}

impl Farm {
    fn new() -> Self {
        let daemons = Daemons::with(SET);
        let place = &daemons.place;
        let bucket = Bucket::serve(&place.path("s3"));
        share_store(&daemons, &bucket);
        let receiver = Receiver::start();
        trace_to(&daemons, &receiver.url().replace("http://", &format!("http://me:{TRACE_SECRET}@")));
        let made = place.run(&["token", "create", "--name", "ops", "--scope", "admin"]).expect_success().out();
        let (token, lines) = made.split_once('\n').expect("a token and its lines");
        let file = place.path("coordinator.toml");
        let config = std::fs::read_to_string(&file).expect("it was written") + lines;
        let http = config.lines().find_map(|line| line.strip_prefix("http = '")).expect("an address").trim_end_matches('\'').to_owned();
        std::fs::write(&file, config).expect("write");
        let read = |path: &str| std::fs::read_to_string(place.path(path)).expect("it was written");
        let pem = |path: &str| {
            read(path).lines().filter(|line| !line.starts_with("-----")).max_by_key(|line| line.len()).expect("a key").to_owned()
        };
        let secrets = vec![
            ("signing key", read("signing.key").trim().split_once(':').expect("name:key").1.to_owned()),
            ("coordinator's private key", pem("id/coordinator/1/key.pem")),
            ("worker's private key", pem("id/worker/w1/key.pem")),
            ("S3 secret", S3_SECRET.to_owned()),
            ("password of who receives traces", TRACE_SECRET.to_owned()),
            ("token", token.trim().to_owned()),
            ("token that is none", WRONG_TOKEN.to_owned()),
        ];
        let token = token.trim().to_owned();
        Self { daemons, receiver, secrets, http, token, _bucket: bucket }
    }

    fn start(&self, daemon: &str) -> Process {
        let mut command = self.daemons.place.kiln(&[daemon, "--config", &format!("{daemon}.toml")]);
        let log = std::fs::File::create(self.log_of(daemon)).expect("make the log");
        Process::start(command.env("KILN_LOG", LEVELS).stderr(log))
    }

    fn log_of(&self, daemon: &str) -> std::path::PathBuf {
        self.daemons.place.path(&format!("{daemon}.log"))
    }

    /// Asks over HTTP with a token in one of the ways that there are; returns the answer's first line.
    fn ask(&self, request: &str, header: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.http).expect("it listens");
        let length = body.len();
        let text = format!(
            "{request} HTTP/1.1\r\nhost: {}\r\n{header}\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}",
            self.http
        );
        stream.write_all(text.as_bytes()).expect("it takes requests");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("it answers");
        String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
    }

    /// Returns whole lines: the last one may be in the making.
    fn lines(&self, daemon: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.log_of(daemon)).expect("it logs");
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(str::to_owned).collect()
    }
}

/// Returns a field of a line, or of the span that it was said in.
fn field<'a>(line: &'a Value, name: &str) -> Option<&'a Value> {
    [&line["fields"], &line["span"]].into_iter().chain(line["spans"].as_array().into_iter().flatten()).find_map(|of| of.get(name))
}

#[test]
fn every_line_is_json_with_fields_and_no_secret_is_in_any() {
    let farm = Farm::new();
    let _coordinator = farm.start("coordinator");
    let _worker = farm.start("worker");
    farm.daemons.wait_until_up();
    let place = &farm.daemons.place;
    let built = place.run(&[&["build", "-f", "set.nix", "-A", "bad"], &farm.daemons.farm()[..]].concat());
    assert_eq!(built.code(), 1, "{}", built.err());
    let bearer = |token: &str| format!("authorization: Bearer {token}");
    assert!(farm.ask("GET /api/v1/builds", &bearer(&farm.token), "").contains(" 200 "));
    assert!(farm.ask("GET /api/v1/builds", &bearer(WRONG_TOKEN), "").contains(" 401 "));
    farm.ask("GET /ui/", &format!("cookie: kiln={}; token={WRONG_TOKEN}", farm.token), "");
    farm.ask("POST /ui/login", &format!("origin: http://{}", farm.http), &format!("token={}", farm.token));
    farm.ask("POST /ui/login", &format!("origin: http://{}", farm.http), &format!("token={WRONG_TOKEN}"));
    wait_for("the worker's spans are received", || farm.receiver.seen().iter().any(|span| span.name == "run").then_some(()));

    for (daemon, said) in [("coordinator", &["leased", "committed", "failed"][..]), ("worker", &["attempt begins", "attempt ended"])] {
        let lines = farm.lines(daemon);
        for (what, secret) in &farm.secrets {
            let found = lines.iter().find(|line| line.contains(secret.as_str()));
            assert_eq!(found, None, "the {what} is in the log of the {daemon}");
        }
        let lines: Vec<Value> =
            lines.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
        for message in said {
            assert!(lines.iter().any(|line| line["fields"]["message"] == *message), "the {daemon} says `{message}`");
        }
        let is_of_attempt = |line: &&Value| field(line, "attempt").is_some() || line["fields"]["message"] == "failed";
        for line in lines.iter().filter(is_of_attempt) {
            for name in ["attempt", "job", "worker", "term"] {
                assert!(field(line, name).is_some(), "`{name}` is missing: {line}");
            }
        }
    }
    let spans = format!("{:?}", farm.receiver.seen());
    for (what, secret) in &farm.secrets {
        assert!(!spans.contains(secret.as_str()), "the {what} is in a span");
    }
}
