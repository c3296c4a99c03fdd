//! A worker on which every job fails rests, is quarantined, and says so, while its jobs are built elsewhere; an administrator gives it back.

use std::fs;

use serde_json::Value;

use crate::crashes::Daemons;
use crate::failures::{events, wait_for_workers, worker};
use crate::farm::{Process, Ran, wait_for};
use crate::prometheus::Prometheus;
use crate::receiver::Receiver;

const SET: &str = r#"
{ job = n: drv "job-${toString n}" "echo ${toString n} > $out" [ ];
  first = map (n: drv "first-${n}" "echo ${n} > $out" [ ]) (range 8); }
"#;

/// What the farm says of a worker.
fn ailing(daemons: &Daemons, name: &str) -> Value {
    let workers = daemons.place.run(&[&["workers", "--json"], &daemons.farm()[..]].concat()).expect_success().json();
    let found = workers.as_array().and_then(|workers| workers.iter().find(|worker| worker["worker"] == name));
    found.expect("it is registered")["ailing"].clone()
}

/// Builds a job that was never built, on whatever worker; returns where it was started.
fn build_another(daemons: &Daemons, number: &mut u32) -> Vec<Value> {
    *number += 1;
    let set = fs::read_to_string(daemons.place.path("set.nix")).expect("readable");
    let file = format!("one-{number}.nix");
    fs::write(daemons.place.path(&file), format!("({set}).job {number}")).expect("write");
    let ran = daemons.place.run(&[&["build", "-f", &file, "--json"], &daemons.farm()[..]].concat());
    assert_eq!(ran.code(), 0, "whatever w1 does, it is built: {}", ran.out());
    started_on(&ran)
}

fn started_on(ran: &Ran) -> Vec<Value> {
    events(ran, "started").iter().map(|event| event["worker"].clone()).collect()
}

#[test]
fn a_worker_with_a_broken_disk_is_quarantined_and_its_jobs_are_built_elsewhere() {
    let daemons = Daemons::with(SET);
    let place = &daemons.place;
    place.run(&["ca", "issue", "--dir", "ca", "--role", "admin/op", "--out", "id/op"]).expect_success();
    let receiver = Receiver::listen(place, false);
    let config = fs::read_to_string(place.path("coordinator.toml")).expect("read");
    fs::write(place.path("coordinator.toml"), config + &receiver.configured(place, "events = ['worker.quarantined']\n")).expect("write");
    // The first has most cores, so that it is asked first.
    let configs: Vec<String> = (1..=3).map(|number| worker(&daemons, number, &format!("cores = {}\n", 10 - number))).collect();
    let _coordinator = daemons.start("coordinator");
    let mut workers: Vec<Process> = configs.iter().map(|config| daemons.start_as("worker", config)).collect();
    daemons.wait_until_up();
    wait_for_workers(&daemons, &["w1", "w2", "w3"]);
    let config = fs::read_to_string(place.path("coordinator.toml")).expect("read");
    let metrics = config.lines().find_map(|line| line.strip_prefix("http = '")).expect("an address").trim_end_matches('\'');
    let mut prometheus = Prometheus::start(place, &[metrics]);
    // Where what is fetched arrives.
    fs::remove_dir_all(place.path("worker-1/incoming")).expect("it is there");

    let ran = place.run(&[&["build", "-f", "set.nix", "-A", "first", "--json"], &daemons.farm()[..]].concat());
    assert_eq!(ran.code(), 0, "{}", ran.out());
    let tried = started_on(&ran).iter().filter(|worker| **worker == "w1").count();
    assert!((1..=6).contains(&tried), "{tried} of 8 jobs were tried where all fail: {}", ran.out());

    let mut number = 0;
    for rests in 1..=3 {
        let rested = wait_for("another rest", || {
            build_another(&daemons, &mut number);
            Some(ailing(&daemons, "w1")).filter(|ailing| ailing["rests"] == rests)
        });
        assert!(rested["message"].as_str().is_some_and(|message| !message.is_empty()), "{rested}");
    }
    wait_for("the quarantine", || {
        build_another(&daemons, &mut number);
        Some(ailing(&daemons, "w1")).filter(|ailing| ailing["state"] == "quarantined")
    });
    prometheus.wait_for_alerts(&["KilnWorkerQuarantined"]);
    let told = receiver.next();
    assert_eq!((&told.body["type"], &told.body["data"]["worker"]), (&"worker.quarantined".into(), &"w1".into()), "{told:?}");
    let table = place.run(&[&["workers"], &daemons.farm()[..]].concat()).expect_success().out();
    assert!(table.contains("w1 is quarantined: ") && table.contains("`kiln undrain w1`"), "{table}");

    // It is mended by its next start, and nobody knows that yet.
    drop(workers.remove(0));
    workers.push(daemons.start_as("worker", &configs[0]));
    wait_for_workers(&daemons, &["w1", "w2", "w3"]);
    assert!(!build_another(&daemons, &mut number).contains(&"w1".into()), "another session changes nothing");
    let refused = place.run(&[&["undrain", "w1"], &daemons.farm()[..]].concat());
    assert!(refused.code() != 0 && refused.err().contains("admin"), "{}", refused.err());
    let admin = ["--farm", &daemons.url, "--identity", "id/op"];
    place.run(&[&["undrain", "w1"], &admin[..]].concat()).expect_success();
    assert_eq!((ailing(&daemons, "w1"), build_another(&daemons, &mut number)), (Value::Null, vec!["w1".into()]));

    place.run(&[&["drain", "w1"], &admin[..]].concat()).expect_success();
    assert_eq!(ailing(&daemons, "w1")["state"], "drained");
    assert!(!build_another(&daemons, &mut number).contains(&"w1".into()), "a drained worker gets nothing");
    let unknown = place.run(&[&["drain", "w9"], &admin[..]].concat());
    assert!(unknown.code() != 0 && unknown.err().contains("knows no worker w9"), "{}", unknown.err());
}
