//! A real Nix that has a farm for its store: over a socket, where it reads files on this machine, and as over ssh, where it does not.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::crashes::Daemons;
use crate::farm::{Place, Process, Ran, wait_for};
use crate::nix::{Nix, RULES};

/// The version that these tests are compiled for.
fn nix() -> Nix {
    Nix::of(module_path!())
}

/// A farm, its daemon, and a Nix that knows of no other store.
struct Clients {
    daemon: Process,
    farm: Process,
    /// Goes last: the others live in it.
    place: Place,
}

/// How a client reaches the farm.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// `unix://`, with the directory that the daemon brings files to.
    Socket,
    /// `ssh-ng://`, where Nix itself starts the command for the host of this name.
    Stdio,
}

const WAYS: [Way; 2] = [Way::Socket, Way::Stdio];

impl Clients {
    fn new(set: &str) -> Self {
        let place = Place::new(set);
        let farm = place.up();
        let daemon = Self::serve(&place);
        std::fs::create_dir(place.path("conf")).expect("make directory");
        std::fs::write(place.path("conf/nix.conf"), RULES).expect("write");
        // Between client and daemon there is a process, as `ssh` and `sshd` are: a client kills it, and the daemon hears of that.
        let relay = format!("exec 3<&0\n'{}' daemon \"$@\" <&3 3<&- &\nwait $!\n", env!("CARGO_BIN_EXE_kiln"));
        std::fs::write(place.path("relay"), relay).expect("write");
        Self { daemon, farm, place }
    }

    fn serve(place: &Place) -> Process {
        let (socket, to) = (place.path("socket"), place.path("root"));
        let text = |path: &Path| path.to_str().expect("text").to_owned();
        let mut daemon = Process::start(&mut place.kiln_aloud(&["daemon", "--socket", &text(&socket), "--to", &text(&to)]));
        daemon.wait_for_line("serving Nix clients");
        daemon
    }

    fn store(&self, way: Way) -> String {
        match way {
            Way::Socket => format!("unix://{}?root={}", self.place.path("socket").display(), self.place.path("root").display()),
            Way::Stdio => format!("ssh-ng://localhost?remote-program=sh%20{}", self.place.path("relay").display()),
        }
    }

    /// Returns a store of Nix's own, which no farm knows.
    fn own(&self, name: &str) -> String {
        format!("local?root={}", self.place.path(name).display())
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.place.path("")).stdin(Stdio::null());
        command.env("NIX_CONF_DIR", self.place.path("conf")).env("HOME", self.place.path("")).env("KILN_DIR", self.place.path("farm"));
        nix().be_found(&mut command);
        for name in ["NIX_REMOTE", "NIX_PATH", "KILN_FARM", "KILN_IDENTITY"] {
            command.env_remove(name);
        }
        command
    }

    fn run(&self, program: &str, args: &[&str]) -> Ran {
        let limited = [&["--signal=KILL", "120", program], args].concat();
        Ran(self.command("timeout", &limited).output().expect("nix-bin is installed"))
    }

    /// Runs a command of Nix against the farm.
    fn nix(&self, way: Way, command: &[&str], args: &[&str]) -> Ran {
        let store = self.store(way);
        self.run(command[0], &[&command[1..], &["--store", &store], args].concat())
    }

    /// Builds an attribute of the set and returns the path.
    fn build(&self, way: Way, attribute: &str) -> String {
        let built = self.nix(way, &["nix-build"], &["set.nix", "-A", attribute, "--no-out-link"]).expect_success();
        built.out().trim().to_owned()
    }

    fn key(&self) -> String {
        self.place.beacon()["public_key"].as_str().expect("a key").to_owned()
    }
}

const SET: &str = r#"
rec {
  wide = map (i: drv "wide-${i}" "echo making ${i}; echo ${i} > $out" [ ]) (range 4);
  deep = builtins.foldl' (below: i: drv "deep-${i}" "echo on ${i}; cat $deps > $out; echo ${i} >> $out" [ below ]) (drv "bottom" "echo bottom > $out" [ ]) (range 3);
  pair = derivation { name = "pair"; system = "x86_64-linux"; builder = "${boot}/busybox"; outputs = [ "out" "doc" ];
    args = [ "sh" "-c" "echo $doc > $out; echo text > $doc" ]; };
  fixed = derivation { name = "fixed"; system = "x86_64-linux"; builder = "${boot}/busybox"; args = [ "sh" "-c" "echo -n hello > $out" ];
    outputHashAlgo = "sha256"; outputHashMode = "flat"; outputHash = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"; };
  sourced = drv "sourced" "cat $deps > $out" [ (builtins.toFile "source" "text of a file\n") ];
  phases = drv "phases" "echo '@nix {\"action\":\"setPhase\",\"phase\":\"first\"}'; echo working; echo > $out" [ ];
  bad = drv "bad" "echo line one; echo line two >&2; exit 3" [ ];
  above = drv "above" "echo > $out" [ bad ];
  beside = drv "beside" "echo beside > $out" [ ];
  endless = drv "endless" "echo begun; while :; do ${boot}/busybox sleep 1; done" [ ];
}
"#;

#[test]
fn nix_build_has_the_whole_graph_built_and_shows_it() {
    let clients = Clients::new(SET);
    let built = clients.nix(Way::Socket, &["nix-build"], &["set.nix", "-A", "deep"]).expect_success();
    let path = built.out().trim().to_owned();
    for wanted in ["these 4 derivations will be built", "-deep-2.drv' on 'local-1'", "on 0\n", "on 2\n"] {
        assert!(built.err().contains(wanted), "`{wanted}` is missing in:\n{}", built.err());
    }
    assert_eq!(std::fs::read_link(clients.place.path("result")).expect("a link").to_string_lossy(), path);
    let here = clients.place.path("root").join(path.trim_start_matches('/'));
    assert_eq!(std::fs::read_to_string(here).expect("it is on this machine"), "bottom\n0\n1\n2\n");
    // The farm and its other clients know it as their own.
    let again = clients.place.run(&["build", "-f", "set.nix", "-A", "deep", "--json"]).expect_success();
    assert_eq!(again.events("started"), 0, "{}", again.out());
    for way in WAYS {
        let again = clients.nix(way, &["nix-build"], &["set.nix", "-A", "deep", "--no-out-link"]).expect_success();
        assert_eq!((again.out().trim(), again.err().contains("building")), (path.as_str(), false), "{way:?}: {}", again.err());
    }
}

#[test]
fn nix_build_of_the_new_command_line_names_every_output() {
    let clients = Clients::new(SET);
    for (way, attribute) in [(Way::Socket, "wide.0"), (Way::Stdio, "wide.1")] {
        let args = ["-f", "set.nix", attribute, "deep", "fixed", "sourced", "-L", "--json", "--no-link"];
        let built = clients.nix(way, &["nix", "build"], &args).expect_success();
        let made = built.json();
        let outputs: Vec<&str> = (0..4).filter_map(|at| made[at]["outputs"]["out"].as_str()).collect();
        assert_eq!((outputs.len(), outputs[1].ends_with("-deep-2")), (4, true), "{made}");
        assert!(built.err().contains(&format!("> making {}", &attribute[5..])), "logs are shown: {}", built.err());
    }
    let lines = clients.nix(Way::Socket, &["nix", "build"], &["-f", "set.nix", "phases", "-L", "--no-link"]).expect_success().err();
    assert!(lines.contains("> working") && !lines.contains("@nix"), "phases are told as such: {lines}");
    // Derivations come by `nix copy` here, and not one after the other.
    let eval = clients.own("eval");
    let built =
        clients.nix(Way::Stdio, &["nix", "build"], &["--eval-store", &eval, "-f", "set.nix", "wide.2", "--no-link"]).expect_success();
    assert!(built.err().contains("-wide-2.drv' to 'ssh-ng"), "{}", built.err());
    let evaluated = clients.run("nix-instantiate", &["--store", &eval, "set.nix", "-A", "wide"]).expect_success().out();
    let derivation = evaluated.lines().find(|line| line.ends_with("-wide-3.drv")).expect("a derivation").to_owned();
    let to = clients.store(Way::Socket);
    clients.run("nix", &["copy", "--derivation", "--from", &eval, "--to", &to, &derivation]).expect_success();
    let realised = clients.nix(Way::Socket, &["nix-store"], &["-r", &derivation]).expect_success();
    assert!(realised.out().trim().ends_with("-wide-3"), "{}", realised.out());
    let pair = clients.nix(Way::Socket, &["nix-instantiate"], &["set.nix", "-A", "pair"]).expect_success().out().trim().to_owned();
    let outputs = clients.nix(Way::Socket, &["nix-store"], &["-r", &pair]).expect_success().out();
    assert_eq!(outputs.lines().count(), 2, "all outputs of a derivation: {outputs}");
}

#[test]
fn what_is_asked_about_a_path_is_what_the_farm_knows() {
    let clients = Clients::new(SET);
    let path = clients.build(Way::Socket, "deep");
    let ours = clients.place.run(&["path-info", "--json", &path]).expect_success().json();
    for way in WAYS {
        let theirs = clients.nix(way, &["nix", "path-info"], &["--json", &path]).expect_success().json();
        for field in ["narHash", "narSize", "references", "deriver"] {
            // A list once, and by path since.
            let theirs = theirs.get(0).or_else(|| theirs.get(&path)).expect("facts of the path");
            assert_eq!(theirs[field], ours[0][field], "{way:?}: {field}");
        }
        let ask = |args: &[&str]| clients.nix(way, &["nix-store"], args).expect_success().out().trim().to_owned();
        let deriver = ask(&["-q", "--deriver", &path]);
        assert!(deriver.ends_with("-deep-2.drv"), "{deriver}");
        assert_eq!(ask(&["-q", "--outputs", &deriver]), path);
        assert_eq!(ask(&["-q", "--binding", "name", &deriver]), "deep-2");
        assert!(ask(&["-q", "--requisites", &deriver]).contains("-bottom.drv"));
        assert_eq!(ask(&["-q", "--requisites", &path]), path);
        ask(&["--verify-path", &path]);
        let key = clients.key();
        clients.nix(way, &["nix", "store", "verify"], &["--sigs-needed", "1", "--trusted-public-keys", &key, "-r", &path]).expect_success();
        let inputs = ask(&["-q", "--references", &deriver]);
        let input = inputs.lines().find(|path| path.ends_with(".drv")).expect("it is made of another");
        assert!(ask(&["-q", "--referrers", input]).contains(&deriver), "{way:?}");
        let unknown = clients.nix(way, &["nix", "path-info"], &["/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar"]);
        assert!(unknown.err().contains("is not valid"), "{way:?}: {}", unknown.err());
    }
    assert_eq!(clients.nix(Way::Stdio, &["nix", "store", "cat"], &[&path]).expect_success().out(), "bottom\n0\n1\n2\n");
}

#[test]
fn paths_are_copied_from_the_farm_and_to_it() {
    let clients = Clients::new(SET);
    let path = clients.build(Way::Socket, "pair");
    let path = path.lines().next().expect("an output").to_owned();
    for (way, own) in [(Way::Socket, clients.own("nix-1")), (Way::Stdio, clients.own("nix-2"))] {
        let key = clients.key();
        clients.run("nix", &["copy", "--from", &clients.store(way), "--to", &own, "--trusted-public-keys", &key, &path]).expect_success();
        clients.run("nix-store", &["--store", &own, "--verify", "--check-contents"]).expect_success();
    }
    let own = clients.own("nix-1");
    std::fs::create_dir_all(clients.place.path("tree/d")).expect("make directory");
    std::fs::write(clients.place.path("tree/f"), vec![7; 3 << 20]).expect("write");
    std::os::unix::fs::symlink("../f", clients.place.path("tree/d/l")).expect("link");
    let added = clients.run("nix", &["store", "add-path", "--store", &own, "tree"]).expect_success().out().trim().to_owned();
    for way in WAYS {
        clients.run("nix", &["copy", "--from", &own, "--to", &clients.store(way), &added]).expect_success();
        clients.nix(way, &["nix", "store", "verify"], &[&added]).expect_success();
    }
    // Another farm did not build it: what cannot be checked by its content is not taken.
    let other = Clients::new("{ }");
    let refused = other.run("nix", &["copy", "--from", &own, "--to", &other.store(Way::Socket), "--no-check-sigs", &path]);
    assert!(refused.code() != 0 && refused.err().contains("trusted_upload_keys"), "{}", refused.err());
    other.run("nix", &["copy", "--from", &own, "--to", &other.store(Way::Socket), &added]).expect_success();
    let tree = clients.place.path("tree");
    let tree = tree.to_str().expect("text");
    for args in [&["--add-fixed", "sha512", "set.nix"][..], &["--add-fixed", "--recursive", "sha1", tree], &["--add", tree]] {
        let added = other.nix(Way::Socket, &["nix-store"], args).expect_success().out().trim().to_owned();
        other.nix(Way::Stdio, &["nix", "store", "verify"], &[&added]).expect_success();
    }
}

#[test]
fn nix_builds_in_its_own_store_with_the_farm_as_builder_of_what_the_farm_can_check() {
    let clients = Clients::new(r#"{ leaf = drv "leaf" "echo making leaf; echo leaf > $out" [ ]; }"#);
    let own = clients.own("nix");
    let builders = format!("{} x86_64-linux", clients.store(Way::Stdio));
    let state = clients.place.path("state");
    std::fs::create_dir_all(state.join("current-load")).expect("make directory");
    let args = ["--store", &own, "set.nix", "-A", "leaf", "-j0", "--builders", &builders, "--no-out-link"];
    let build = || Ran(clients.command("nix-build", &args).env("NIX_STATE_DIR", &state).output().expect("nix-bin is installed"));
    // Since a daemon says whether it trusts its client, one that is not trusted brings derivations and not recipes.
    if nix() == Nix::Installed {
        let refused = build();
        assert!(refused.code() != 0 && refused.err().contains("the farm does not have derivation"), "{}", refused.err());
    }
    let derivation = clients.run("nix-instantiate", &["--store", &own, "set.nix", "-A", "leaf"]).expect_success().out().trim().to_owned();
    if nix() == Nix::Installed {
        let to = clients.store(Way::Stdio);
        clients.run("nix", &["copy", "--derivation", "--from", &own, "--to", &to, &derivation]).expect_success();
    }
    let built = build().expect_success();
    assert!(built.err().contains("making leaf"), "its log is shown: {}", built.err());
    let path = format!("{}{}", clients.place.path("nix").display(), built.out().trim());
    assert_eq!(std::fs::read_to_string(path).expect("it was copied back"), "leaf\n");
}

#[test]
fn nix_log_shows_what_was_built_through_the_socket() {
    let clients = Clients::new(SET);
    let path = clients.build(Way::Socket, "phases");
    assert!(clients.nix(Way::Socket, &["nix-build"], &["set.nix", "-A", "bad"]).code() != 0);
    let derivation = clients.run("nix-instantiate", &["--store", &clients.own("eval"), "set.nix", "-A", "bad"]).expect_success();
    let log = |subject: &str| clients.nix(Way::Socket, &["nix", "log"], &[subject]).expect_success().out();
    assert!(log(&path).ends_with("working\n"), "{}", log(&path));
    assert_eq!(log(derivation.out().trim()), "line one\nline two\n", "of what failed, by its derivation");
}

#[test]
fn a_client_waits_as_long_as_it_says_and_others_wait_on() {
    let clients = Clients::new(SET);
    let mut other = Process::start(clients.place.kiln(&["build", "-f", "set.nix", "-A", "endless", "--json"]).stderr(Stdio::null()));
    other.wait_for_line("\"event\":\"started\"");
    for (option, said) in [("--timeout", "ran for more than 2 s"), ("--max-silent-time", "was silent for more than 2 s")] {
        let args = ["set.nix", "-A", "endless", option, "2", "--no-out-link"];
        let failed = clients.nix(Way::Socket, &["nix-build"], &args);
        assert!(failed.code() != 0 && failed.err().contains(said), "{option}: {}", failed.err());
    }
    let jobs = clients.place.run(&["jobs", "--json"]).expect_success().out();
    assert!(jobs.contains("-endless.drv") && jobs.contains("\"running\""), "who waits longer has it built: {jobs}");
    other.interrupt();
    other.finish();
}

#[test]
fn a_daemon_that_is_killed_takes_the_builds_of_its_clients_with_it() {
    let clients = Clients::new(SET);
    let mut client = clients.command("nix-build", &["set.nix", "-A", "endless", "--no-out-link", "--store", &clients.store(Way::Socket)]);
    let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nix-bin is installed");
    let status = || clients.place.run(&["status", "--json"]).expect_success().json();
    wait_for("a build that runs", || (status()["jobs"]["running"] == 1).then_some(()));
    let Clients { daemon, farm: _farm, place } = clients;
    daemon.kill_9();
    client.wait().expect("it ends");
    let status = || place.run(&["status", "--json"]).expect_success().json();
    wait_for("its end at the farm", || (status()["builds"].as_array().is_some_and(Vec::is_empty)).then_some(()));
}

#[test]
fn what_was_built_elsewhere_is_taken_where_a_trusted_key_signed_it() {
    let clients = Clients::new(SET);
    let path = clients.build(Way::Socket, "pair").lines().next().expect("an output").to_owned();
    let own = clients.own("nix-1");
    clients.run("nix", &["copy", "--from", &clients.store(Way::Socket), "--to", &own, "--no-check-sigs", &path]).expect_success();
    let daemons = Daemons::with("{ }");
    let mut config = std::fs::OpenOptions::new().append(true).open(daemons.place.path("coordinator.toml")).expect("it was written");
    writeln!(config, "trusted_upload_keys = ['{}']", clients.key()).expect("write");
    let (_coordinator, _worker) = (daemons.start("coordinator"), daemons.start("worker"));
    daemons.wait_until_up();
    let (socket, root) = (daemons.place.path("socket"), daemons.place.path("root"));
    let words = ["--socket", socket.to_str().expect("text"), "--to", root.to_str().expect("text")];
    let mut daemon = Process::start(&mut daemons.place.kiln_aloud(&[&["daemon"], &words[..], &daemons.farm()].concat()));
    daemon.wait_for_line("serving Nix clients");
    let to = format!("unix://{}?root={}", socket.display(), root.display());
    clients.run("nix", &["copy", "--no-check-sigs", "--from", &own, "--to", &to, &path]).expect_success();
    let told = clients.run("nix", &["path-info", "--json", "--sigs", "--store", &to, &path]).expect_success().out();
    let name = |key: &str| key.split(':').next().expect("a name").to_owned();
    assert!(told.contains(&format!("{}:", name(&clients.key()))), "who signed it is kept: {told}");
    let trusted = ["--sigs-needed", "2", "--trusted-public-keys"];
    let own_key = daemons.place.run(&[&["status", "--json"][..], &daemons.farm()].concat()).expect_success().json();
    let keys = format!("{} {}", clients.key(), own_key["publicKey"].as_str().expect("a key"));
    clients.run("nix", &[&["store", "verify", "--store", &to][..], &trusted, &[&keys, &path]].concat()).expect_success();
}

#[test]
fn what_is_there_is_built_again_and_held_against_what_there_is() {
    let set = r#"rec { same = drv "same" "echo same > $out" [ ]; other = drv "other" "cat /proc/sys/kernel/random/uuid > $out" [ ];
      over = drv "over" "echo over > $out" [ other ]; }"#;
    let clients = Clients::new(set);
    let early = clients.nix(Way::Socket, &["nix-build"], &["set.nix", "-A", "same", "--check", "--no-out-link"]);
    assert!(early.code() != 0 && early.err().contains("build it first"), "{}", early.err());
    let (same, other) = (clients.build(Way::Socket, "same"), clients.build(Way::Stdio, "other"));
    let content =
        || std::fs::read_to_string(clients.place.path("root").join(other.trim_start_matches('/'))).expect("it is on this machine");
    clients.build(Way::Socket, "other");
    let before = content();
    for way in WAYS {
        let checked = clients.nix(way, &["nix-build"], &["set.nix", "-A", "same", "--check", "--no-out-link"]).expect_success();
        assert!(checked.err().contains("building '/nix/store/") && checked.out().trim() == same, "{way:?}: {}", checked.err());
        clients.nix(way, &["nix", "build"], &["-f", "set.nix", "same", "--rebuild", "--no-link"]).expect_success();
        let differs = clients.nix(way, &["nix-build"], &["set.nix", "-A", "other", "--check", "--no-out-link"]);
        assert!(differs.code() != 0 && differs.err().contains("not deterministic"), "{way:?}: {}", differs.err());
        let repaired = clients.nix(way, &["nix-store"], &["-r", &same, "--repair"]);
        let is_as_it_should = match way {
            Way::Socket => repaired.code() == 0,
            // Whoever is behind it, nobody says that it is root.
            Way::Stdio => repaired.err().contains("repair: only a trusted client may ask for that"),
        };
        assert!(is_as_it_should, "{way:?}: {}", repaired.err());
    }
    clients.build(Way::Stdio, "over");
    // What is above it is checked too, with what there was; and what was asked about only here is here then.
    let args = ["set.nix", "-A", "other", "-A", "over", "--check", "--keep-going", "--no-out-link"];
    let both = clients.nix(Way::Socket, &["nix-build"], &args);
    assert!(
        both.code() != 0 && both.err().contains("not deterministic") && !both.err().contains("-over.drv` was not built"),
        "{}",
        both.err()
    );
    let over = clients.nix(Way::Socket, &["nix-build"], &["set.nix", "-A", "over", "--check", "--no-out-link"]).expect_success().out();
    assert!(clients.place.path("root").join(over.trim().trim_start_matches('/')).exists(), "{over}");
    clients.nix(Way::Socket, &["nix-store"], &["-r", &same, "--check"]).expect_success();
    let ours = clients.place.run(&["build", "-f", "set.nix", "-A", "other", "--check"]);
    assert_eq!((ours.code(), ours.err().contains("not deterministic")), (1, true), "{}", ours.err());
    clients.place.run(&["build", "-f", "set.nix", "-A", "same", "--check"]).expect_success();
    assert_eq!((clients.build(Way::Socket, "other"), content()), (other.clone(), before), "what there was stays");
    clients.nix(Way::Stdio, &["nix", "store", "verify"], &["--no-trust", &other, &same]).expect_success();
}

#[test]
fn a_failure_is_told_to_nix_with_the_end_of_its_log() {
    let clients = Clients::new(SET);
    for way in WAYS {
        for (command, args) in [(&["nix-build"][..], ["set.nix", "-A", "above"]), (&["nix", "build"], ["-f", "set.nix", "above"])] {
            let failed = clients.nix(way, command, &args);
            assert_eq!(failed.code(), 1, "{way:?} {command:?}: {}", failed.err());
            for wanted in
                ["-above.drv` was not built", "-bad.drv` failed with exit code 3", "> line one", "> line two", "kiln log /nix/store/"]
            {
                assert!(failed.err().contains(wanted), "{way:?} {command:?}: `{wanted}` is missing in:\n{}", failed.err());
            }
        }
    }
    let failed = clients.nix(Way::Socket, &["nix-build"], &["set.nix", "-A", "above", "-A", "beside", "--keep-going", "--no-out-link"]);
    assert_eq!(failed.code(), 1, "{}", failed.err());
    let after = clients.place.run(&["build", "-f", "set.nix", "-A", "beside", "--json"]).expect_success();
    assert_eq!(after.events("started"), 0, "it was built beside the failure: {}", after.out());
}

#[test]
fn a_client_that_goes_away_takes_its_build_with_it() {
    let clients = Clients::new(SET);
    let idle = || {
        let jobs = clients.place.run(&["jobs", "--json"]).expect_success().json();
        (jobs == serde_json::json!([])).then_some(())
    };
    for (way, signal) in [(Way::Socket, "INT"), (Way::Socket, "KILL"), (Way::Stdio, "INT")] {
        let script = r#"exec "$0" "$@" 2>&1"#;
        let store = clients.store(way);
        let args = ["-c", script, "nix-build", "--store", &store, "set.nix", "-A", "endless", "--no-out-link"];
        let mut build = Process::start(&mut clients.command("sh", &args));
        build.wait_for_line("begun");
        build.signal(signal);
        wait_for("the job ends", idle);
        build.kill_9();
    }
    // A daemon that stops does so too.
    let store = clients.store(Way::Socket);
    let build = Process::start(clients.command("nix-build", &["--store", &store, "set.nix", "-A", "endless"]).stderr(Stdio::null()));
    wait_for("the job runs", || {
        let jobs = clients.place.run(&["jobs", "--json"]).expect_success().json();
        (jobs[0]["state"] == "running").then_some(())
    });
    clients.daemon.signal("TERM");
    wait_for("the job ends", idle);
    assert!(!clients.place.path("socket").exists(), "its socket is gone");
    assert_eq!(build.finish().0, 1, "Nix misses its daemon");
}

#[test]
fn two_clients_that_want_the_same_share_its_build_and_its_log() {
    let clients = Clients::new(SET);
    let start = |way| {
        let store = clients.store(way);
        let script = r#"exec "$0" "$@" 2>&1"#;
        let args = ["-c", script, "nix-build", "--store", &store, "set.nix", "-A", "endless", "--no-out-link"];
        let mut build = Process::start(&mut clients.command("sh", &args));
        build.wait_for_line("begun");
        build
    };
    let (first, second) = (start(Way::Socket), start(Way::Stdio));
    let jobs = || clients.place.run(&["jobs", "--json"]).expect_success().json();
    let wanted_by = |count| (jobs()[0]["builds"].as_array().map(Vec::len) == Some(count)).then_some(());
    wanted_by(2).expect("one job of two builds");
    // What one gives up the other still wants.
    first.interrupt();
    wait_for("the first build is cancelled", || wanted_by(1));
    assert_eq!(jobs()[0]["state"], "running");
    second.interrupt();
    wait_for("the job ends", || (jobs() == serde_json::json!([])).then_some(()));
    let attempts = clients.place.attempts("farm/logs");
    assert_eq!(attempts.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [1], "it was tried once");
}

/// Says something to the daemon byte by byte, and returns all that it answers.
fn say(clients: &Clients, words: &[u64]) -> Vec<u8> {
    let mut stream = UnixStream::connect(clients.place.path("socket")).expect("the daemon listens");
    for byte in words.iter().flat_map(|word| word.to_le_bytes()) {
        stream.write_all(&[byte]).expect("it listens");
    }
    stream.shutdown(std::net::Shutdown::Write).expect("no more to say");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it answers");
    answer
}

#[test]
fn a_client_that_asks_ahead_of_a_build_gets_both_answers() {
    let clients = Clients::new(SET);
    let drv = clients.nix(Way::Socket, &["nix-instantiate"], &["set.nix", "-A", "phases"]).expect_success();
    let drv = drv.out().trim().to_owned();
    let text = |text: &str| {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    };
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    // A greeting, the order to build all outputs, and whether the derivation is there: in one go.
    let said = [words(&[0x6e69_7863, 0x122, 0, 0]), words(&[9, 1]), text(&format!("{drv}!*")), words(&[0, 1]), text(&drv)].concat();
    let mut stream = UnixStream::connect(clients.place.path("socket")).expect("the daemon listens");
    stream.set_read_timeout(Some(std::time::Duration::from_secs(120))).expect("a time");
    stream.write_all(&said).expect("it listens");
    let mut word = || {
        let mut bytes = [0; 8];
        stream.read_exact(&mut bytes).expect("it answers");
        u64::from_le_bytes(bytes)
    };
    const LAST: u64 = 0x616c_7473;
    // The ends of the notes of the greeting, of the build and of the question; an answer of one follows the last two.
    for _ in 0..3 {
        while word() != LAST {}
    }
    assert_eq!(word(), 1, "the derivation is there");
}

#[test]
fn a_stranger_is_answered_or_left_and_hurts_nobody() {
    let clients = Clients::new(SET);
    let text = |answer: &[u8]| String::from_utf8_lossy(answer).into_owned();
    let hello = [0x6e69_7863, 0x126, 0, 0, 0];
    let begin = |more: &[u64]| say(&clients, &[&hello[..], more].concat());
    // Version 1.38: no features, our name, trusted (it is the same user), the end of notes.
    let name = concat!("kiln ", env!("CARGO_PKG_VERSION"));
    let mut expected: Vec<u8> = [0x6478_696f_u64, 0x126, 0, name.len() as u64].iter().flat_map(|word| word.to_le_bytes()).collect();
    expected.extend_from_slice(name.as_bytes());
    expected.resize(expected.len().next_multiple_of(8), 0);
    expected.extend([1_u64, 0x616c_7473].iter().flat_map(|word| word.to_le_bytes()));
    assert_eq!(begin(&[]), expected);
    let table: [(&[u64], &str); 4] = [
        (&[99], "operation 99"),
        (&[26, u64::MAX], "more than"),
        (&[26, 3, 0x2f_2f_2f], "is not in the farm's store directory"),
        (&[31, 1 << 60], "more than"),
    ];
    for (words, wanted) in table {
        let answer = begin(words);
        assert!(text(&answer[expected.len()..]).contains(wanted), "{words:?}: {}", text(&answer));
    }
    // Nix 2.3 speaks 1.21: it is told, in the form that it reads.
    let old = say(&clients, &[0x6e69_7863, 0x115, 0, 0]);
    assert!(text(&old).contains("use Nix 2.8 or newer"), "{}", text(&old));
    for words in [&[0_u64][..], &[0x6e69_7863, 0x226], &[0x6e69_7863, 0x126, u64::MAX], &[]] {
        say(&clients, words);
    }
    // An addition that breaks off in the middle is not taken for a short one.
    let torn = [7, 1, 0x6e, 12, 0x6873_3a64_6578_6966, 0x3635_3261, 0, 0, 4, 0x6162];
    begin(&torn);
    assert!(clients.build(Way::Socket, "beside").ends_with("-beside"));
    clients.farm.interrupt();
    wait_for("the farm is gone", || (!clients.place.path("farm/farm.json").exists()).then_some(()));
    let away = clients.nix(Way::Socket, &["nix", "path-info"], &["/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar"]);
    assert!(away.err().contains("no farm runs"), "{}", away.err());
}

#[test]
fn a_socket_that_is_passed_is_served_and_stays_when_the_daemon_ends() {
    let clients = Clients::new(SET);
    let socket = clients.place.path("passed");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    // As systemd does: the socket as the third descriptor, and the number of the process that it is for.
    let script = r#"exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$0" daemon --to "$1" 2>&1"#;
    let root = clients.place.path("root");
    let to = root.to_str().expect("text");
    let start = || {
        let mut command = clients.command("sh", &["-c", script, env!("CARGO_BIN_EXE_kiln"), to]);
        Process::start(command.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener.try_clone().expect("a socket")))))
    };
    let store = format!("unix://{}?root={to}", socket.display());
    let build = |attribute| {
        let built = clients.run("nix-build", &["--store", &store, "set.nix", "-A", attribute, "--no-out-link"]).expect_success();
        built.out().trim().to_owned()
    };
    let mut daemon = start();
    daemon.wait_for_line("serving Nix clients");
    assert!(build("beside").ends_with("-beside"));
    daemon.signal("TERM");
    assert_eq!(daemon.finish().0, 0);
    assert!(socket.exists(), "it is its maker's");
    // A client that comes between two daemons waits for the next.
    let waiting = Process::start(&mut clients.command("nix-build", &["--store", &store, "set.nix", "-A", "fixed", "--no-out-link"]));
    let _daemon = start();
    let (code, out) = waiting.finish();
    assert_eq!((code, out.trim().ends_with("-fixed")), (0, true), "{out}");
}
