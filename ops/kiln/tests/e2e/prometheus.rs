//! A Prometheus of a test's own: the real program, which reads the coordinators of a farm every second and has the farm's own alerts.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::farm::{Place, Process, free_port, wait_for};

/// The rules that are shipped.
pub const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../alerts/kiln.yml");

/// A running Prometheus. It takes the test for its Alertmanager, so that whoever waits for an alert is woken.
pub struct Prometheus {
    addr: String,
    notices: Receiver<()>,
    /// Every alert that was seen to fire.
    seen: BTreeSet<Alert>,
    _process: Process,
}

/// Name and instance of an alert that fires; of one that is about the farm, no instance.
pub type Alert = (String, String);

impl Prometheus {
    /// Starts one that reads these addresses as the scrape job `kiln`, with the rules that are shipped, [`hurried`].
    pub fn start(place: &Place, targets: &[&str]) -> Self {
        let (told, notices) = channel();
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let alertmanager = listener.local_addr().expect("bound");
        std::thread::spawn(move || take_notices(&listener, &told));
        let rules = fs::read_to_string(RULES).expect("the rules are there");
        fs::write(place.path("rules.yml"), hurried(&rules)).expect("write");
        let targets: Vec<String> = targets.iter().map(|target| format!("'{target}'")).collect();
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\nrule_files: [rules.yml]\n\
             alerting: {{alertmanagers: [{{static_configs: [{{targets: ['{alertmanager}']}}]}}]}}\n\
             scrape_configs: [{{job_name: kiln, static_configs: [{{targets: [{}]}}]}}]\n",
            targets.join(", ")
        );
        fs::write(place.path("prometheus.yml"), config).expect("write");
        let addr = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", place.path("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", place.path("tsdb").display()));
        command.arg(format!("--web.listen-address={addr}"));
        let log = fs::File::create(place.path("prometheus.log")).expect("make its log");
        let process = Process::start(command.stderr(log));
        let mut prometheus = Self { addr, notices, seen: BTreeSet::new(), _process: process };
        wait_for("Prometheus is ready", || prometheus.is_ready().then_some(()));
        prometheus
    }

    /// Asks a question; none if there is no answer.
    fn get(&self, path: &str) -> Option<String> {
        get(&self.addr, path)
    }

    fn is_ready(&mut self) -> bool {
        self.pause();
        self.get("/-/ready").is_some()
    }

    /// Waits for a notice of an alert, or a moment.
    fn pause(&self) {
        // Whichever comes first is as good.
        let _notice_or_moment = self.notices.recv_timeout(MOMENT);
    }

    /// Returns the result of an expression, or what is wrong with it.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let escape = |byte: u8| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") };
        let escaped: String = expression.bytes().map(escape).collect();
        let answer = self.get(&format!("/api/v1/query?query={escaped}")).ok_or("it is refused")?;
        let answer: Value = serde_json::from_str(&answer).map_err(|error| error.to_string())?;
        answer["data"]["result"].as_array().cloned().ok_or_else(|| answer.to_string())
    }

    /// Waits until an expression has a result.
    pub fn wait_for_result(&self, expression: &str) {
        wait_for(expression, || {
            self.pause();
            self.query(expression).expect("it is an expression").first().map(drop)
        });
    }

    /// Returns what fires at this moment.
    pub fn firing(&mut self) -> BTreeSet<Alert> {
        self.pause();
        let answer: Value = serde_json::from_str(&self.get("/api/v1/alerts").expect("Prometheus answers")).expect("JSON");
        let alerts = answer["data"]["alerts"].as_array().expect("a list").iter().filter(|alert| alert["state"] == "firing");
        let text = |of: &Value| of.as_str().unwrap_or_default().to_owned();
        let firing: BTreeSet<Alert> =
            alerts.map(|alert| (text(&alert["labels"]["alertname"]), text(&alert["labels"]["instance"]))).collect();
        self.seen.extend(firing.iter().cloned());
        firing
    }

    /// Forgets what was seen to fire: what is waited for from here on has to fire anew.
    pub fn forget(&mut self) {
        self.seen.clear();
    }

    /// Waits until each of these alerts was seen to fire.
    pub fn wait_for_alerts(&mut self, names: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let firing = self.firing();
            let unseen: Vec<&&str> = names.iter().filter(|name| !self.seen.iter().any(|(seen, _)| seen == *name)).collect();
            if unseen.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "{unseen:?} did not fire within {PATIENCE:?}; what fires: {firing:?}");
        }
    }
}

/// Returns the rules as a test has time for: the same expressions and numbers, but that each alert fires after a second, that what is counted over
/// minutes is counted over fifteen seconds, and that a coordinator lags with 3 entries. What machines differ in is left as it is: how long commits
/// take.
fn hurried(rules: &str) -> String {
    let mut alert = "";
    let hurry = |text: &str| {
        let ranges = ["[5m]", "[10m]", "[15m]"].iter().fold(text.to_owned(), |text, range| text.replace(range, "[15s]"));
        ranges.replace("offset 15m", "offset 15s").replace("> 5000", "> 3")
    };
    let mut hurried = String::new();
    for line in rules.lines() {
        alert = line.trim().strip_prefix("- alert: ").unwrap_or(alert);
        let text = match line.trim_start().starts_with("for: ") {
            _ if alert == "KilnCommitSlow" => line.to_owned(),
            true => "        for: 1s".to_owned(),
            false => hurry(line),
        };
        hurried.push_str(&text);
        hurried.push('\n');
    }
    hurried
}

/// Asks an HTTP server; none if it does not answer with 200.
pub fn get(addr: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(addr).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.split(' ').nth(1).filter(|status| *status == "200")?;
    Some(body.to_owned())
}

/// Takes what Prometheus sends its Alertmanager, and tells that something came, as long as somebody listens.
fn take_notices(listener: &TcpListener, told: &Sender<()>) {
    for stream in listener.incoming().map_while(Result::ok) {
        let taken = take_notice(BufReader::new(stream));
        if taken.is_some() && told.send(()).is_err() {
            return;
        }
    }
}

fn take_notice(mut stream: BufReader<TcpStream>) -> Option<()> {
    let (mut line, mut bytes) = (String::new(), 0);
    while stream.read_line(&mut line).ok()? > 2 {
        let length = line.to_ascii_lowercase().strip_prefix("content-length:").and_then(|text| text.trim().parse::<usize>().ok());
        bytes = length.unwrap_or(bytes);
        line.clear();
    }
    stream.read_exact(&mut vec![0; bytes]).ok()?;
    stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok()
}

/// Longer than any alert takes on a machine that does other work too.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often Prometheus is asked, while nothing happens there.
const MOMENT: Duration = Duration::from_millis(500);
