//! Nothing that was committed is built again, and nothing that runs is begun again, whoever of the farm dies in between.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;

use crate::crashes::Daemons;
use crate::farm::{Place, Process, wait_for};

/// Eighteen jobs in two chains: enough to be left over, however late a kill comes. Each writes a line, so that each attempt leaves a log.
const CHAINS: &str = r#"
let chain = side: builtins.foldl' (below: i: drv "${side}-${i}" "echo at work; ${boot}/busybox usleep 300000; echo ${i} > $out" [ below ])
  (drv "${side}" "echo at work; echo ${side} > $out" [ ]) (range 8);
in { left = chain "left"; right = chain "right"; }
"#;

/// Follows a build until so many jobs are committed, and returns which.
fn build_until(mut build: Process, committed: usize) -> (Process, BTreeSet<String>) {
    let derivation = |line: String| {
        let event: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        event["derivation"].as_str().expect("it names it").rsplit('/').next().expect("a name").to_owned()
    };
    let done = (0..committed).map(|_| derivation(build.wait_for_line("\"event\":\"built\""))).collect();
    (build, done)
}

/// How many attempts each committed job had when it was committed. A kill before that may have cost it one.
type Committed = BTreeMap<String, usize>;

/// Notes jobs that were just committed.
fn note(committed: &mut Committed, place: &Place, logs: &str, done: BTreeSet<String>) {
    committed.extend(place.attempts(logs).into_iter().filter(|(name, _)| done.contains(name)));
}

/// Fails if one of these jobs was tried again after it was committed.
fn expect_no_more_attempts(place: &Place, logs: &str, committed: &Committed) {
    let attempts: Committed = place.attempts(logs).into_iter().filter(|(name, _)| committed.contains_key(name)).collect();
    assert_eq!(attempts, *committed, "attempts now, and when they were committed");
}

#[test]
fn jobs_that_were_committed_before_a_daemon_died_are_not_tried_again() {
    let daemons = Daemons::with(CHAINS);
    let coordinator = daemons.start("coordinator");
    let worker = daemons.start("worker");
    daemons.wait_until_up();
    let build =
        Process::start(daemons.place.kiln(&[&["build", "-f", "set.nix", "--json"], &daemons.farm()[..]].concat()).stderr(Stdio::null()));
    let mut committed = Committed::new();
    let (build, done) = build_until(build, 3);
    note(&mut committed, &daemons.place, "coordinator/logs", done);
    worker.kill_9();
    let _worker = daemons.start("worker");
    // The same client goes on: it watches the coordinator, which lost nothing.
    let (build, more) = build_until(build, 3);
    note(&mut committed, &daemons.place, "coordinator/logs", more);
    coordinator.kill_9();
    let _coordinator = daemons.start("coordinator");
    // Nor does it mind that its coordinator died: it waits for the next one.
    let rest = build.finish();
    assert_eq!(rest.0, 0, "{}", rest.1);
    assert_eq!(committed.len(), 6);
    expect_no_more_attempts(&daemons.place, "coordinator/logs", &committed);
}

#[test]
fn jobs_that_were_committed_before_the_whole_farm_died_are_not_tried_again() {
    let place = Place::new(CHAINS);
    let mut committed = Committed::new();
    for count in [1, 2, 3] {
        let farm = place.up();
        let (build, done) = build_until(Process::start(place.kiln(&["build", "-f", "set.nix", "--json"]).stderr(Stdio::null())), count);
        note(&mut committed, &place, "farm/logs", done);
        farm.kill_9();
        build.kill_9();
    }
    let _farm = place.up();
    place.run(&["build", "-f", "set.nix"]).expect_success();
    assert!(committed.len() >= 3, "{committed:?}");
    expect_no_more_attempts(&place, "farm/logs", &committed);
}

#[test]
fn an_attempt_goes_on_while_its_coordinator_is_dead_and_is_committed_by_the_next() {
    // Longer than a coordinator takes to come back; if it is not, the result waits in the worker's journal, and the test holds too.
    let daemons = Daemons::with(r#"{ long = drv "long" "echo begun; ${boot}/busybox sleep 6; echo ended; echo long > $out" [ ]; }"#);
    let farm = daemons.farm();
    let coordinator = daemons.start("coordinator");
    let _worker = daemons.start("worker");
    daemons.wait_until_up();
    let mut build = Process::start(daemons.place.kiln(&[&["build", "-f", "set.nix", "--json"], &farm[..]].concat()).stderr(Stdio::null()));
    let started: serde_json::Value = serde_json::from_str(&build.wait_for_line("\"event\":\"started\"")).expect("JSON");
    let derivation = started["derivation"].as_str().expect("text").rsplit('/').next().expect("a name").to_owned();
    let attempt = started["attempt"].as_u64().expect("a number");
    let logs = daemons.place.path("coordinator/logs").join(&derivation);
    // The lease was given; its worker may not have heard of it yet, and then the attempt is another one.
    wait_for("the worker's first words", || logs.join(format!("{attempt}.log")).exists().then_some(()));
    coordinator.kill_9();
    build.kill_9();
    let _coordinator = daemons.start("coordinator");
    daemons.wait_until_up();
    let again = daemons.place.run(&[&["build", "-f", "set.nix", "--json"], &farm[..]].concat()).expect_success();
    let kept: Vec<String> = std::fs::read_dir(&logs)
        .expect("it has a log")
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(kept, [format!("{attempt}.log")], "one attempt, the first: {}", again.out());
    let log = wait_for("the whole log", || {
        let log = daemons.place.run(&[&["log", &derivation], &farm[..]].concat()).expect_success().out();
        log.contains("ended").then_some(log)
    });
    assert_eq!(log, "begun\nended\n");
}

#[test]
fn a_published_path_stays_as_it_is_where_its_derivation_is_built_again_for_another_output() {
    let set = r#"{ pair = derivation { name = "pair"; system = "x86_64-linux"; builder = "${boot}/busybox"; outputs = [ "out" "doc" ];
      args = [ "sh" "-c" "read out_id < /proc/sys/kernel/random/uuid; echo $out_id > $out; echo $out_id > $doc" ]; }; }"#;
    let place = Place::new(set);
    let farm = place.up();
    let build = || place.run(&["build", "-f", "set.nix", "-A", "pair", "--json"]).expect_success();
    let hash_of = |path: &str| place.run(&["path-info", "--json", path]).expect_success().json()[0]["narHash"].clone();
    let first = build().out();
    let last: serde_json::Value = serde_json::from_str(first.lines().last().expect("a build")).expect("JSON");
    let outputs = last["outputs"].as_object().expect("outputs").values().next().expect("of the one root").clone();
    let (out, doc) = (outputs["out"].as_str().expect("a path"), outputs["doc"].as_str().expect("a path"));
    let hashes = (hash_of(out), hash_of(doc));
    farm.interrupt();
    farm.finish();
    let hash_part = doc.rsplit('/').next().expect("a name").split('-').next().expect("a hash").to_owned();
    std::fs::remove_file(place.path(&format!("farm/store/{hash_part}.narinfo"))).expect("it was published");
    let _farm = place.up();
    assert_eq!(build().events("started"), 1, "one of its outputs is gone");
    assert_eq!(hash_of(out), hashes.0, "whoever has it has the same as others");
    assert_ne!(hash_of(doc), hashes.1, "this one was made anew");
}

#[test]
fn two_recipes_of_one_path_leave_it_as_the_first_made_it() {
    // They differ in how a fixed output below them is fetched, which changes no output path: two jobs make one path.
    let set = r#"
      let
        fetched = how: derivation { name = "fetched"; system = "x86_64-linux"; builder = "${boot}/busybox"; inherit how;
          args = [ "sh" "-c" "echo -n hello > $out" ]; outputHashAlgo = "sha256"; outputHashMode = "flat";
          outputHash = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"; };
        twin = how: drv "twin" "cat /proc/sys/kernel/random/uuid > $out" [ (fetched how) ];
      in { twins = [ (twin "one") (twin "other") ]; above = drv "above" "cat $deps > $out" [ (twin "one") ]; }"#;
    let place = Place::new(set);
    let _farm = place.up();
    let built = place.run(&["build", "-f", "set.nix", "-A", "twins", "-A", "above", "--to", "root", "--json"]).expect_success();
    let last: serde_json::Value = serde_json::from_str(built.out().lines().last().expect("a build")).expect("JSON");
    let paths: BTreeSet<String> =
        last["outputs"].as_object().expect("outputs").values().map(|outputs| outputs["out"].as_str().expect("a path").to_owned()).collect();
    let of = |name: &str| paths.iter().find(|path| path.ends_with(name)).expect("it was built").clone();
    assert_eq!((paths.len(), built.events("built")), (2, 5), "{last}");
    let text = |path: &str| std::fs::read_to_string(place.path("root").join(path.trim_start_matches('/'))).expect("it was brought");
    assert_eq!(text(&of("-twin")), text(&of("-above")), "what was built of it, was built of what there is");
}
