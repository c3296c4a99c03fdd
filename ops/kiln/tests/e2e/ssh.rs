//! A real Nix that reaches a farm through a real `sshd`, which starts the daemon for each client.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::farm::{Place, Process, Ran, wait_for};
use crate::nix::{Nix, RULES};

/// The version that these tests are compiled for.
fn nix() -> Nix {
    Nix::of(module_path!())
}

/// An `sshd` on loopback that starts the daemon of a farm for each client.
pub struct Sshd {
    _process: Process,
    /// How Nix names the farm as a store.
    pub store: String,
    /// What a client of it needs in `NIX_SSHOPTS`.
    pub options: String,
}

impl Sshd {
    /// Serves the farm of a place.
    pub fn serve(place: &Place) -> Self {
        let text = |below: &str| place.path(below).to_str().expect("text").to_owned();
        for key in ["host", "client"] {
            let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &text(key)]).status();
            assert!(made.expect("openssh-client is installed").success());
        }
        std::fs::copy(place.path("client.pub"), place.path("authorized")).expect("copy");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("loopback has ports").port();
        let rules = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\nMaxStartups 100\nMaxSessions 100\n",
            text("host"),
            text("authorized")
        );
        std::fs::write(place.path("sshd_config"), rules).expect("write");
        // What its package makes at boot.
        std::fs::create_dir_all("/run/sshd").expect("make directory");
        let script = r#"exec /usr/sbin/sshd -D -e -f "$0" 2>&1"#;
        let mut sshd = Process::start(Command::new("sh").args(["-c", script, &text("sshd_config")]).stdin(Stdio::null()));
        sshd.wait_for_line("Server listening");
        let program =
            format!("#!/bin/sh\nunset KILN_FARM\nKILN_DIR='{}' exec '{}' daemon \"$@\"\n", text("farm"), env!("CARGO_BIN_EXE_kiln"));
        std::fs::write(place.path("program"), program).expect("write");
        std::fs::set_permissions(place.path("program"), PermissionsExt::from_mode(0o755)).expect("make it executable");
        let options = format!(
            "-F /dev/null -p {port} -i {} -o StrictHostKeyChecking=no -o UserKnownHostsFile={} -o LogLevel=ERROR",
            text("client"),
            text("known_hosts")
        );
        Self { _process: sshd, store: format!("ssh-ng://root@127.0.0.1?remote-program={}", text("program")), options }
    }
}

/// A farm behind an `sshd` on loopback.
struct Remote {
    sshd: Sshd,
    _farm: Process,
    /// Goes last: the others live in it.
    place: Place,
}

impl Remote {
    fn new(set: &str) -> Self {
        let place = Place::new(set);
        let farm = place.up();
        std::fs::create_dir(place.path("conf")).expect("make directory");
        std::fs::write(place.path("conf/nix.conf"), format!("{RULES}build-users-group =\n")).expect("write");
        Self { sshd: Sshd::serve(&place), _farm: farm, place }
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "120", program]).args(args).current_dir(self.place.path("")).stdin(Stdio::null());
        command.env("NIX_CONF_DIR", self.place.path("conf")).env("HOME", self.place.path("")).env("NIX_SSHOPTS", &self.sshd.options);
        nix().be_found(&mut command);
        for name in ["NIX_REMOTE", "NIX_PATH", "KILN_FARM", "KILN_IDENTITY", "KILN_DIR"] {
            command.env_remove(name);
        }
        command
    }

    fn run(&self, program: &str, args: &[&str]) -> Ran {
        Ran(self.command(program, args).output().expect("nix-bin is installed"))
    }

    fn own(&self) -> String {
        format!("local?root={}", self.place.path("nix").display())
    }
}

const SET: &str = r#"
rec {
  leaf = drv "leaf" "echo making leaf; echo leaf > $out" [ ];
  top = drv "top" "echo making top; cat $deps > $out; echo top >> $out" [ leaf ];
  bad = drv "bad" "echo line one; exit 3" [ ];
  endless = drv "endless" "echo begun; while :; do ${boot}/busybox sleep 1; done" [ ];
}
"#;

#[test]
fn nix_builds_and_copies_through_a_real_sshd() {
    let remote = Remote::new(SET);
    let store = remote.sshd.store.as_str();
    let built =
        remote.run("nix", &["build", "--store", store, "--eval-store", &remote.own(), "-f", "set.nix", "top", "-L", "--no-link", "--json"]);
    let built = built.expect_success();
    let path = built.json()[0]["outputs"]["out"].as_str().expect("a path").to_owned();
    assert!(built.err().contains("> making top"), "{}", built.err());
    let key = remote.place.beacon()["public_key"].as_str().expect("a key").to_owned();
    let own = remote.own();
    remote.run("nix", &["copy", "--from", store, "--to", &own, "--trusted-public-keys", &key, &path]).expect_success();
    remote.run("nix-store", &["--store", &own, "--verify", "--check-contents"]).expect_success();
    remote.run("nix", &["store", "verify", "--store", &own, "--sigs-needed", "1", "--trusted-public-keys", &key, &path]).expect_success();
    let here = format!("{}{path}", remote.place.path("nix").display());
    assert_eq!(std::fs::read_to_string(here).expect("it was copied"), "leaf\ntop\n");
    std::fs::write(remote.place.path("file"), "bytes\n").expect("write");
    let added = remote.run("nix", &["store", "add-path", "--store", &own, "file"]).expect_success().out().trim().to_owned();
    remote.run("nix", &["copy", "--from", &own, "--to", store, &added]).expect_success();
    assert_eq!(remote.run("nix", &["store", "cat", "--store", store, &added]).expect_success().out(), "bytes\n");
    let failed = remote.run("nix-build", &["--store", store, "set.nix", "-A", "bad"]);
    assert!(failed.code() == 1 && failed.err().contains("> line one"), "{}", failed.err());
}

#[test]
fn a_client_that_is_interrupted_takes_its_build_with_it_through_sshd() {
    let remote = Remote::new(SET);
    let script = r#"exec nix-build "$@" 2>&1"#;
    let mut command =
        remote.command("sh", &["-c", script, "sh", "--store", &remote.sshd.store, "set.nix", "-A", "endless", "--no-out-link"]);
    let mut build = Process::start(&mut command);
    build.wait_for_line("begun");
    build.signal("INT");
    wait_for("the job ends", || (remote.place.run(&["jobs", "--json"]).expect_success().json() == serde_json::json!([])).then_some(()));
}

#[test]
fn the_farm_is_a_builder_behind_sshd_of_what_it_has_the_derivations_of() {
    let remote = Remote::new(SET);
    let own = remote.own();
    let state = remote.place.path("state");
    std::fs::create_dir_all(state.join("current-load")).expect("make directory");
    let derivation = remote.run("nix-instantiate", &["--store", &own, "set.nix", "-A", "top"]).expect_success().out().trim().to_owned();
    if nix() == Nix::Installed {
        // A later Nix does so by itself, for a daemon that does not trust it.
        remote.run("nix", &["copy", "--derivation", "--from", &own, "--to", &remote.sshd.store, &derivation]).expect_success();
    }
    let builders = format!("{} x86_64-linux", remote.sshd.store);
    let args = ["--store", &own, "set.nix", "-A", "top", "-j0", "--builders", &builders, "--no-out-link"];
    let built =
        Ran(remote.command("nix-build", &args).env("NIX_STATE_DIR", &state).output().expect("nix-bin is installed")).expect_success();
    let path = format!("{}{}", remote.place.path("nix").display(), built.out().trim());
    assert_eq!(std::fs::read_to_string(path).expect("it was copied back"), "leaf\ntop\n");
}
