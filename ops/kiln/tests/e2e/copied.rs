//! A job whose builder stands still on one worker runs in a second place, and is built there.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::crashes::Daemons;
use crate::failures::{wait_for_workers, worker};
use crate::farm::{Process, wait_for};

/// The first attempt sleeps until somebody stops it, the second one until it wakes.
const SET: &str = r#"
rec {
  slow = drv "slow-1" "${boot}/busybox sleep 3.0417; echo slow > $out" [ ];
  all = drv "all" "cat $deps > $out" [ slow ];
}
"#;

/// Builders that sleep for just as long as the set's.
fn sleepers() -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("the kernel tells of processes").flatten();
    let sleeps =
        |process: &PathBuf| fs::read(process.join("cmdline")).is_ok_and(|words| words.windows(13).any(|part| part == b"sleep\x003.0417\0"));
    processes.map(|entry| entry.path()).filter(sleeps).filter_map(|process| Some(process.file_name()?.to_str()?.to_owned())).collect()
}

fn slow_job(daemons: &Daemons) -> Option<Value> {
    let jobs = daemons.place.run(&[&["jobs", "--json"], &daemons.farm()[..]].concat()).expect_success().json();
    jobs.as_array()?.iter().find(|job| job["derivation"].as_str().is_some_and(|path| path.ends_with("-slow-1.drv"))).cloned()
}

fn attempts(job: &Value) -> Vec<Value> {
    job["attempts"].as_array().cloned().unwrap_or_default()
}

#[test]
fn a_job_that_stands_still_is_built_by_a_second_attempt_and_the_first_is_stopped() {
    let daemons = Daemons::with(SET);
    let place = &daemons.place;
    place.run(&["ca", "issue", "--dir", "ca", "--role", "admin/op", "--out", "id/op"]).expect_success();
    let configs: Vec<String> = (1..=2).map(|number| worker(&daemons, number, "")).collect();
    let _coordinator = daemons.start("coordinator");
    let _workers: Vec<Process> = configs.iter().map(|config| daemons.start_as("worker", config)).collect();
    daemons.wait_until_up();
    wait_for_workers(&daemons, &["w1", "w2"]);
    fs::write(place.path("durations.jsonl"), "{\"pname\":\"slow\",\"system\":\"x86_64-linux\",\"wall_ms\":3100}\n").expect("write");
    let admin = ["--farm", &daemons.url, "--identity", "id/op"];
    place.run(&[&["durations", "import", "durations.jsonl"], &admin[..]].concat()).expect_success();

    let build = Process::start(&mut place.kiln(&[&["build", "-f", "set.nix", "-A", "all", "--json"], &daemons.farm()[..]].concat()));
    let stopped = wait_for("the builder", || sleepers().into_iter().next());
    assert!(Command::new("kill").args(["-STOP", &stopped]).status().is_ok_and(|status| status.success()), "the builder is stopped");

    let copied = wait_for("a second attempt", || slow_job(&daemons).filter(|job| attempts(job).len() == 2));
    let workers: Vec<Value> = attempts(&copied).iter().map(|attempt| attempt["worker"].clone()).collect();
    assert_ne!(workers[0], workers[1], "{copied}");
    let reason = copied["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("takes far longer than expected"), "{reason}");

    let (code, out) = build.finish();
    assert_eq!(code, 0, "the second attempt wins: {out}");
    wait_for("the first builder is gone", || sleepers().is_empty().then_some(()));
    let log = place.run(&[&["log", copied["derivation"].as_str().expect("a path")], &daemons.farm()[..]].concat());
    assert!(log.code() == 0 || log.err().contains("no log"), "nothing of the first one is left: {}", log.err());
}
