//! The two processes of a worker: one that talks to the network and has no rights, one that has them and talks to nobody else.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::crashes::Daemons;
use crate::farm::{Process, wait_for};

const SET: &str = r#"
rec {
  tree = drv "tree" "${boot}/busybox mkdir -p $out/a/b; echo one > $out/a/b/file; ${boot}/busybox ln -s a $out/link" [ ];
  reader = drv "reader" "${boot}/busybox cat $deps/a/b/file > $out" [ tree ];
  endless = drv "endless" "echo at work; while :; do ${boot}/busybox sleep 1; done" [ ];
}
"#;

/// One line of `/proc/PID/status`.
fn status(pid: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("the kernel tells");
    line.trim().to_owned()
}

fn launcher_of(worker: u32) -> u32 {
    wait_for("the worker's launcher", || {
        let children = fs::read_to_string(format!("/proc/{worker}/task/{worker}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    })
}

/// Inodes of the sockets that a process holds.
fn sockets(pid: u32) -> BTreeSet<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").filter_map(Result::ok);
    let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.filter_map(|target| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect()
}

/// Inodes of all sockets of the internet's families on this machine.
fn network_sockets() -> BTreeSet<String> {
    let files = ["tcp", "tcp6", "udp", "udp6", "raw", "raw6"].map(|name| PathBuf::from(format!("/proc/net/{name}")));
    let text: String = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
    text.lines().filter_map(|line| line.split_whitespace().nth(9).map(str::to_owned)).collect()
}

#[test]
fn a_worker_has_no_right_and_its_launcher_no_network() {
    let daemons = Daemons::with(SET);
    let _coordinator = daemons.start("coordinator");
    let worker = daemons.start("worker");
    daemons.wait_until_up();
    let place = &daemons.place;
    // What is built is kept, moved and shown to the next build by one who is not root.
    place.run(&[&["build", "-f", "set.nix", "-A", "tree"], &daemons.farm()[..]].concat()).expect_success();
    place.run(&[&["build", "-f", "set.nix", "-A", "reader"], &daemons.farm()[..]].concat()).expect_success();

    let (pid, launcher) = (worker.id(), launcher_of(worker.id()));
    let user = status(pid, "Uid");
    assert!(!user.split_whitespace().any(|id| id == "0"), "{user}");
    for (name, value) in
        [("CapEff", "0000000000000000"), ("CapPrm", "0000000000000000"), ("Groups", ""), ("NoNewPrivs", "1"), ("Seccomp", "2")]
    {
        assert_eq!(status(pid, name), value, "{name} of the worker");
    }
    assert!(status(launcher, "Uid").starts_with('0'), "somebody must be root");
    let network = network_sockets();
    assert!(!network.is_disjoint(&sockets(pid)), "the worker talks to the farm");
    assert!(network.is_disjoint(&sockets(launcher)), "the launcher talks to its worker only");
    let workers = place.run(&[&["workers", "--json"], &daemons.farm()[..]].concat()).expect_success().json();
    let promised = workers[0]["guarantees"]["worker"].as_str().expect("it is said").to_owned();
    assert!(promised.contains("without capabilities, system calls by list"), "{promised}");
}

#[test]
fn a_worker_whose_launcher_was_killed_ends_and_says_why_and_no_build_outlives_it() {
    let daemons = Daemons::with(SET);
    let _coordinator = daemons.start("coordinator");
    let mut worker = Process::start(&mut daemons.place.kiln_aloud(&["worker", "--config", "worker.toml"]));
    daemons.wait_until_up();
    let words = [&["build", "-f", "set.nix", "-A", "endless", "--json"], &daemons.farm()[..]].concat();
    let mut build = Process::start(&mut daemons.place.kiln(&words));
    build.wait_for_line("\"event\":\"started\"");
    let launcher = launcher_of(worker.id());
    let builder: u32 = wait_for("the builder", || {
        let tasks = fs::read_dir(format!("/proc/{launcher}/task")).ok()?.filter_map(Result::ok);
        let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok()).collect::<String>();
        children.split_whitespace().next()?.parse().ok()
    });
    assert!(Command::new("sh").args(["-c", &format!("kill -KILL {launcher}")]).status().expect("there is a shell").success());
    worker.wait_for_line("launcher ended");
    let (code, rest) = worker.finish();
    assert_eq!(code, 1, "{rest}");
    wait_for("the builder's end", || (!PathBuf::from(format!("/proc/{builder}")).exists()).then_some(()));
    build.interrupt();
    build.finish();
}
