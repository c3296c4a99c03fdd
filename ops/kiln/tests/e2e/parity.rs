//! The same derivations built by Nix and by a farm, in a store directory that is not `/nix/store`: same paths, hashes, sizes, references.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::farm::Place;

/// What packing gets wrong first: modes, links, order, empty things, odd names, references to others and to oneself.
const ODD: &str = r#"
rec {
  lib = drv "lib" "echo lib > $out" [ ];
  tree = drv "tree" ''
    b=${boot}/busybox; $b mkdir -p $out/empty $out/a/b; echo tool > $out/a/tool; $b chmod 755 $out/a/tool; $b ln -s ../tool $out/a/b/up;
    $b ln -s $out/a $out/self; echo $deps > $out/lib; : > $out/void; echo odd > "$out/a b"; echo x > $out/Z; echo x > $out/ä; echo x > $out/a-b
  '' [ lib ];
  link = drv "link" "${boot}/busybox ln -s ${lib} $out" [ ];
  program = drv "program" "echo program > $out; ${boot}/busybox chmod 700 $out" [ ];
  pair = derivation { name = "pair"; system = "x86_64-linux"; builder = "${boot}/busybox"; outputs = [ "out" "doc" ];
    args = [ "sh" "-c" "echo $doc > $out; echo text > $doc" ]; };
  fixed = derivation { name = "fixed"; system = "x86_64-linux"; builder = "${boot}/busybox"; args = [ "sh" "-c" "echo hello > $out" ];
    outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"; };
}
"#;

#[test]
fn outputs_are_what_nix_builds_from_the_same_derivations() {
    let place = Place::new(ODD);
    let store = place.path("nix/store");
    let store = store.to_str().expect("text");
    let _farm = place.up_with(&["--store-dir", store]);
    let attributes = ["-A", "tree", "-A", "link", "-A", "program", "-A", "pair", "-A", "fixed"];
    let built = place.run(&[&["build", "-f", "set.nix"][..], &attributes].concat()).expect_success();
    let paths: Vec<String> = built.out().lines().map(str::to_owned).collect();
    assert_eq!(paths.len(), 6, "{paths:?}");

    let nix = Nix { place: &place, store };
    let derivations = nix.run("nix-instantiate", &[&["set.nix"][..], &attributes].concat());
    let derivations: Vec<&str> = derivations.lines().collect();
    nix.run("nix-store", &[&["--realise"][..], &derivations].concat());
    let theirs: Value = serde_json::from_str(&nix.run("nix", &[&["path-info", "--json"][..], &texts(&paths)].concat())).expect("JSON");
    let ours = place.run(&[&["path-info", "--json"][..], &texts(&paths)].concat()).expect_success().json();
    let (ours, theirs) = (facts(&ours), facts(&theirs));
    assert_eq!(ours.len(), paths.len());
    assert_eq!(ours, theirs);
    assert_eq!(ours.values().filter(|fact| fact.2.len() > 1).count(), 1, "the tree refers to itself and to the library: {ours:?}");
}

/// (NAR hash, NAR size, references) by path.
fn facts(infos: &Value) -> BTreeMap<String, (String, u64, Vec<String>)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let fact = |info: &Value| {
        let mut references: Vec<String> = info["references"].as_array().expect("a list").iter().map(text).collect();
        references.sort();
        (text(&info["path"]), (text(&info["narHash"]), info["narSize"].as_u64().expect("a size"), references))
    };
    infos.as_array().expect("a list").iter().map(fact).collect()
}

fn texts(paths: &[String]) -> Vec<&str> {
    paths.iter().map(String::as_str).collect()
}

/// A Nix whose every directory is the test's own. It builds without a sandbox, which works in any container.
struct Nix<'a> {
    place: &'a Place,
    store: &'a str,
}

impl Nix<'_> {
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let root = Path::new(self.store).parent().expect("it has a parent");
        std::fs::create_dir_all(self.place.path("conf")).expect("make directory");
        let rules = "sandbox = false\nbuild-users-group =\nsubstituters =\nexperimental-features = nix-command\n";
        std::fs::write(self.place.path("conf/nix.conf"), rules).expect("write");
        let mut command = Command::new(program);
        command.env("NIX_STORE_DIR", self.store).env("NIX_STATE_DIR", root.join("state")).env("NIX_LOG_DIR", root.join("log"));
        command.env("NIX_CONF_DIR", self.place.path("conf")).env("NIX_REMOTE", "local").env("HOME", self.place.path("home"));
        let ran = command.args(arguments).current_dir(self.place.path("")).output().expect("nix-bin is installed");
        assert!(ran.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).expect("UTF-8").trim().to_owned()
    }
}
