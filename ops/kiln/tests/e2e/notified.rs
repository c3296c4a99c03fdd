//! People are told what happens, by webhook: builds that end and what they break, and that nobody leads. (A quarantine: [`crate::quarantined`].)

use serde_json::{Value, json};

use crate::crashes::Daemons;
use crate::farm::{Process, Ran, wait_for};
use crate::receiver::Receiver;
use crate::shared::{Bucket, beside, share_store};

/// What the set is of a night: `flaky` breaks in the second.
const SET: &str = r#"
let when = builtins.getEnv "NIGHT"; in
rec {
  good = drv "good-1.${when}" "echo good > $out" [ ];
  flaky = drv "flaky-1.${when}" (if when == "2" then "exit 1" else "echo fine > $out") [ ];
}
"#;

/// Has a receiver told by the first of these daemons, and whoever stands beside it.
fn configure(daemons: &Daemons, receiver: &Receiver, more: &str) {
    let file = daemons.place.path("coordinator.toml");
    let text = std::fs::read_to_string(&file).expect("read");
    std::fs::write(file, text + &receiver.configured(&daemons.place, more)).expect("write");
}

fn build(daemons: &Daemons, night: &str) -> Ran {
    let words = ["build", "-f", "set.nix", "-A", "good", "-A", "flaky", "--name", "nightly", "--keep-going", "--json"];
    let mut command = daemons.place.kiln(&[&words, &daemons.farm()[..]].concat());
    Ran(command.env("NIGHT", night).output().expect("the binary runs"))
}

fn number(ran: &Ran) -> Value {
    let last: Value = ran.out().lines().last().and_then(|line| serde_json::from_str(line).ok()).expect("the build");
    last["build"].clone()
}

#[test]
fn a_receiver_that_fails_at_first_hears_of_builds_in_order_and_of_what_they_break() {
    let daemons = Daemons::with(SET);
    let place = &daemons.place;
    let receiver = Receiver::listen(place, true);
    configure(&daemons, &receiver, "");
    let coordinator = daemons.start("coordinator");
    let _worker = daemons.start("worker");
    daemons.wait_until_up();
    // Where a receiver is, is for administrators.
    place.run(&["ca", "issue", "--dir", "ca", "--role", "admin/root", "--out", "id/admin/root"]).expect_success();
    // Who is new is told of what happens from then on, so that it must be known first.
    let farm = daemons.farm();
    wait_for("the receiver is known", || place.run(&[&["status"], &farm[..]].concat()).out().contains("webhook chat").then_some(()));

    let first = build(&daemons, "1");
    assert_eq!(first.code(), 0, "{}", first.err());
    let (refused, again) = (receiver.next(), receiver.next());
    assert_eq!((refused.status, again.status, &refused.id), (500, 204, &again.id), "the same again");
    assert_eq!((&again.body["type"], &again.body["data"]["build"]), (&json!("build.finished"), &number(&first)));
    assert_eq!((&again.body["data"]["name"], &again.body["data"]["state"]), (&json!("nightly"), &json!("built")));

    let second = build(&daemons, "2");
    assert_eq!(second.code(), 1, "{}", second.err());
    let (finished, failing) = (receiver.next(), receiver.next());
    assert_eq!((&finished.body["type"], &finished.body["data"]["state"]), (&json!("build.finished"), &json!("failed")));
    assert_eq!(failing.body["type"], "build.newly-failing", "{failing:?}");
    let data = &failing.body["data"];
    assert_eq!((&data["build"], &data["before"]["build"]), (&number(&second), &number(&first)));
    assert_eq!((&data["newlyFailing"][0]["attributes"], &data["newlyUnbuiltAttributes"]), (&json!(["flaky"]), &json!(["flaky"])));

    // A leader that comes back knows what was told.
    let wanted = wait_for("what was told is noted", || {
        let admin = ["status", "--json", "--farm", &daemons.url, "--identity", "id/admin/root"];
        let status = place.run(&admin).expect_success().json();
        let chat = status["webhooks"][0].clone();
        (chat["delivered"] == 3 && chat["waiting"] == 0).then_some(chat)
    });
    assert_eq!((&wanted["name"], &wanted["host"], &wanted["error"]), (&json!("chat"), &json!(receiver.address), &Value::Null));
    assert_eq!(coordinator_ends(coordinator), 0);
    let _coordinator = daemons.start("coordinator");
    daemons.wait_until_up();
    let third = build(&daemons, "1");
    let told = receiver.next();
    assert_eq!((&told.body["type"], &told.body["data"]["build"]), (&json!("build.finished"), &number(&third)), "and nothing else is new");
    let log = std::fs::read_to_string(place.path("daemons.log")).expect("a log");
    assert!(!log.contains(&receiver.secret()) && !log.contains("t0k3n"), "a secret is in the log");
}

fn coordinator_ends(coordinator: Process) -> i32 {
    coordinator.signal("TERM");
    coordinator.finish().0
}

#[test]
fn that_nobody_leads_is_told_by_who_is_left() {
    let mut daemons = Daemons::with(SET);
    let bucket = Bucket::serve(&daemons.place.path("s3"));
    let receiver = Receiver::listen(&daemons.place, false);
    share_store(&daemons, &bucket);
    configure(&daemons, &receiver, "events = ['farm.no-leader']\nno_leader_seconds = 1\n");
    daemons.place.run(&["ca", "issue", "--dir", "ca", "--role", "admin/root", "--out", "id/admin/root"]).expect_success();
    let first = daemons.start("coordinator");
    daemons.wait_until_up();
    let mut others = Vec::new();
    for node in [2, 3] {
        let (link, _) = beside(&daemons, node);
        others.push(daemons.start_as("coordinator", &format!("coordinator-{node}.toml")));
        let words = ["cluster", "add", &node.to_string(), &link, "--farm", &daemons.url, "--identity", "id/admin/root"];
        wait_for("it is taken in", || (daemons.place.run(&words).code() == 0).then_some(()));
        daemons.url = format!("{},{link}", daemons.url);
    }
    wait_for("everybody votes", || {
        let words = ["cluster", "status", "--json", "--farm", &daemons.url, "--identity", "id/client/me"];
        (daemons.place.run(&words).out().matches("\"state\":\"voter\"").count() == 2).then_some(())
    });
    let _last = others.pop().expect("two were started");
    others.into_iter().chain([first]).for_each(Process::kill_9);
    // Whoever was killed last may have missed a leader for a moment before.
    let told = receiver.next_where(|told| told.body["type"] == "farm.no-leader" && told.body["data"]["seenBy"] == 3);
    assert_eq!(told.body["data"]["farm"], "test", "{told:?}");
    assert!(told.id.starts_with("test-no-leader-"), "{told:?}");
}
