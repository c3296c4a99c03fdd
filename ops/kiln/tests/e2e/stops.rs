//! What stops a build before its end, and what follows: an interrupt, a derivation that was mended, inputs that are not there.

use std::path::PathBuf;

use crate::crashes::Daemons;
use crate::farm::{Place, Process, wait_for};

const ENDLESS: &str = r#"{ mended ? false }:
rec {
  endless = drv "endless" "echo begun; while :; do ${boot}/busybox sleep 1; done" [ ];
  part = drv "part" (if mended then "echo part > $out" else "echo broken >&2; exit 1") [ ];
  whole = drv "whole" "cat $deps > $out" [ part kept ];
  kept = drv "kept" "echo kept > $out" [ ];
}
"#;

#[test]
fn an_interrupt_cancels_the_build_and_frees_its_slot() {
    let place = Place::new(ENDLESS);
    let _farm = place.up();
    let mut build = Process::start(&mut place.kiln(&["build", "-f", "set.nix", "-A", "endless", "--json"]));
    build.wait_for_line("\"event\":\"started\"");
    build.interrupt();
    let (code, rest) = build.finish();
    assert_eq!(code, 1, "{rest}");
    assert!(rest.lines().last().is_some_and(|line| line.contains("\"state\":\"cancelled\"")), "{rest}");
    wait_for("the attempt ends", || {
        let workers = place.run(&["workers", "--json"]).expect_success().json();
        workers[0]["running"].as_array().expect("a list").is_empty().then_some(())
    });
    assert_eq!(place.run(&["jobs", "--json"]).expect_success().json(), serde_json::json!([]), "nobody wants it");
    place.run(&["build", "-f", "set.nix", "-A", "kept"]).expect_success();
}

#[test]
fn a_client_whose_farm_stands_still_leaves_at_the_second_interrupt() {
    let place = Place::new(ENDLESS);
    let farm = place.up();
    let mut build = Process::start(&mut place.kiln_aloud(&["build", "-f", "set.nix", "-A", "endless"]));
    build.wait_for_line("building endless");
    farm.signal("STOP");
    build.interrupt();
    build.wait_for_line("interrupt again");
    build.interrupt();
    let (code, rest) = build.finish();
    farm.signal("CONT");
    assert_eq!(code, 1, "{rest}");
}

#[test]
fn what_was_built_beside_a_failure_is_not_built_again_after_the_mending() {
    let place = Place::new(ENDLESS);
    let _farm = place.up();
    let failed = place.run(&["build", "-f", "set.nix", "-A", "whole", "--keep-going", "--json"]);
    assert_eq!((failed.code(), failed.events("built"), failed.events("dependency-failed")), (1, 1, 1), "{}", failed.out());
    let told = place.run(&["build", "-f", "set.nix", "-A", "whole", "--keep-going"]).err();
    assert!(told.contains("not built because something that they need failed: 1 job\n"), "{told}");
    let mended = place.run(&["build", "-f", "set.nix", "--arg", "mended", "true", "-A", "whole", "--json"]).expect_success();
    assert_eq!((mended.events("started"), mended.events("built")), (2, 2), "the part and the whole: {}", mended.out());
}

#[test]
fn every_missing_derivation_is_listed() {
    let place = Place::new(r#"{ top = drv "top" "cat $deps > $out" [ (drv "left" "" [ ]) (drv "right" "" [ ]) ]; }"#);
    let _farm = place.up();
    place.run(&["build", "-f", "set.nix", "-A", "top"]);
    let evaluated = std::fs::read_dir(place.path("farm/evaluation/nix/store")).expect("evaluated").filter_map(Result::ok);
    let top = evaluated.map(|entry| entry.path()).find(|path| path.to_string_lossy().ends_with("-top.drv")).expect("the derivation");
    let alone = place.path("alone").join(top.file_name().expect("a name"));
    std::fs::create_dir(place.path("alone")).expect("make directory");
    std::fs::copy(&top, &alone).expect("copy");
    let ran = place.run(&["build", alone.to_str().expect("text")]);
    assert_eq!(ran.code(), 2, "{}", ran.err());
    for wanted in ["2 derivations are missing", "alone", "-left.drv", "-right.drv"] {
        assert!(ran.err().contains(wanted), "`{wanted}` is missing in: {}", ran.err());
    }
}

#[test]
fn a_worker_that_stops_in_order_leaves_no_control_group_behind() {
    let daemons = Daemons::with(r#"{ one = drv "one" "echo one > $out" [ ]; }"#);
    let (place, name) = (&daemons.place, format!("leaves{}", std::process::id()));
    place.run(&["ca", "issue", "--dir", "ca", "--role", &format!("worker/{name}"), "--out", "id/worker/w1"]).expect_success();
    let config = std::fs::read_to_string(place.path("worker.toml")).expect("it was written");
    std::fs::write(place.path("worker.toml"), config.replace("name = 'w1'", &format!("name = '{name}'"))).expect("write");
    let _coordinator = daemons.start("coordinator");
    let worker = daemons.start("worker");
    daemons.wait_until_up();
    place.run(&[&["build", "-f", "set.nix", "-A", "one"], &daemons.farm()[..]].concat()).expect_success();
    let workers = place.run(&[&["workers", "--json"], &daemons.farm()[..]].concat()).expect_success().json();
    let limited = workers[0]["guarantees"]["cgroup"] != "none";
    assert_eq!(!groups_of(&name).is_empty(), limited, "{workers}");
    worker.interrupt();
    assert_eq!(worker.finish().0, 0);
    assert_eq!(groups_of(&name), Vec::<PathBuf>::new());
}

const LONG: &str = r#"
rec {
  long = drv "long" "echo at work; ${boot}/busybox sleep 3; echo long > $out" [ ];
  next = drv "next" "cat $deps > $out" [ long ];
  endless = drv "endless" "while :; do ${boot}/busybox sleep 1; done" [ ];
  quick = map (i: drv "quick-${i}" "echo ${i} > $out" [ ]) (range 4);
}
"#;

/// Starts the daemons and a build on them, and returns these and the worker once the build's first job runs.
fn running(attribute: &str) -> (Daemons, [Process; 2], Process) {
    let daemons = Daemons::with(LONG);
    let coordinator = daemons.start("coordinator");
    let worker = Process::start(&mut daemons.place.kiln_aloud(&["worker", "--config", "worker.toml"]));
    daemons.wait_until_up();
    let words = [&["build", "-f", "set.nix", "-A", attribute, "--json"], &daemons.farm()[..]].concat();
    let mut build = Process::start(&mut daemons.place.kiln(&words));
    build.wait_for_line("\"event\":\"started\"");
    (daemons, [coordinator, build], worker)
}

#[test]
fn a_worker_that_is_terminated_finishes_and_reports_what_it_builds_and_takes_nothing_new() {
    let (daemons, [_coordinator, mut build], mut worker) = running("next");
    worker.signal("TERM");
    worker.wait_for_line("finishing: ");
    let built = build.wait_for_line("\"event\":\"built\"");
    assert!(built.contains("-long.drv"), "{built}");
    let (code, rest) = worker.finish();
    assert_eq!(code, 0, "{rest}");
    let _worker = daemons.start("worker");
    let (code, rest) = build.finish();
    assert_eq!(code, 0, "the next worker builds what is left: {rest}");
    let logs = daemons.place.attempts("coordinator/logs");
    assert!(logs.iter().any(|(job, attempts)| job.ends_with("-long.drv") && *attempts == 1), "built once: {logs:?}");
}

#[test]
fn what_is_sent_to_a_worker_that_finishes_is_built_elsewhere_at_once() {
    let (daemons, [_coordinator, build], mut worker) = running("endless");
    worker.signal("TERM");
    worker.wait_for_line("finishing: ");
    let place = &daemons.place;
    place.run(&["ca", "issue", "--dir", "ca", "--role", "worker/w2", "--out", "id/worker/w2"]).expect_success();
    let config = std::fs::read_to_string(place.path("worker.toml")).expect("it was written");
    let config = config.replace("w1'", "w2'").replace("/worker'", "/worker-2'").replace("slot_first = 100", "slot_first = 110");
    std::fs::write(place.path("worker.toml"), config).expect("write");
    let _other = daemons.start("worker");
    let ran = place.run(&[&["build", "-f", "set.nix", "-A", "quick", "--json"], &daemons.farm()[..]].concat()).expect_success();
    assert_eq!(ran.events("built"), 4, "while the first worker finishes, which takes for ever: {}", ran.out());
    let given_back = ran.out().lines().filter(|line| line.contains("takes nothing new")).count();
    assert_eq!(given_back, ran.events("retried"), "nothing else went wrong: {}", ran.out());
    worker.signal("TERM");
    assert_eq!(worker.finish().0, 0);
    build.kill_9();
}

#[test]
fn a_worker_that_is_terminated_twice_stops_at_once() {
    let (_daemons, [_coordinator, build], mut worker) = running("endless");
    worker.signal("TERM");
    worker.wait_for_line("finishing: ");
    worker.signal("TERM");
    worker.wait_for_line("stopping at once: ");
    let (code, rest) = worker.finish();
    assert_eq!(code, 0, "{rest}");
    build.kill_9();
}

/// Finds the control groups whose names hold this, in every hierarchy.
fn groups_of(name: &str) -> Vec<PathBuf> {
    let (mut found, mut waiting) = (Vec::new(), vec![PathBuf::from("/sys/fs/cgroup")]);
    while let Some(dir) = waiting.pop() {
        // Groups of others come and go meanwhile.
        for entry in std::fs::read_dir(&dir).into_iter().flatten().filter_map(Result::ok) {
            if entry.file_name().to_string_lossy().contains(name) {
                found.push(entry.path());
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push(entry.path());
            }
        }
    }
    found
}
