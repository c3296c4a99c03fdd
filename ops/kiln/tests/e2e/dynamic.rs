//! Dynamic derivations: what a build makes is itself a derivation, of which others need outputs. A farm builds them at once; the Nix that wrote
//! them, 2.26, builds none in one go, so that each is held against its twin, which names the inner derivation in place of what makes it.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::farm::{Place, Process, Ran};
use crate::nix::Nix;

const SET: &str = r#"
rec {
  plain = name: script: more: derivation ({ inherit name; system = "x86_64-linux"; builder = "${boot}/busybox"; args = [ "sh" "-c" script ]; } // more);
  floating = { __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; };
  text = { __contentAddressed = true; outputHashMode = "text"; outputHashAlgo = "sha256"; };
  # Makes the derivation that it is given.
  makes = inner: plain "${inner.name}.drv" "${boot}/busybox cp ${builtins.unsafeDiscardOutputDependency inner.drvPath} $out" text;
  of = made: output: builtins.outputOf made.outPath output;

  part = plain "part" "echo part > $out" floating;
  hello = plain "hello" "${boot}/busybox cat ${part} > $out; echo hello >> $out; echo $out > $dev" (floating // { outputs = [ "out" "dev" ]; });
  once = makes hello;
  twice = makes once;

  user = inner: plain "user" "echo ${inner.out} ${inner.dev} > $out; ${boot}/busybox cat ${inner.out} >> $out" floating;
  deferred = inner: plain "deferred" "${boot}/busybox cat ${inner.dev} > $out" { };
  above = inner: plain "above" "${boot}/busybox cat ${user inner} ${deferred inner} > $out" floating;
  fixed = inner: plain "fixed" "echo hello > $out # ${inner.out}" { outputHashMode = "flat"; outputHashAlgo = "sha256";
    outputHash = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"; };
  known = plain "known" "echo known > $out" { };

  byOnce = { out = of once "out"; dev = of once "dev"; };
  byTwice = let made = builtins.outputOf twice.outPath "out"; in { out = builtins.outputOf made "out"; dev = builtins.outputOf made "dev"; };
  dynamic = { user = user byOnce; deferred = deferred byOnce; above = above byOnce; fixed = fixed byOnce; deep = user byTwice;
    other = plain "other" "${boot}/busybox cat ${of (makes known) "out"} > $out" floating; };
  twin = { user = user hello; deferred = deferred hello; above = above hello; fixed = fixed hello; deep = user hello;
    other = plain "other" "${boot}/busybox cat ${known} > $out" floating; };

  # Makes a derivation that reads what is made beside it.
  both = plain "both" ''echo sibling > $data; echo -n 'Derive([("out","","r:sha256","")],[],["'$data'"],"x86_64-linux","/bin/sh",["-c","read line < '$data'; echo $line > $out"],[("out","/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9")])' > $made'' (text // { outputs = [ "data" "x.drv" ]; made = builtins.placeholder "x.drv"; });
  beside = plain "needs-it" "${boot}/busybox cat ${of both."x.drv" "out"} > $out" floating;
  said = plain "needs-it" "echo sibling > $out" floating;

  # What a builder may make in place of a derivation.
  bad = name: script: plain "needs-it" "echo ${of (plain name script text) "out"} > $out" floating;
  nonsense = bad "x.drv" "echo nonsense > $out";
  elsewhere = bad "x.drv" ''echo -n 'Derive([("out","","r:sha256","")],[("/gnu/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-y.drv",["out"])],[],"s","b",[],[])' > $out'';
  unseen = bad "x.drv" ''echo -n 'Derive([("out","","r:sha256","")],[("'$NIX_STORE'/0hm2f1psjpcwg8fijsmr4wwxrx59s092-y.drv",["out"])],[],"s","b",[],[])' > $out'';
  large = bad "x.drv" "${boot}/busybox head -c 5000000 /dev/zero > $out";
  lying = bad "other.drv" "${boot}/busybox cp ${builtins.unsafeDiscardOutputDependency known.drvPath} $out";
  without = plain "needs-it" "echo ${of once "lib"} > $out" floating;
  unnamed = bad "x" "echo x > $out";
  failing = plain "needs-it" "echo ${of (makes (plain "broken" "exit 3" floating)) "out"} > $out" floating;
  trusting = plain "needs-it" "echo ${of (makes (plain "any" "echo any > $out" { __impure = true; })) "out"} > $out" floating;
  empty = bad "x.drv" ''echo -n 'Derive([],[],[],"s","b",[],[])' > $out'';
}
"#;

/// A farm with the store directory of a Nix whose every directory is the test's own and that builds without a sandbox.
struct Dynamic {
    farm: Process,
    place: Place,
}

impl Dynamic {
    fn new() -> Self {
        let place = Place::new(SET);
        std::fs::create_dir(place.path("conf")).expect("make directory");
        let features = "nix-command ca-derivations dynamic-derivations impure-derivations";
        let rules = format!("sandbox = false\nbuild-users-group =\nsubstituters =\nexperimental-features = {features}\n");
        std::fs::write(place.path("conf/nix.conf"), rules).expect("write");
        let farm = place.up_with(&["--store-dir", place.path("nix/store").to_str().expect("text")]);
        Self { farm, place }
    }

    fn nix(&self, program: &str, args: &[&str], root: &str) -> Ran {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "120", program]).args(args).current_dir(self.place.path("")).stdin(Stdio::null());
        command.env("NIX_STORE_DIR", self.place.path("nix/store")).env("NIX_STATE_DIR", self.place.path(root).join("state"));
        command.env("NIX_LOG_DIR", self.place.path(root).join("log")).env("NIX_CONF_DIR", self.place.path("conf"));
        command.env("HOME", self.place.path("home")).env("KILN_DIR", self.place.path("farm")).env("NIX_REMOTE", "local");
        command.env_remove("NIX_PATH").env_remove("KILN_FARM").env_remove("KILN_IDENTITY");
        Nix::Debian13.be_found(&mut command);
        Ran(command.output().expect("the Nix of Debian 13 is there"))
    }

    fn instantiate(&self, attribute: &str) -> String {
        let shown = self.nix("nix-instantiate", &["set.nix", "-A", attribute], "nix").expect_success();
        shown.out().lines().next().expect("a derivation").split('!').next().expect("a path").to_owned()
    }

    /// Returns what Nix itself builds: an output of an attribute.
    fn realise(&self, attribute: &str, output: &str) -> Vec<String> {
        let wanted = format!("{}!{output}", self.instantiate(attribute));
        let made = self.nix("nix-store", &["--realise", &wanted], "nix").expect_success();
        made.out().lines().map(str::to_owned).collect()
    }

    /// Has the farm build something; returns its output paths, and how many builders ran.
    fn farm(&self, wanted: &str) -> (Vec<String>, usize) {
        let built = self.place.run(&["build", wanted, "--json"]).expect_success();
        let last: Value = serde_json::from_str(built.out().lines().last().expect("a build")).expect("JSON");
        let paths = last["paths"].as_array().expect("a list").iter().map(|path| path.as_str().expect("a path").to_owned());
        (paths.collect(), built.events("started"))
    }
}

#[test]
fn who_needs_what_a_build_makes_comes_to_the_same_as_who_names_it() {
    let dynamic = Dynamic::new();
    // With how many builders run: those that one before has run are not run again.
    for (attribute, started) in [("user", 4), ("deferred", 1), ("above", 1), ("fixed", 1), ("deep", 1), ("other", 3)] {
        let derivation = dynamic.instantiate(&format!("dynamic.{attribute}"));
        assert!(std::fs::read_to_string(&derivation).expect("a file").contains(if attribute == "above" {
            "Derive("
        } else {
            "xp-dyn-drv"
        }));
        let (ours, ran) = dynamic.farm(&derivation);
        assert_eq!(ran, started, "{attribute}");
        assert_eq!((&ours, 0), (&dynamic.farm(&derivation).0, dynamic.farm(&derivation).1), "{attribute} is there");
        assert_eq!(ours, dynamic.realise(&format!("twin.{attribute}"), "out"), "{attribute}");
        let theirs = dynamic.nix("nix", &["path-info", "--json", &ours[0]], "nix").expect_success().json();
        let ours_of = dynamic.place.run(&["path-info", "--json", &ours[0]]).expect_success().json();
        let field = |json: &Value, name: &str| json.as_array().map_or(&json[ours[0].as_str()][name], |list| &list[0][name]).clone();
        // Nix 2.26 writes hashes in another way: what they refer to tells whether the same was put in.
        assert_eq!(field(&ours_of, "references"), field(&theirs, "references"), "{attribute}");
        assert_eq!(field(&ours_of, "narSize"), field(&theirs, "narSize"), "{attribute}");
    }
}

#[test]
fn a_derivation_is_shown_as_nix_shows_it_and_read_back() {
    let dynamic = Dynamic::new();
    let store = dynamic.place.path("nix/store");
    for attribute in ["dynamic.user", "dynamic.deep", "dynamic.fixed", "dynamic.deferred"] {
        let derivation = dynamic.instantiate(attribute);
        let theirs = dynamic.nix("nix", &["derivation", "show", &derivation], "nix").expect_success().out();
        let dir = store.to_str().expect("text");
        let ours = dynamic.place.run(&["drv", "show", "--store-dir", dir, &derivation]).expect_success().out();
        assert_eq!(ours, theirs, "{attribute}");
        std::fs::write(dynamic.place.path("shown.json"), &theirs).expect("write");
        let again = dynamic.place.run(&["drv", "show", "--store-dir", dir, "shown.json"]).expect_success().out();
        assert_eq!(again, theirs, "{attribute}");
    }
}

#[test]
fn outputs_of_what_a_build_makes_are_asked_for_by_name() {
    let dynamic = Dynamic::new();
    let (once, twice) = (dynamic.instantiate("once"), dynamic.instantiate("twice"));
    let hello = dynamic.instantiate("hello");
    assert_eq!(dynamic.farm(&format!("{once}^out")).0, [hello.as_str()], "it makes the derivation");
    let (out, ran) = dynamic.farm(&format!("{once}^out^out"));
    assert_eq!((&out, ran), (&dynamic.realise("hello", "out"), 2));
    let (both, ran) = dynamic.farm(&format!("{twice}^out^out^*"));
    let theirs = [dynamic.realise("hello", "dev"), out].concat();
    assert_eq!((both.iter().collect::<std::collections::BTreeSet<_>>(), ran), (theirs.iter().collect(), 1), "one more maker");
    let refused = dynamic.place.run(&["build", &format!("{once}^out^lib")]);
    assert!(refused.code() == 2 && refused.err().contains("no output `lib`"), "{}", refused.err());
}

#[test]
fn a_build_may_ask_for_what_it_turns_out_to_need() {
    // What leads to the wanted derivation, or that itself, is a job of the same build.
    for wanted in [["dynamic.deep", "once"], ["dynamic.deferred", "hello"]] {
        let dynamic = Dynamic::new();
        let paths = wanted.map(|attribute| dynamic.instantiate(attribute));
        let built = dynamic.place.run(&["build", "--json", &paths[0], &paths[1]]).expect_success();
        let last: Value = serde_json::from_str(built.out().lines().last().expect("a build")).expect("JSON");
        let twin = if wanted[1] == "once" { "twin.deep" } else { "twin.deferred" };
        assert_eq!(last["paths"][0].as_str(), dynamic.realise(twin, "out").first().map(String::as_str), "{wanted:?}");
    }
}

#[test]
fn a_derivation_may_read_what_was_made_beside_it() {
    // Both are committed at once, and are published while what needs them is looked at.
    let dynamic = Dynamic::new();
    let (ours, ran) = dynamic.farm(&dynamic.instantiate("beside"));
    assert_eq!((ours, ran), (dynamic.realise("said", "out"), 3));
}

#[test]
fn what_is_made_and_is_no_good_fails_who_needs_it_with_the_reason() {
    let dynamic = Dynamic::new();
    for (attribute, wanted) in [
        ("nonsense", "read derivation `x` at byte 0"),
        ("elsewhere", "read derivation `x`"),
        ("unseen", "it names what its builder was not given"),
        ("large", "at most 4194304 are allowed"),
        ("lying", "its content says"),
        ("without", "has no output `lib` that it needs"),
        ("unnamed", "is no derivation by its name"),
        ("failing", "broken"),
        ("trusting", "which is impure"),
        ("empty", "has no output `out` that it needs"),
    ] {
        let failed = dynamic.place.run(&["build", &dynamic.instantiate(attribute)]);
        assert!(failed.code() == 1 && failed.err().contains(wanted), "{attribute}: {} {}", failed.code(), failed.err());
    }
    // The farm is none the worse.
    assert_eq!(dynamic.farm(&dynamic.instantiate("dynamic.user")).0, dynamic.realise("twin.user", "out"));
}

#[test]
fn nix_itself_has_them_built() {
    let dynamic = Dynamic::new();
    let (socket, to) = (dynamic.place.path("socket"), dynamic.place.path("root"));
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let mut daemon = Process::start(&mut dynamic.place.kiln_aloud(&["daemon", "--socket", &text(&socket), "--to", &text(&to)]));
    daemon.wait_for_line("serving Nix clients");
    let store = format!("unix://{}?real={}{}", text(&socket), text(&to), text(&dynamic.place.path("nix/store")));
    let build = |wanted: &[&str]| {
        let args = [&["build", "--store", &store, "--no-link", "--print-out-paths"][..], wanted].concat();
        dynamic.nix("nix", &args, "client").expect_success().out()
    };
    for attribute in ["user", "above", "deep"] {
        let ours = build(&["-f", "set.nix", &format!("dynamic.{attribute}")]);
        assert_eq!(ours.lines().collect::<Vec<_>>(), dynamic.realise(&format!("twin.{attribute}"), "out"), "{attribute}");
        assert!(to.join(ours.trim().trim_start_matches('/')).exists(), "{attribute}: it is on this machine");
    }
    let once = dynamic.instantiate("once");
    assert_eq!(build(&[&format!("{once}^out^out")]).trim(), dynamic.realise("hello", "out")[0]);
    drop(dynamic.farm);
}
