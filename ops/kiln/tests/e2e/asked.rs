//! What a real Nix asks of a farm beside a plain build, through `sshd`, the socket and the binary cache: all outputs, to build again, to build
//! nothing itself, and to check everything. Nix sends no options over `ssh-ng`, to no daemon: `--keep-going` and `--timeout` are for sockets.

use std::process::Command;

use crate::faces::Faces;
use crate::farm::{Process, Ran, wait_for};
use crate::nix::Nix;

/// The version that these tests are compiled for.
fn nix() -> Nix {
    Nix::of(module_path!())
}

const SET: &str = r#"
rec {
  leaf = drv "leaf" "echo making leaf; echo leaf > $out" [ ];
  top = drv "top" "echo making top; cat $deps > $out; echo ${leaf} >> $out" [ leaf ];
  pair = derivation { name = "pair"; system = "x86_64-linux"; builder = "${boot}/busybox"; outputs = [ "out" "doc" ];
    args = [ "sh" "-c" "echo $doc > $out; echo text > $doc" ]; };
  fixed = derivation { name = "fixed"; system = "x86_64-linux"; builder = "${boot}/busybox"; args = [ "sh" "-c" "echo -n hello > $out" ];
    outputHashAlgo = "sha256"; outputHashMode = "flat"; outputHash = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"; };
  other = drv "other" "cat /proc/sys/kernel/random/uuid > $out" [ ];
  bad = drv "bad" "echo line one; exit 3" [ ];
  beside = drv "beside" "echo beside > $out" [ ];
  endless = drv "endless" "echo begun; while :; do ${boot}/busybox sleep 1; done" [ ];
}
"#;

/// Runs `nix-build` on a store.
fn build(faces: &Faces, store: &str, args: &[&str]) -> Ran {
    faces.run(nix(), "nix-build", &[&["--store", store, "set.nix", "--no-out-link"][..], args].concat())
}

#[test]
fn what_clients_ask_of_a_store_holds_through_sshd() {
    let faces = Faces::new(SET);
    let ssh = faces.ssh();
    // Nothing is built by the client itself, whose limit is its own.
    let outputs = build(&faces, &ssh, &["-j0", "-A", "pair.all"]).expect_success().out();
    assert_eq!(outputs.lines().count(), 2, "all outputs of a derivation: {outputs}");
    let outputs: Vec<String> = outputs.lines().map(str::to_owned).collect();
    faces.copy(nix(), &ssh, "copied", &outputs);
    let failed = build(&faces, &ssh, &["-A", "bad"]);
    assert!(failed.code() == 1 && failed.err().contains("> line one"), "{}", failed.err());
    let other = build(&faces, &ssh, &["-A", "other", "-A", "leaf"]).expect_success().out();
    assert_eq!(build(&faces, &ssh, &["-A", "leaf", "--check"]).expect_success().out().lines().next(), other.lines().last());
    let differs = build(&faces, &ssh, &["-A", "other", "--check"]);
    assert!(differs.code() != 0 && differs.err().contains("not deterministic"), "{}", differs.err());
}

#[test]
fn two_clients_through_sshd_and_socket_share_a_build() {
    let faces = Faces::new(SET);
    let start = |store: &str| {
        let script = r#"exec nix-build "$@" 2>&1"#;
        let mut command: Command =
            faces.command(nix(), "sh", &["-c", script, "sh", "--store", store, "set.nix", "-A", "endless", "--no-out-link"]);
        let mut build = Process::start(&mut command);
        build.wait_for_line("begun");
        build
    };
    let clients = [start(&faces.ssh()), start(&faces.ssh()), start(&faces.socket())];
    let jobs = || faces.place.run(&["jobs", "--json"]).expect_success().json();
    assert_eq!(jobs()[0]["builds"].as_array().map(Vec::len), Some(3), "one job of three builds");
    clients.iter().for_each(|client| client.signal("INT"));
    wait_for("the job ends", || (jobs() == serde_json::json!([])).then_some(()));
    assert_eq!(faces.place.attempts("farm/logs").iter().map(|(_, count)| *count).collect::<Vec<_>>(), [1], "it was tried once");
}

#[test]
fn the_whole_store_of_a_farm_is_verified() {
    let faces = Faces::new(SET);
    let (socket, key) = (faces.socket(), faces.key());
    build(&faces, &socket, &["-A", "top", "-A", "pair", "-A", "fixed"]).expect_success();
    for store in [socket, faces.ssh()] {
        let verify = |key: &str| {
            let args = ["store", "verify", "--all", "--store", &store, "--sigs-needed", "1", "--option", "trusted-public-keys", key];
            faces.run(nix(), "nix", &args)
        };
        verify(&key).expect_success();
        let stranger = verify("stranger-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=");
        // What was built needs a signature; sources, derivations and what has a fixed output need none.
        let untrusted: Vec<_> = stranger.err().lines().filter(|line| line.contains("is untrusted")).map(str::to_owned).collect();
        let is_named = |name: &str| untrusted.iter().any(|line| line.contains(name));
        assert!(["-leaf'", "-top'", "-pair'", "-pair-doc'"].into_iter().all(is_named), "{untrusted:?}");
        assert!(untrusted.len() == 4 && stranger.code() != 0, "{}: {untrusted:?}", stranger.code());
    }
}

#[test]
fn a_nix_that_builds_nothing_takes_what_was_built_from_the_cache() {
    let faces = Faces::new(SET);
    faces.place.run(&["build", "-f", "set.nix", "-A", "top", "-A", "pair", "-A", "fixed"]).expect_success();
    let (own, cache) = (faces.own("own"), faces.cache());
    let taken = ["-j0", "--option", "substituters", &cache];
    let all = ["-A", "top", "-A", "pair.all", "-A", "fixed"];
    let built = build(&faces, &own, &[&taken[..], &all].concat()).expect_success();
    let paths: Vec<String> = built.out().lines().map(str::to_owned).collect();
    assert!(paths.len() == 4 && !built.err().contains("building"), "{}", built.err());
    let read = |path: &str| std::fs::read_to_string(format!("{}{path}", faces.at("own"))).expect("it is there");
    assert!(read(&paths[0]).starts_with("leaf\n") && read(&paths[3]) == "hello", "{paths:?}");
    faces.run(nix(), "nix-store", &["--store", &own, "--verify", "--check-contents"]).expect_success();
    faces.run(nix(), "nix", &["store", "verify", "--all", "--store", &own, "--sigs-needed", "1"]).expect_success();
    let beside = build(&faces, &own, &[&taken[..], &["-A", "beside"]].concat());
    assert!(beside.code() != 0, "what the farm does not have is built nowhere: {}", beside.out());
    let stranger = ["--option", "trusted-public-keys", "stranger-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="];
    let refused = build(&faces, &faces.own("other"), &[&taken[..], &stranger, &["-A", "top"]].concat());
    assert!(refused.code() != 0, "whose key is not trusted gives nothing: {}", refused.out());
    faces.copy(nix(), &cache, "copied", &paths);
    faces.copy(nix(), &format!("{cache}/xz"), "copied-in-xz", &paths);
    let ask = |args: &[&str]| faces.run(nix(), "nix", &[args, &["--store", &cache, &paths[0]]].concat()).expect_success().out();
    assert_eq!(ask(&["log"]), "making top\n");
    assert!(ask(&["store", "cat"]).starts_with("leaf\n"));
    assert_eq!(ask(&["path-info", "-r"]).lines().count(), 2, "it refers to another");
}

#[test]
fn the_farm_is_a_remote_builder_of_the_derivations_that_it_has() {
    let faces = Faces::new(SET);
    let (own, ssh) = (faces.own("own"), faces.ssh());
    std::fs::create_dir_all(faces.place.path("state/current-load")).expect("make directory");
    let builders = format!("{ssh} x86_64-linux");
    let remote = |attribute: &str| {
        let args = ["--store", &own, "set.nix", "-A", attribute, "-j0", "--builders", &builders, "--no-out-link"];
        let mut command = faces.command(nix(), "nix-build", &args);
        Ran(command.env("NIX_STATE_DIR", faces.place.path("state")).output().expect("nix-bin is installed"))
    };
    // One who is not trusted may not have anything built at a path of his choice: only what a derivation says, which the farm has.
    let recipe = remote("beside");
    match nix() {
        Nix::Installed => {
            assert!(recipe.code() != 0 && recipe.err().contains("the farm does not have derivation"), "{}", recipe.err());
        }
        // It is told that it is not trusted, and brings derivations.
        Nix::Debian13 => drop(recipe.expect_success()),
    }
    for attribute in ["top", "pair", "fixed"] {
        let instantiated = ["--store", &own, "set.nix", "-A", attribute];
        let derivation = faces.run(nix(), "nix-instantiate", &instantiated).expect_success().out();
        let derivation = derivation.lines().next().and_then(|line| line.split('!').next()).expect("a derivation");
        // Of what its content vouches for, the later one brings recipes only too.
        if nix() == Nix::Installed || attribute == "fixed" {
            faces.run(nix(), "nix", &["copy", "--derivation", "--from", &own, "--to", &ssh, derivation]).expect_success();
        }
        let built = remote(attribute).expect_success();
        let path = built.out().lines().next().expect("a path").to_owned();
        assert!(std::path::Path::new(&format!("{}{path}", faces.at("own"))).exists(), "{attribute}: it was copied back");
    }
    faces.run(nix(), "nix-store", &["--store", &own, "--verify", "--check-contents"]).expect_success();
    // Nor is what somebody else built taken on his word.
    let beside = build(&faces, &faces.own("alone"), &["-j1", "-A", "beside"]).expect_success().out().trim().to_owned();
    let empty = Faces::new(SET);
    let copied = empty.run(nix(), "nix", &["copy", "--from", &faces.own("alone"), "--to", &empty.ssh(), "--no-check-sigs", &beside]);
    assert!(copied.code() != 0 && copied.err().contains("does not follow from its content"), "{}", copied.err());
}
