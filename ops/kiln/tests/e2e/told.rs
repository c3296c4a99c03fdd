//! What clients say of outputs that were made elsewhere: realisations and logs, brought by a real Nix.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::crashes::Daemons;
use crate::farm::{Process, Ran, wait_for};

const SET: &str = r#"
rec {
  addressed = name: script: derivation {
    inherit name; system = "x86_64-linux"; builder = "${boot}/busybox"; args = [ "sh" "-c" script ];
    __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";
  };
  base = addressed "base" "echo base > $out";
  top = addressed "top" "echo ${base} > $out; echo $out >> $out";
  other = addressed "other" "echo making other; echo other > $out";
  lib = addressed "lib" "echo lib > $out";
  slow = derivation { name = "slow"; system = "x86_64-linux"; builder = "${boot}/busybox"; args = [ "sh" "-c" "echo slow > $out" ]; };
  both = derivation { name = "both"; system = "x86_64-linux"; builder = "${boot}/busybox"; args = [ "sh" "-c" "echo ${lib} ${slow} > $out" ]; };
}
"#;

/// A farm that takes uploads, and a Nix with the same store directory.
struct Told {
    daemons: Daemons,
    cache: String,
    worker: Process,
    _coordinator: Process,
}

impl Told {
    fn new() -> Self {
        let daemons = Daemons::with(SET);
        let place = &daemons.place;
        let file = place.path("coordinator.toml");
        let mut config = std::fs::read_to_string(&file).expect("a configuration");
        let port = config.lines().find_map(|line| line.strip_prefix("http = '")).expect("an address").trim_end_matches('\'').to_owned();
        let key = place.run(&["keys", "generate", "--name", "ci-1", "ci.key"]).expect_success().out();
        let store_dir = place.path("nix/store");
        config.insert_str(0, &format!("trusted_upload_keys = ['{}']\nstore_dir = '{}'\n", key.trim(), store_dir.display()));
        for scope in ["upload", "trusted"] {
            let made = place.run(&["token", "create", "--name", scope, "--scope", scope]).expect_success().out();
            let (token, lines) = made.split_once('\n').expect("lines");
            config.push_str(lines);
            std::fs::write(place.path(scope), format!("machine 127.0.0.1 login kiln password {token}\n")).expect("write");
        }
        std::fs::write(&file, config).expect("write");
        std::fs::create_dir(place.path("conf")).expect("make directory");
        let rules = "sandbox = false\nbuild-users-group =\nsubstituters =\nexperimental-features = nix-command ca-derivations\n";
        std::fs::write(place.path("conf/nix.conf"), rules).expect("write");
        let (coordinator, worker) = (daemons.start("coordinator"), daemons.start("worker"));
        daemons.wait_until_up();
        Self { cache: format!("http://{port}"), worker, _coordinator: coordinator, daemons }
    }

    fn nix(&self, args: &[&str]) -> Ran {
        let place = &self.daemons.place;
        // What it remembers of a cache would spare it the looks at it.
        let _absent = std::fs::remove_dir_all(place.path("home/.cache"));
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "120", "nix"]).args(args).current_dir(place.path("")).stdin(Stdio::null());
        command.env("NIX_STORE_DIR", place.path("nix/store")).env("NIX_STATE_DIR", place.path("nix/state"));
        command.env("NIX_LOG_DIR", place.path("nix/log")).env("NIX_CONF_DIR", place.path("conf")).env("HOME", place.path("home"));
        command.env("NIX_REMOTE", "local").env_remove("NIX_PATH");
        Ran(command.output().expect("nix-bin is installed"))
    }

    /// Has Nix build an attribute; returns its derivation and its output.
    fn built(&self, attribute: &str, options: &[&str]) -> (String, String) {
        let args = [&["build", "-f", "set.nix", attribute, "--no-link", "--json"][..], options].concat();
        let built = self.nix(&args).expect_success().json();
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        (text(&built[0]["drvPath"]), text(&built[0]["outputs"]["out"]))
    }

    /// Has the farm build a derivation; returns its outputs and how many builders ran.
    fn farm(&self, derivation: &str) -> (Vec<String>, usize) {
        let built = self.daemons.place.run(&[&["build", derivation, "--json"][..], &self.daemons.farm()].concat()).expect_success();
        let last: Value = serde_json::from_str(built.out().lines().last().expect("a build")).expect("JSON");
        let paths = last["paths"].as_array().expect("a list").iter().map(|path| path.as_str().expect("a path").to_owned());
        (paths.collect(), built.events("started"))
    }

    fn upload(&self, scope: &str, args: &[&str]) -> Ran {
        let netrc = self.daemons.place.path(scope);
        self.nix(&[args, &["--option", "netrc-file", netrc.to_str().expect("text")]].concat())
    }
}

#[test]
fn what_is_made_elsewhere_is_not_built_again_where_somebody_vouches_for_it() {
    let told = Told::new();
    let place = &told.daemons.place;
    let key: PathBuf = place.path("ci.key");
    let (top, at) = told.built("top", &["--option", "secret-key-files", key.to_str().expect("text")]);
    let copy = ["copy", "--to", &told.cache, "-f", "set.nix"];
    told.upload("upload", &[&copy[..], &["top"]].concat()).expect_success();
    assert_eq!(told.farm(&top), (vec![at], 0), "a key vouches for it");

    // Without a signature it takes a token that vouches; content alone says nothing of who made it.
    let (other, at) = told.built("other", &[]);
    let refused = told.upload("upload", &[&copy[..], &["other"]].concat());
    assert!(refused.code() != 0 && refused.err().contains("no key that is trusted"), "{}", refused.err());
    told.upload("trusted", &[&copy[..], &["other"]].concat()).expect_success();
    assert_eq!(told.farm(&other), (vec![at], 0), "a token vouches for it");

    // Nobody can tell who made a log. Nix has it under the derivation that it built: one without inputs to be put in.
    let log = ["store", "copy-log", "--to", &told.cache, &other];
    let refused = told.upload("upload", &log);
    assert!(refused.code() != 0 && refused.err().contains("scope `trusted`"), "{}", refused.err());
    told.upload("trusted", &log).expect_success();
    let shown = place.run(&[&["log", &other][..], &told.daemons.farm()].concat()).expect_success();
    assert_eq!(shown.out(), "making other\n");
}

/// It was there when the job was submitted, and somebody has deleted it when the job's other input is built.
#[test]
fn an_input_that_vanishes_before_its_job_is_resolved_is_built_again() {
    let told = Told::new();
    let place = &told.daemons.place;
    let (lib, _) = told.built("lib", &[]);
    let (both, at) = told.built("both", &[]);
    assert_eq!(told.farm(&lib).1, 1);
    told.worker.kill_9();
    let building = Process::start(&mut place.kiln(&[&["build", &both, "--json"][..], &told.daemons.farm()].concat()));
    let jobs = || place.run(&[&["jobs", "--json"][..], &told.daemons.farm()].concat()).out();
    wait_for("the build is submitted", || jobs().contains("-both.drv").then_some(()));
    let store = place.path("coordinator/store");
    std::fs::remove_dir_all(store.join("build-trace-v2").join(lib.rsplit('/').next().expect("a name"))).expect("there is a realisation");
    std::fs::remove_dir_all(store.join("realisations")).expect("in both layouts");
    let _worker = told.daemons.start("worker");
    let (code, out) = building.finish();
    assert!(code == 0 && out.contains(&at), "{out}");
}
