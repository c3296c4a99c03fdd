//! The classes of failure, each brought about on a farm of real processes: what follows, and what the user is told.
//!
//! | what happened | test |
//! |---|---|
//! | the builder exits non-zero | `builds::a_failure_is_told_with_its_log_and_stops_only_what_needs_it` |
//! | a fixed output has another hash | [`a_fixed_output_of_another_hash_fails_for_good_with_both_hashes`] |
//! | killed by its memory limit | [`what_runs_out_of_memory_gets_twice_as_much_up_to_the_largest_worker`] |
//! | wall time, silence, log, output size | [`each_limit_ends_a_build_for_good_and_names_its_value`] |
//! | a worker is lost | `crashes::daemons_that_are_killed_come_back_and_end_the_build` |
//! | an input cannot be fetched, on three workers | [`what_three_workers_cannot_begin_is_set_aside_with_their_names`] |
//! | no worker could ever run it | `bad_input::a_job_that_no_worker_can_run_waits_with_a_reason_until_it_is_cancelled` |
//! | the last interested build is cancelled | `stops::an_interrupt_cancels_the_build_and_frees_its_slot` |
//! | unrelated jobs keep failing on a worker | `quarantined::a_worker_with_a_broken_disk_is_quarantined_and_its_jobs_are_built_elsewhere` |
//! | a worker gives it back | `stops::what_is_sent_to_a_worker_that_finishes_is_built_elsewhere_at_once` |

use std::fs;

use serde_json::Value;

use crate::crashes::{Daemons, flip, nar_of};
use crate::farm::{Place, Process, Ran, wait_for};

const SET: &str = r#"
rec {
  fixed = derivation {
    name = "fixed"; system = "x86_64-linux"; builder = "${boot}/busybox"; args = [ "sh" "-c" "echo surprise > $out" ];
    outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = builtins.hashString "sha256" "expected\n";
  };
  needsFixed = drv "needs-fixed" "cat $deps > $out" [ fixed ];
  hungry = drv "hungry" "${boot}/busybox head -c 200000000 /dev/zero > /dev/shm/x && echo fed > $out" [ ];
  starving = drv "starving" "${boot}/busybox head -c 900000000 /dev/zero > /dev/shm/x && echo fed > $out" [ ];
  silent = drv "silent" "${boot}/busybox sleep 100" [ ];
  talking = drv "talking" "while :; do echo still; ${boot}/busybox sleep 0.1; done" [ ];
  chatty = drv "chatty" "${boot}/busybox yes 'a line of log'" [ ];
  fat = drv "fat" "${boot}/busybox head -c 3000000 /dev/zero > $out" [ ];
  one = drv "one" "echo one > $out" [ ];
  two = drv "two" "cat $deps > $out" [ one ];
}
"#;

/// Writes the configuration of one more worker of the farm, with these lines more.
pub fn worker(daemons: &Daemons, number: u32, more: &str) -> String {
    let (place, name) = (&daemons.place, format!("w{number}"));
    if number > 1 {
        place
            .run(&["ca", "issue", "--dir", "ca", "--role", &format!("worker/{name}"), "--out", &format!("id/worker/{name}")])
            .expect_success();
    }
    let config = fs::read_to_string(place.path("worker.toml")).expect("it was written").replace("w1'", &format!("{name}'"));
    let config = config
        .replace("/worker'", &format!("/worker-{number}'"))
        .replace("slot_first = 100", &format!("slot_first = {}", 100 + number * 4));
    let file = format!("worker-{number}.toml");
    fs::write(place.path(&file), format!("{config}{more}")).expect("write");
    file
}

/// Waits until these workers are connected.
pub fn wait_for_workers(daemons: &Daemons, names: &[&str]) {
    wait_for("the workers", || {
        let workers = daemons.place.run(&[&["workers", "--json"], &daemons.farm()[..]].concat()).expect_success().json();
        let connected = workers.as_array()?.iter().filter(|worker| worker["connected"] == true).cloned().collect::<Vec<_>>();
        names.iter().all(|name| connected.iter().any(|worker| worker["worker"] == *name)).then_some(())
    });
}

fn build(daemons: &Daemons, attribute: &str) -> Ran {
    daemons.place.run(&[&["build", "-f", "set.nix", "-A", attribute, "--json"], &daemons.farm()[..]].concat())
}

/// The events of a kind, of one derivation.
pub fn events(ran: &Ran, kind: &str) -> Vec<Value> {
    let lines = ran.out();
    let events = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line is JSON"));
    events.filter(|event| event["event"] == kind).collect()
}

/// The only failure, its class and its words.
fn failure(ran: &Ran) -> (String, String) {
    let failed = events(ran, "failed");
    assert_eq!((ran.code(), failed.len()), (1, 1), "{}", ran.out());
    let text = |key: &str| failed[0][key].as_str().expect("it is text").to_owned();
    (text("class"), text("message"))
}

#[test]
fn a_fixed_output_of_another_hash_fails_for_good_with_both_hashes() {
    let place = Place::new(SET);
    let _farm = place.up();
    let ran = place.run(&["build", "-f", "set.nix", "-A", "needsFixed", "--json"]);
    let (class, message) = failure(&ran);
    assert_eq!(class, "build failure");
    let [expected, surprise] =
        ["sha256-Hqept32oxyV0JljkjWhtUL2q9/iwKJsQYa3sPSSeUHE=", "sha256-YB/PfWer+wvvhuHf3h6vgsY4q+L+yyfandOxNcf2fwE="];
    assert!(message.ends_with(&format!("specified: {expected} got: {surprise}")), "{message}");
    assert_eq!((ran.events("retried"), ran.events("dependency-failed")), (0, 1), "{}", ran.out());
}

#[test]
fn what_runs_out_of_memory_gets_twice_as_much_up_to_the_largest_worker() {
    let daemons = Daemons::with(SET);
    // The small one has more cores, so that it is asked first.
    let small = worker(&daemons, 1, "cores = 8\nmemory_mib = 128\n");
    let large = worker(&daemons, 2, "cores = 2\nmemory_mib = 400\n");
    let _processes = [daemons.start("coordinator"), daemons.start_as("worker", &small), daemons.start_as("worker", &large)];
    daemons.wait_until_up();
    wait_for_workers(&daemons, &["w1", "w2"]);
    let fed = build(&daemons, "hungry");
    assert_eq!(fed.code(), 0, "{}", fed.out());
    let retried = events(&fed, "retried");
    assert!(!retried.is_empty() && retried.iter().all(|event| event["class"] == "out of memory"), "{}", fed.out());
    let workers: Vec<Value> = events(&fed, "started").iter().map(|event| event["worker"].clone()).collect();
    assert_eq!((workers.first(), workers.last()), (Some(&"w1".into()), Some(&"w2".into())), "{}", fed.out());

    let (class, message) = failure(&build(&daemons, "starving"));
    assert_eq!(class, "out of memory");
    assert!(message.ends_with("no worker has more than 400 MiB"), "{message}");
}

#[test]
fn each_limit_ends_a_build_for_good_and_names_its_value() {
    let daemons = Daemons::with(SET);
    let _coordinator = daemons.start("coordinator");
    daemons.wait_until_up();
    let table = [
        ("silent", "silence_ms_max = 2000", "timed out: it wrote no log for 2 s, its silence limit"),
        ("talking", "wall_ms_max = 4000", "timed out: it ran longer than its limit of 4 s"),
        ("chatty", "log_bytes_max = 100000", "wrote more than 100000 bytes of log, its limit"),
        ("fat", "output_bytes_max = 1000000", "outputs hold more than 1000000 bytes, the job's output size limit"),
    ];
    for (number, (attribute, limit, words)) in (1..).zip(table) {
        // A worker that ends in order leaves the farm to the next one.
        let worker = daemons.start_as("worker", &worker(&daemons, number, &format!("\n[limits]\n{limit}\n")));
        let ran = build(&daemons, attribute);
        let (class, message) = failure(&ran);
        assert_eq!(class, "limit exceeded", "{limit}: {message}");
        assert!(message.contains(words), "{limit}: {message}");
        assert_eq!(ran.events("started"), 1, "{limit} is not tried again: {}", ran.out());
        drop(worker);
    }
}

#[test]
fn what_three_workers_cannot_begin_is_set_aside_with_their_names() {
    let daemons = Daemons::with(SET);
    let place = &daemons.place;
    let coordinator = daemons.start("coordinator");
    let first = daemons.start("worker");
    daemons.wait_until_up();
    let path = place.run(&[&["build", "-f", "set.nix", "-A", "one"], &daemons.farm()[..]].concat()).expect_success().out();
    drop((first, coordinator));
    flip(nar_of(&place.path("coordinator/store"), path.trim()), 0.5);

    let configs: Vec<String> = (2..=4).map(|number| worker(&daemons, number, "")).collect();
    let _coordinator = daemons.start("coordinator");
    let _workers: Vec<Process> = configs.iter().map(|config| daemons.start_as("worker", config)).collect();
    daemons.wait_until_up();
    wait_for_workers(&daemons, &["w2", "w3", "w4"]);
    let ran = build(&daemons, "two");
    let (class, message) = failure(&ran);
    assert_eq!(class, "infrastructure failure");
    assert!(message.starts_with("poisoned: failed on 3 different workers (w2, w3, w4); last: "), "{message}");
    assert!(message.contains(path.trim().trim_start_matches("/nix/store/")), "the input is named: {message}");
    assert_eq!((ran.events("retried"), ran.events("started")), (2, 3), "{}", ran.out());
}
