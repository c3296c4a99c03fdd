//! A log that is written while its leader hands over, and while the next one dies: whoever looks, in whichever way, is told every line once.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::crashes::Daemons;
use crate::farm::{Process, wait_for};
use crate::shared::{Bucket, share_store, three};

/// As many lines as take a quarter of a minute.
const SET: &str = r#"
{
  talker = drv "talker" "i=1; while [ $i -le 300 ]; do echo \"this is line $i\"; i=$((i+1)); usleep 50000; done; echo done > $out" [ ];
}
"#;

fn expected() -> Vec<String> {
    (1..=300).map(|number| format!("this is line {number}")).collect()
}

/// Somebody who follows a log over HTTP, and comes back where the stream ended whenever it does.
struct Listener {
    lines: Arc<Mutex<Vec<String>>>,
    thread: std::thread::JoinHandle<usize>,
}

impl Listener {
    fn start(cache: &str, token: &str, job: &str) -> Self {
        let (host, token, job) = (cache.trim_start_matches("http://").to_owned(), token.to_owned(), job.to_owned());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let heard = lines.clone();
        let thread = std::thread::spawn(move || {
            let (mut last, mut streams) = (String::new(), 0);
            while !listen(&host, &token, &job, &mut last, &heard, &mut streams) {}
            streams
        });
        Self { lines, thread }
    }

    fn heard(&self) -> usize {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Returns the lines, and of how many streams they came.
    fn finish(self) -> (Vec<String>, usize) {
        let streams = self.thread.join().expect("it listens to the end");
        (std::mem::take(&mut *self.lines.lock().unwrap_or_else(PoisonError::into_inner)), streams)
    }
}

/// Listens to one stream; returns whether it told the log's end.
fn listen(host: &str, token: &str, job: &str, last: &mut String, heard: &Mutex<Vec<String>>, streams: &mut usize) -> bool {
    let Ok(mut stream) = TcpStream::connect(host) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
    let resumed = if last.is_empty() { String::new() } else { format!("Last-Event-ID: {last}\r\n") };
    // Version 1.0 asks for a body that ends with the connection.
    let request = format!("GET /api/v1/jobs/{job}/log?follow=1 HTTP/1.0\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n{resumed}\r\n");
    if stream.write_all(request.as_bytes()).is_err() {
        return false;
    }
    let (mut event, mut has_told) = (String::new(), false);
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        if let Some(name) = line.strip_prefix("event: ") {
            event = name.to_owned();
            if event == "end" {
                return true;
            }
        } else if let Some(id) = line.strip_prefix("id: ") {
            id.clone_into(last);
        } else if let Some(data) = line.strip_prefix("data: ").filter(|_| event == "line") {
            let data: serde_json::Value = serde_json::from_str(data).expect("an event is JSON");
            *streams += usize::from(!std::mem::replace(&mut has_told, true));
            heard.lock().unwrap_or_else(PoisonError::into_inner).push(data["text"].as_str().expect("a text").to_owned());
        }
    }
    false
}

/// Opens the page of a job in Chromium.
fn look(cache: &str, token: &str, job: &str) -> Process {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../lib/browser/install");
    let installed = Command::new(script).stderr(Stdio::inherit()).output().expect("the script runs");
    assert!(installed.status.success(), "{script}: {:?}", installed.status);
    let dir = String::from_utf8(installed.stdout).expect("text");
    let mut command = Command::new("node");
    command.arg("follow.mjs").current_dir(dir.trim()).env("KILN_URL", cache).env("KILN_TOKEN", token).env("KILN_JOB", job);
    Process::start(&mut command)
}

/// Every line came, once, in order; says where not.
fn assert_told(who: &str, lines: &[String], expected: &[String]) {
    let wrong = lines.iter().zip(expected).position(|(line, expected)| line != expected).unwrap_or(lines.len().min(expected.len()));
    assert!(lines == expected, "{who}: {} lines of {}; at line {wrong}: {:?}", lines.len(), expected.len(), lines.get(wrong));
}

#[test]
fn whoever_follows_a_log_is_told_every_line_once_whatever_becomes_of_the_leader() {
    let mut daemons = Daemons::with(SET);
    let bucket = Bucket::serve(&daemons.place.path("s3"));
    share_store(&daemons, &bucket);
    let made = daemons.place.run(&["token", "create", "--name", "looker", "--scope", "reader", "--tenant", "me"]).expect_success().out();
    let (token, lines) = made.split_once('\n').expect("lines");
    let config = std::fs::read_to_string(daemons.place.path("coordinator.toml")).expect("read");
    std::fs::write(daemons.place.path("coordinator.toml"), config + lines).expect("write");
    let mut farm = three(&mut daemons);
    let place = &daemons.place;

    let mut build = Process::start(&mut place.kiln(&[&["build", "-f", "set.nix", "-A", "talker", "--json"], &daemons.farm()[..]].concat()));
    let started: serde_json::Value = serde_json::from_str(&build.wait_for_line("\"event\":\"started\"")).expect("JSON");
    let job = started["derivation"].as_str().expect("it names one").rsplit('/').next().expect("a name").to_owned();
    let followed = Process::start(&mut place.kiln(&[&["log", "-f", &job], &daemons.farm()[..]].concat()));
    // The third coordinator never leads before the second dies.
    let listener = Listener::start(&farm.caches[2], token, &job);
    let mut browser = look(&farm.caches[2], token, &job);
    browser.wait_for_line("looking");

    let told = listener.heard();
    place.run(&["cluster", "transfer", "2", "--farm", &daemons.url, "--identity", "id/admin/root"]).expect_success();
    wait_for("lines come by the next leader", || {
        std::thread::yield_now();
        (listener.heard() > told + 20).then_some(())
    });
    farm.coordinators.remove(1).kill_9();

    let (lines, streams) = listener.finish();
    assert_told("a stream of events", &lines, &expected());
    assert!(streams >= 3, "the stream ended with each leader, {streams} were listened to");
    let (code, lines) = followed.finish();
    assert_eq!(code, 0);
    assert_told("kiln log", &lines.lines().map(str::to_owned).collect::<Vec<_>>(), &expected());
    let (code, lines) = browser.finish();
    assert_eq!(code, 0, "the browser sees the log's end");
    let numbered: Vec<String> = expected().into_iter().zip(1..).map(|(line, number)| format!("{number} {line}")).collect();
    assert_told("the page", &lines.lines().map(str::to_owned).collect::<Vec<_>>(), &numbered);
    let (code, said) = build.finish();
    assert_eq!(code, 0, "{said}");
}
