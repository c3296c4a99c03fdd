//! A farm with every face that a Nix can meet, at once: a socket, a real `sshd`, a build hook and the binary cache.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::farm::{Place, Process, Ran};
use crate::nix::{Nix, RULES};
use crate::ssh::Sshd;

/// A farm and its faces.
pub struct Faces {
    sshd: Sshd,
    _daemon: Process,
    _farm: Process,
    /// Goes last: the others live in it.
    pub place: Place,
}

impl Faces {
    /// Starts a farm, its daemon and an `sshd`.
    pub fn new(set: &str) -> Self {
        let place = Place::new(set);
        let farm = place.up();
        let text = |below: &str| place.path(below).to_str().expect("text").to_owned();
        let mut daemon = Process::start(&mut place.kiln_aloud(&["daemon", "--socket", &text("socket"), "--to", &text("root")]));
        daemon.wait_for_line("serving Nix clients");
        std::fs::create_dir(place.path("conf")).expect("make directory");
        let key = place.beacon()["public_key"].as_str().expect("a key").to_owned();
        let rules = format!("{RULES}build-users-group =\nsandbox = false\ntrusted-public-keys = {key}\n");
        std::fs::write(place.path("conf/nix.conf"), rules).expect("write");
        let kiln = env!("CARGO_BIN_EXE_kiln");
        let hook = format!("#!/bin/sh\nexec {kiln} build-hook --config {} --locks {} \"$@\"\n", text("none"), text("locks"));
        std::fs::write(place.path("hook"), hook).expect("write");
        std::fs::set_permissions(place.path("hook"), PermissionsExt::from_mode(0o755)).expect("make it executable");
        Self { sshd: Sshd::serve(&place), _daemon: daemon, _farm: farm, place }
    }

    /// Returns a path below the directory, as text.
    pub fn at(&self, below: &str) -> String {
        self.place.path(below).to_str().expect("text").to_owned()
    }

    /// The farm as a store, through its socket. What it makes is brought below `root`.
    pub fn socket(&self) -> String {
        format!("unix://{}?root={}", self.at("socket"), self.at("root"))
    }

    /// The farm as a store, through `sshd`.
    pub fn ssh(&self) -> String {
        self.sshd.store.clone()
    }

    /// The farm as a binary cache.
    pub fn cache(&self) -> String {
        self.place.beacon()["cache"].as_str().expect("an address").to_owned()
    }

    /// The farm's key.
    pub fn key(&self) -> String {
        self.place.beacon()["public_key"].as_str().expect("a key").to_owned()
    }

    /// A store of Nix's own, which no farm knows.
    pub fn own(&self, name: &str) -> String {
        format!("local?root={}", self.at(name))
    }

    /// Returns a command of a Nix.
    pub fn command(&self, nix: Nix, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "600", program]).args(args).current_dir(self.place.path("")).stdin(Stdio::null());
        command.env("NIX_CONF_DIR", self.place.path("conf")).env("HOME", self.place.path("")).env("KILN_DIR", self.place.path("farm"));
        command.env("NIX_SSHOPTS", &self.sshd.options);
        nix.be_found(&mut command);
        for name in ["NIX_REMOTE", "NIX_PATH", "KILN_FARM", "KILN_IDENTITY"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs a command of a Nix to its end.
    pub fn run(&self, nix: Nix, program: &str, args: &[&str]) -> Ran {
        Ran(self.command(nix, program, args).output().expect("nix-bin is installed"))
    }

    /// Copies paths to a store of Nix's own, and has it check all that it has then: contents, and who signed them.
    pub fn copy(&self, nix: Nix, from: &str, to: &str, paths: &[String]) {
        let to = self.own(to);
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        self.run(nix, "nix", &[&["copy", "--from", from, "--to", &to][..], &paths].concat()).expect_success();
        self.run(nix, "nix-store", &["--store", &to, "--verify", "--check-contents"]).expect_success();
        self.run(nix, "nix", &["store", "verify", "--all", "--store", &to, "--sigs-needed", "1"]).expect_success();
    }
}
