//! Disaster: every coordinator's disk is lost, the bucket and a backup are left, and the farm goes on. The commands are those of
//! `ops/runbooks/disaster.md`, in their order.

use crate::builds::copy_with_nix;
use crate::crashes::Daemons;
use crate::farm::{Place, Process, Ran, wait_for};
use crate::shared::{Bucket, SET, beside, share_store};

/// The runbook's commands, with this place's paths and addresses.
fn runbook(daemons: &Daemons, other: &str) -> Vec<Vec<String>> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../runbooks/disaster.md");
    let text = std::fs::read_to_string(file).expect("there is a runbook");
    let names = [
        ("/var/backups/kiln/", ""),
        ("/etc/kiln/admin", "id/admin/root"),
        ("/etc/kiln/", ""),
        ("/root/ca", "ca"),
        ("a.example.org:7420", daemons.url.trim_start_matches("kiln://")),
        ("b.example.org:7420", other),
    ];
    let localised = |line: &str| names.iter().fold(line.to_owned(), |line, (from, to)| line.replace(from, to));
    let commands = text.lines().filter_map(|line| line.strip_prefix("    ")?.trim_start().strip_prefix("kiln "));
    commands.map(|line| localised(line).split_whitespace().map(str::to_owned).collect()).collect()
}

fn follow(place: &Place, command: &[String]) -> Ran {
    place.run(&command.iter().map(String::as_str).collect::<Vec<_>>())
}

fn ask(daemons: &Daemons, words: &[&str]) -> String {
    daemons.place.run(&[words, &daemons.farm()[..]].concat()).expect_success().out()
}

fn status(daemons: &Daemons) -> serde_json::Value {
    serde_json::from_str(&ask(daemons, &["status", "--json"])).expect("JSON")
}

/// Changes a line of the coordinator's configuration.
fn configure(place: &Place, from: &str, to: &str) {
    let file = place.path("coordinator.toml");
    let text = std::fs::read_to_string(&file).expect("read");
    assert!(text.contains(from), "{from} is in {text}");
    std::fs::write(file, text.replace(from, to)).expect("write");
}

#[test]
fn a_farm_whose_coordinators_are_lost_is_restored_from_a_backup_and_the_bucket() {
    let daemons = Daemons::with(SET);
    let place = &daemons.place;
    place.run(&["ca", "issue", "--dir", "ca", "--role", "admin/root", "--out", "id/admin/root"]).expect_success();
    let bucket = Bucket::serve(&place.path("s3"));
    share_store(&daemons, &bucket);
    let (other, _) = beside(&daemons, 5);
    let steps = runbook(&daemons, &other);
    let [back_up, issue, restore, start, look, issue_other, start_other, add, back_up_again] = &steps[..] else { panic!("{steps:?}") };
    let mut coordinator = daemons.start("coordinator");
    let worker = daemons.start("worker");
    daemons.wait_until_up();
    let chain = ask(&daemons, &["build", "-f", "set.nix", "-A", "chain"]);
    worker.signal("TERM");
    assert_eq!(worker.finish().0, 0);

    // What is queued when the backup is made.
    let queued = Process::start(&mut place.kiln(&[&["build", "-f", "set.nix", "-A", "all", "--json"], &daemons.farm()[..]].concat()));
    let before = wait_for("the build is submitted", || {
        let status = status(&daemons);
        (status["builds"] != serde_json::json!([])).then_some(status)
    });
    let as_client = place.run(&[&["cluster", "backup", "farm.backup"], &daemons.farm()[..]].concat());
    assert!(as_client.code() != 0 && as_client.err().contains("admin/NAME"), "{}", as_client.err());
    follow(place, back_up).expect_success();

    // What happens after it: terms, registrations and attempts that the backup knows nothing of, and a worker that has seen them.
    for _ in 0..2 {
        coordinator.kill_9();
        coordinator = daemons.start("coordinator");
        daemons.wait_until_up();
    }
    let _worker = daemons.start("worker");
    let (code, said) = queued.finish();
    assert_eq!(code, 0, "{said}");
    assert!(status(&daemons)["term"].as_u64() > before["term"].as_u64());

    coordinator.kill_9();
    std::fs::remove_dir_all(place.path("coordinator")).expect("the disk is lost");
    refusals(place);
    follow(place, issue).expect_success();
    configure(place, "id/coordinator/1", "coordinator-4");
    configure(place, "farm = 'test'", "farm = 'test'\nnode = 4");
    let said = follow(place, restore).expect_success().out();
    assert!(said.contains("coordinator 4's, alone"), "{said}");
    let again = follow(place, restore);
    assert!(again.code() == 2 && again.err().contains("is not empty"), "{}", again.err());

    assert_eq!(start.join(" "), "coordinator --config coordinator.toml");
    let _coordinator = daemons.start("coordinator");
    daemons.wait_until_up();
    follow(place, look).expect_success();
    let after = wait_for("the worker is back and the queued build goes on to its end", || {
        let status = status(&daemons);
        (status["builds"] == serde_json::json!([]) && status["workersConnected"] == 1).then_some(status)
    });
    assert!(after["term"].as_u64() > Some(1_000_000_000), "beyond every term of the lost farm: {after}");
    let all = ask(&daemons, &["build", "-f", "set.nix", "-A", "all", "--json"]);
    assert!(!all.contains("\"event\":\"started\""), "everything is built: {all}");
    let text = |name: &str| after[name].as_str().expect("text").to_owned();
    for path in chain.lines() {
        copy_with_nix(place, &text("cacheUrl"), &text("publicKey"), path);
    }
    let failed = place.run(&[&["build", "-f", "set.nix", "-A", "broken"], &daemons.farm()[..]].concat());
    assert!(failed.code() == 1 && failed.err().contains("| this one fails"), "new builds run: {}", failed.err());

    // Its certificate was made with its configuration.
    assert_eq!(issue_other.join(" "), "ca issue --dir ca --role coordinator/5 --out coordinator-5");
    assert_eq!(start_other.join(" "), "coordinator --config coordinator.toml");
    let _other = daemons.start_as("coordinator", "coordinator-5.toml");
    wait_for("another coordinator is taken in", || (follow(place, add).code() == 0).then_some(()));
    let look = [look, &["--json".to_owned()][..]].concat();
    wait_for("it votes", || follow(place, &look).out().contains("\"state\":\"voter\"").then_some(()));
    follow(place, back_up_again).expect_success();
}

/// What must not be restored, and leaves nothing behind.
fn refusals(place: &Place) {
    let restore = |file: &str| place.run(&["cluster", "restore", file, "--config", "coordinator.toml"]);
    let used = restore("farm.backup");
    assert!(used.code() == 2 && used.err().contains("coordinator 1 was a member") && used.err().contains("2 is free"), "{}", used.err());
    let mut bytes = std::fs::read(place.path("farm.backup")).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(place.path("damaged.backup"), bytes).expect("write");
    let damaged = restore("damaged.backup");
    assert!(damaged.code() == 2 && damaged.err().contains("checksum"), "{}", damaged.err());
    configure(place, "farm = 'test'", "farm = 'other'");
    let other = restore("farm.backup");
    assert!(other.code() == 2 && other.err().contains("its farm is `test`, the configuration's `other`"), "{}", other.err());
    configure(place, "farm = 'other'", "farm = 'test'");
    assert!(!place.path("coordinator/raft").exists(), "nothing was begun");
}
