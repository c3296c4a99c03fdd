//! Content-addressed derivations: built by a farm and by a real Nix, asked for by a real Nix, and not built where nothing changed.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::farm::{Place, Process, Ran};
use crate::nix::Nix;

/// A farm with the store directory of a Nix whose every directory is the test's own and that builds without a sandbox.
pub struct Addressed {
    pub farm: Process,
    pub place: Place,
    nix: Nix,
}

const FEATURES: &str = "nix-command ca-derivations impure-derivations";

/// What differs between the runs of a test, and changes no output, stands in a file.
const SET: &str = r#"
rec {
  salt = builtins.readFile ./salt;
  addressed = name: script: more: derivation ({
    inherit name; system = "x86_64-linux"; builder = "${boot}/busybox"; args = [ "sh" "-c" script ];
    __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";
  } // more);
  plain = name: script: derivation { inherit name; system = "x86_64-linux"; builder = "${boot}/busybox"; args = [ "sh" "-c" script ]; };
  chain = make: rec {
    base = make "base" "echo base > $out # ${salt}" { };
    middle = make "middle" "${boot}/busybox mkdir $out; echo ${base} > $out/base; echo $out > $out/self" { };
    wide = map (i: make "wide-${i}" "read at < ${middle}/base; echo $at ${i} > $out" { }) (range 4);
    top = make "top" "for one in ${toString wide}; do read line < $one; echo $line; done > $out" { };
  };
  floating = chain addressed;
  known = chain (name: script: more: plain name script);
  many = addressed "many" "echo $lib > $out; echo $out >> $out; echo $out > $dev; echo lib > $lib" { outputs = [ "out" "dev" "lib" ]; };
  user = addressed "user" "echo ${many.dev} ${many.lib} > $out" { };
  flat = addressed "flat" "echo -n text > $out" { outputHashMode = "flat"; };
  longer = addressed "longer" "echo longer > $out # ${floating.top}" { outputHashAlgo = "sha512"; };
  deferred = plain "deferred" "echo ${floating.middle} > $out; echo $out >> $out";
  above = plain "above" "echo ${deferred} > $out";
  fixed = derivation { name = "fixed"; system = "x86_64-linux"; builder = "${boot}/busybox"; args = [ "sh" "-c" "echo hello > $out # ${floating.base}" ];
    outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"; };
  structured = derivation { name = "structured"; system = "x86_64-linux"; builder = "${boot}/busybox"; __structuredAttrs = true;
    args = [ "sh" "-c" ''
      out=$(${boot}/busybox sed -n 's/.*"outputs":{"out":"\([^"]*\)".*/\1/p' $NIX_ATTRS_JSON_FILE); echo ${floating.base} > $out
    '' ]; wanted = [ floating.base ];
    __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; };
  impure = derivation { name = "impure"; system = "x86_64-linux"; builder = "${boot}/busybox"; __impure = true;
    args = [ "sh" "-c" "read id < /proc/sys/kernel/random/uuid; echo $id > $out" ]; outputHashMode = "recursive"; outputHashAlgo = "sha256"; };
  again = derivation { name = "again"; system = "x86_64-linux"; builder = "${boot}/busybox"; __impure = true;
    args = [ "sh" "-c" "read id < ${impure}; echo $id > $out" ]; outputHashMode = "recursive"; outputHashAlgo = "sha256"; };
  trusting = plain "trusting" "echo ${impure} > $out";
  cyclic = addressed "cyclic" "echo $dev > $out; echo $out > $dev" { outputs = [ "out" "dev" ]; };
}
"#;

impl Addressed {
    fn new() -> Self {
        Self::with(SET, Nix::Installed)
    }

    pub fn with(set: &str, nix: Nix) -> Self {
        let place = Place::new(set);
        std::fs::write(place.path("salt"), "first").expect("write");
        std::fs::create_dir(place.path("conf")).expect("make directory");
        let more = if nix == Nix::Debian13 { "git-hashing" } else { "" };
        let rules = format!("sandbox = false\nbuild-users-group =\nsubstituters =\nexperimental-features = {FEATURES} {more}\n");
        std::fs::write(place.path("conf/nix.conf"), rules).expect("write");
        let farm = place.up_with(&["--store-dir", place.path("nix/store").to_str().expect("text")]);
        Self { farm, place, nix }
    }

    pub fn command(&self, program: &str, args: &[&str], root: &str) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "120", program]).args(args).current_dir(self.place.path("")).stdin(Stdio::null());
        command.env("NIX_STORE_DIR", self.place.path("nix/store")).env("NIX_STATE_DIR", self.place.path(root).join("state"));
        command.env("NIX_LOG_DIR", self.place.path(root).join("log")).env("NIX_CONF_DIR", self.place.path("conf"));
        command.env("HOME", self.place.path("home")).env("KILN_DIR", self.place.path("farm")).env("NIX_REMOTE", "local");
        self.nix.be_found(&mut command);
        command.env_remove("NIX_PATH").env_remove("KILN_FARM").env_remove("KILN_IDENTITY");
        command
    }

    /// Runs a Nix that has only itself.
    pub fn nix(&self, program: &str, args: &[&str]) -> Ran {
        Ran(self.command(program, args, "nix").output().expect("nix-bin is installed"))
    }

    pub fn instantiate(&self, attribute: &str) -> String {
        let shown = self.nix("nix-instantiate", &["set.nix", "-A", attribute]).expect_success();
        shown.out().lines().next().expect("a derivation").split('!').next().expect("a path").to_owned()
    }

    /// Has the farm build a derivation; returns its output paths, and how many builders ran.
    pub fn farm(&self, derivation: &str) -> (Vec<String>, usize) {
        let built = self.place.run(&["build", derivation, "--json"]).expect_success();
        let last: Value = serde_json::from_str(built.out().lines().last().expect("a build")).expect("JSON");
        let paths = last["paths"].as_array().expect("a list").iter().map(|path| path.as_str().expect("a path").to_owned());
        (paths.collect(), built.events("started"))
    }

    fn get(&self, path: &str) -> String {
        let cache = self.place.beacon()["cache"].as_str().expect("an address").to_owned();
        let host = cache.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let mut stream = TcpStream::connect(&host).expect("connects");
        write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("asks");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
        body.to_owned()
    }
}

#[test]
fn what_a_farm_makes_is_where_nix_puts_it_and_nix_finds_how_it_came_to_be() {
    let addressed = Addressed::new();
    for attribute in ["floating.top", "many", "user", "flat", "longer", "deferred", "above", "fixed", "structured"] {
        let derivation = addressed.instantiate(attribute);
        let (mut ours, _) = addressed.farm(&derivation);
        let (again, started) = addressed.farm(&derivation);
        assert_eq!((&again, started), (&ours, 0), "{attribute} is there");
        let theirs = addressed.nix("nix-store", &["--realise", &derivation]).expect_success().out();
        let mut theirs: Vec<String> = theirs.lines().map(str::to_owned).collect();
        ours.sort();
        theirs.sort();
        assert_eq!(ours, theirs, "{attribute}");
        let paths: Vec<&str> = ours.iter().map(String::as_str).collect();
        let theirs = addressed.nix("nix", &[&["path-info", "--json"][..], &paths].concat()).expect_success().json();
        let ours = addressed.place.run(&[&["path-info", "--json"][..], &paths].concat()).expect_success().json();
        for (ours, theirs) in ours.as_array().expect("a list").iter().zip(theirs.as_array().expect("a list")) {
            assert_eq!((&ours["path"], &ours["narHash"], &ours["ca"]), (&theirs["path"], &theirs["narHash"], &theirs["ca"]), "{attribute}");
        }
        if attribute == "fixed" {
            continue;
        }
        let known = addressed.nix("nix", &["realisation", "info", "--json", &derivation]).expect_success().json();
        for theirs in known.as_array().expect("a list") {
            let id = theirs["id"].as_str().expect("an id");
            let ours: Value = serde_json::from_str(&addressed.get(&format!("realisations/{id}.doi"))).expect("JSON");
            assert_eq!((&ours["id"], &ours["outPath"]), (&theirs["id"], &theirs["outPath"]), "{attribute}");
            let (name, output) = (derivation.rsplit('/').next().expect("a name"), id.rsplit('!').next().expect("an output"));
            let later: Value = serde_json::from_str(&addressed.get(&format!("build-trace-v2/{name}/{output}.doi"))).expect("JSON");
            assert_eq!(later["outPath"], theirs["outPath"], "{attribute}");
        }
    }
}

#[test]
fn nix_takes_what_the_farm_made_by_its_realisations() {
    let addressed = Addressed::new();
    let (cache, key) = (addressed.place.beacon()["cache"].clone(), addressed.place.beacon()["public_key"].clone());
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    for attribute in ["floating.top", "user", "above"] {
        let derivation = addressed.instantiate(attribute);
        let (ours, _) = addressed.farm(&derivation);
        let trust = ["--option", "trusted-public-keys", &text(&key), "--option", "substituters", &text(&cache)].map(str::to_owned);
        let trust: Vec<&str> = trust.iter().map(String::as_str).collect();
        let args = [&["--realise", &derivation, "--max-jobs", "0"][..], &trust].concat();
        let taken = addressed.nix("nix-store", &args).expect_success();
        assert_eq!(taken.out().lines().collect::<Vec<_>>(), ours, "{attribute}");
    }
}

#[test]
fn a_changed_base_whose_content_is_the_same_is_all_that_is_built() {
    let addressed = Addressed::new();
    let mut counts = Vec::new();
    for chain in ["floating", "known"] {
        let top = format!("{chain}.top");
        std::fs::write(addressed.place.path("salt"), "first").expect("write");
        let (first, all) = addressed.farm(&addressed.instantiate(&top));
        std::fs::write(addressed.place.path("salt"), "second").expect("write");
        let (second, changed) = addressed.farm(&addressed.instantiate(&top));
        counts.push((all, changed, first == second));
    }
    assert_eq!(counts, [(7, 1, true), (7, 7, false)], "with and without early cutoff");
}

#[test]
fn what_makes_no_sense_is_refused_with_the_reason() {
    let addressed = Addressed::new();
    for (attribute, wanted) in [("cyclic", "cycle detected"), ("trusting", "which is impure")] {
        let refused = addressed.place.run(&["build", &addressed.instantiate(attribute)]);
        assert!(refused.code() != 0 && refused.err().contains(wanted), "{attribute}: {}", refused.err());
    }
}

#[test]
fn what_is_impure_is_made_anew_each_time() {
    let addressed = Addressed::new();
    let derivation = addressed.instantiate("again");
    let built: Vec<_> = (0..2).map(|_| addressed.farm(&derivation)).collect();
    assert_eq!((built[0].1, built[1].1), (2, 2));
    assert_ne!(built[0].0, built[1].0);
}

#[test]
fn nix_itself_has_them_built() {
    let addressed = Addressed::new();
    let (socket, to) = (addressed.place.path("socket"), addressed.place.path("root"));
    let text = |path: &PathBuf| path.to_str().expect("text").to_owned();
    let mut daemon = Process::start(&mut addressed.place.kiln_aloud(&["daemon", "--socket", &text(&socket), "--to", &text(&to)]));
    daemon.wait_for_line("serving Nix clients");
    // What `root` means to Nix is `nix/store` below it, whatever the store directory.
    let store = format!("unix://{}?real={}{}", text(&socket), text(&to), text(&addressed.place.path("nix/store")));
    let build = |attribute: &str, more: &[&str]| {
        let args = ["build", "--store", &store, "-f", "set.nix", attribute, "--no-link", "--json", "-L"];
        Ran(addressed.command("nix", &[&args[..], more].concat(), "client").output().expect("nix-bin is installed")).expect_success()
    };
    for attribute in ["floating.top", "many", "deferred", "above"] {
        let built = build(attribute, &[]);
        assert!(built.err().contains(" on 'local-1'"), "{attribute}: {}", built.err());
        let (again, made) = (build(attribute, &[]), built.json());
        assert!(!again.err().contains(" on 'local-1'") && again.json() == made, "{attribute}: {}", again.err());
        let theirs = addressed.nix("nix-store", &["--realise", &addressed.instantiate(attribute)]).expect_success().out();
        let ours = made[0]["outputs"]["out"].as_str().expect("a path");
        assert!(theirs.lines().any(|line| line == ours), "{attribute}: {ours} is not in {theirs}");
        let here = to.join(ours.trim_start_matches('/'));
        assert!(here.exists(), "{attribute}: it is on this machine");
    }
    let (one, other) = (build("impure", &[]).json(), build("impure", &[]).json());
    assert_ne!(one[0]["outputs"]["out"], other[0]["outputs"]["out"]);
    // The farm is asked what an output became.
    let derivation = addressed.instantiate("floating.top");
    let known = addressed.command("nix", &["realisation", "info", "--json", "--store", &store, &derivation], "client").output();
    let known = Ran(known.expect("nix-bin is installed")).expect_success().json();
    assert!(known[0]["signatures"][0].as_str().is_some_and(|by| by.starts_with("kiln")), "{known}");
    drop(addressed.farm);
}
