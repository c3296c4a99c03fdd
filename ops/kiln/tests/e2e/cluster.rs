//! The runbook of several coordinators, followed to the letter while a build goes on: `ops/runbooks/coordinators.md`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::crashes::Daemons;
use crate::farm::{Place, Process, wait_for};
use crate::shared::{Bucket, beside, share_store};

/// A chain that takes longer than the runbook, and something to build after each part of it.
const SET: &str = r#"
let step = name: deps: drv name "usleep 500000; cat $deps /dev/null > $out; echo ${name} >> $out" deps; in
rec {
  long = builtins.foldl' (below: i: step "long-${i}" [ below ]) (step "long" [ ]) (range 40);
  after = i: step "after-${toString i}" [ ];
  after1 = after 1; after2 = after 2; after3 = after 3; after4 = after 4; after5 = after 5;
}
"#;

/// The runbook's commands by section, with this place's paths and addresses.
fn runbook(addresses: &BTreeMap<&str, String>) -> Vec<Vec<Vec<String>>> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../runbooks/coordinators.md");
    let text = std::fs::read_to_string(file).expect("there is a runbook");
    let localised = |line: &str| {
        let line = line.replace("/etc/kiln/", "").replace("/root/ca", "ca");
        addresses.iter().fold(line, |line, (from, to)| line.replace(&format!("{from}.example.org:7420"), to))
    };
    let section = |text: &str| -> Vec<Vec<String>> {
        let commands = text.lines().filter_map(|line| line.strip_prefix("    ")?.trim_start().strip_prefix("kiln "));
        commands.map(|line| localised(line).split_whitespace().map(str::to_owned).collect()).collect()
    };
    text.split("\n## ").map(section).filter(|commands| !commands.is_empty()).collect()
}

/// Whoever follows the runbook, and the processes that were started.
struct Operator<'a> {
    daemons: &'a Daemons,
    farm: String,
    running: BTreeMap<String, Process>,
}

impl Operator<'_> {
    fn place(&self) -> &Place {
        &self.daemons.place
    }

    fn follow(&mut self, section: &[Vec<String>]) {
        for command in section {
            let words: Vec<&str> = command.iter().map(String::as_str).collect();
            match words[..] {
                ["coordinator", "--config", config] => {
                    let process = self.daemons.start_as("coordinator", config);
                    self.running.insert(config.trim_start_matches("coordinator-").trim_end_matches(".toml").to_owned(), process);
                }
                ["cluster", ..] => {
                    let words = [&words[..], &["--farm", &self.farm, "--identity", "id/admin/root"]].concat();
                    // What was just started takes a moment to listen, and what was just added a moment to be in step.
                    wait_for(&command.join(" "), || (self.place().run(&words).code() == 0).then_some(()));
                }
                _ => drop(self.place().run(&words).expect_success()),
            }
        }
    }

    /// Waits until the group is as said: each member's number and state.
    fn wait_until(&self, states: &[(u64, &str)]) {
        let words = ["cluster", "status", "--json", "--farm", &self.farm, "--identity", "id/client/me"];
        wait_for(&format!("{states:?}"), || {
            let status = self.place().run(&words);
            let status: Value = if status.code() == 0 { status.json() } else { return None };
            let members = status["coordinators"].as_array().expect("a list");
            let is_in_step = |of: &Value| of["answers"] == true && of["lagEntries"].as_u64().is_none_or(|lag| lag < 100);
            let is_as_said = |node: u64, state: &str| {
                let is_it = |of: &&Value| of["node"] == node && (of["state"] == state || state == "any" && of["state"] != "learner");
                members.iter().find(is_it).is_some_and(is_in_step)
            };
            (members.len() == states.len() && states.iter().all(|(node, state)| is_as_said(*node, state))).then_some(())
        });
    }

    fn build(&self, attribute: &str) {
        let words = ["build", "-f", "set.nix", "-A", attribute, "--farm", &self.farm, "--identity", "id/client/me"];
        self.place().run(&words).expect_success();
    }
}

#[test]
fn the_runbook_of_several_coordinators_is_followed_while_a_build_goes_on() {
    let daemons = Daemons::with(SET);
    let place = &daemons.place;
    place.run(&["ca", "issue", "--dir", "ca", "--role", "admin/root", "--out", "id/admin/root"]).expect_success();
    let bucket = Bucket::serve(&place.path("s3"));
    share_store(&daemons, &bucket);
    let first = daemons.url.trim_start_matches("kiln://").to_owned();
    let [second, third, fourth] = [2, 3, 4].map(|node| beside(&daemons, node).0);
    let moved = format!("127.0.0.1:{}", crate::farm::free_port());
    let addresses =
        BTreeMap::from([("a", first.clone()), ("b", second.clone()), ("c", third.clone()), ("d", fourth.clone()), ("e", moved.clone())]);
    let all = [&first, &second, &third, &fourth, &moved].map(String::as_str);
    let worker = std::fs::read_to_string(place.path("worker.toml")).expect("read");
    let quoted = all.map(|address| format!("'{address}'")).join(", ");
    std::fs::write(place.path("worker.toml"), worker.replace(&format!("['{first}']"), &format!("[{quoted}]"))).expect("write");
    let sections = runbook(&addresses);
    let [grow, restart, replace, relocate, shrink] = &sections[..] else { panic!("{sections:?}") };
    let mut operator = Operator { daemons: &daemons, farm: format!("kiln://{}", all.join(",")), running: BTreeMap::new() };

    let coordinator = daemons.start("coordinator");
    operator.running.insert("1".to_owned(), coordinator);
    let _worker = daemons.start("worker");
    daemons.wait_until_up();
    let words = ["build", "-f", "set.nix", "-A", "long", "--farm", &operator.farm, "--identity", "id/client/me"];
    let long = Process::start(&mut place.kiln(&words));

    operator.follow(grow);
    operator.wait_until(&[(1, "leader"), (2, "voter"), (3, "voter")]);
    operator.build("after1");

    operator.follow(restart);
    operator.wait_until(&[(1, "voter"), (2, "any"), (3, "any")]);
    for (number, config) in [("1", "coordinator.toml"), ("2", "coordinator-2.toml"), ("3", "coordinator-3.toml")] {
        let process = operator.running.remove(number).expect("it runs");
        process.signal("TERM");
        assert_eq!(process.finish().0, 0, "coordinator {number} ends in order");
        operator.running.insert(number.to_owned(), daemons.start_as("coordinator", config));
        operator.wait_until(&[(1, "any"), (2, "any"), (3, "any")]);
    }
    operator.build("after2");

    operator.running.remove("3").expect("it runs").kill_9();
    std::fs::remove_dir_all(place.path("farm-3")).expect("its disk is lost");
    operator.follow(replace);
    operator.wait_until(&[(1, "any"), (2, "any"), (4, "any")]);
    operator.build("after3");

    operator.running.remove("2").expect("it runs").kill_9();
    let config = std::fs::read_to_string(place.path("coordinator-2.toml")).expect("read");
    std::fs::write(place.path("coordinator-2.toml"), config.replace(&second, &moved)).expect("write");
    operator.follow(relocate);
    operator.wait_until(&[(1, "any"), (2, "any"), (4, "any")]);
    operator.build("after4");

    operator.follow(shrink);
    operator.wait_until(&[(2, "leader")]);
    operator.build("after5");
    let (code, said) = long.finish();
    assert_eq!(code, 0, "the long build went on through all of it: {said}");
}
