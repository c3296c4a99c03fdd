//! Builds that go well, and builders that fail.

use std::path::Path;
use std::process::Command;

use crate::farm::Place;

const WIDE_AND_DEEP: &str = r#"
rec {
  wide = map (i: drv "wide-${i}" "echo wide ${i} > $out" [ ]) (range 12);
  deep = builtins.foldl' (below: i: drv "deep-${i}" "cat $deps > $out; echo ${i} >> $out" [ below ]) (drv "bottom" "echo bottom > $out" [ ]) (range 6);
  pair = derivation { name = "pair"; system = "x86_64-linux"; builder = "${boot}/busybox"; outputs = [ "out" "doc" ];
    args = [ "sh" "-c" "echo $doc > $out; echo text > $doc" ]; };
  all = wide ++ [ deep pair ];
}
"#;

#[test]
fn a_set_builds_once_and_a_real_nix_verifies_what_the_cache_gives_it() {
    let place = Place::new(WIDE_AND_DEEP);
    let _farm = place.up();
    let built = place.run(&["build", "-f", "set.nix", "-A", "all", "--json"]).expect_success();
    assert_eq!(built.events("built"), 12 + 7 + 1, "{}", built.out());
    let last: serde_json::Value = serde_json::from_str(built.out().lines().last().expect("a last line")).expect("it is JSON");
    assert_eq!((last["state"].as_str(), last["jobs"]["built"].as_u64()), (Some("built"), Some(20)));

    let again = place.run(&["build", "-f", "set.nix", "-A", "all", "--json"]).expect_success();
    assert_eq!(again.events("started"), 0, "nothing is built twice: {}", again.out());

    let deep = place.run(&["build", "-f", "set.nix", "-A", "deep", "--to", "root", "--out-link", "result"]).expect_success();
    let path = deep.out().trim().to_owned();
    assert_eq!(std::fs::read_to_string(place.path("result")).expect("the link leads to it"), "bottom\n0\n1\n2\n3\n4\n5\n");
    verify_with_nix(&place, &path);

    let pair = place.run(&["build", "-f", "set.nix", "-A", "pair"]).expect_success();
    let info = place
        .run(&["path-info", "--json", "-r", pair.out().lines().find(|path| path.ends_with("-pair")).expect("a path")])
        .expect_success();
    let info: serde_json::Value = serde_json::from_str(&info.out()).expect("JSON");
    assert_eq!(info.as_array().map(Vec::len), Some(2), "one output refers to the other: {info}");
}

fn verify_with_nix(place: &Place, path: &str) {
    let beacon = place.beacon();
    let text = |key: &str| beacon[key].as_str().expect("the beacon names it").to_owned();
    copy_with_nix(place, &text("cache"), &text("public_key"), path);
}

/// Copies a path from a cache with Nix, which checks signature and hash, and lets Nix check its content again.
pub fn copy_with_nix(place: &Place, cache: &str, key: &str, path: &str) {
    let store = format!("local?root={}", place.path("nix").display());
    let config = place.path("nix-config");
    std::fs::create_dir_all(&config).expect("make directory");
    let keys = format!("trusted-public-keys = {key}\nexperimental-features = nix-command\nsubstituters =\n");
    std::fs::write(config.join("nix.conf"), keys).expect("write");
    let nix = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args).env("NIX_CONF_DIR", &config).env("HOME", place.path("")).env_remove("NIX_REMOTE");
        let ran = command.output().expect("nix-bin is installed");
        assert!(ran.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&ran.stderr));
    };
    nix("nix", &["copy", "--from", cache, "--to", &store, path]);
    nix("nix-store", &["--store", &store, "--verify", "--check-contents"]);
    assert!(Path::new(&format!("{}{path}", place.path("nix").display())).exists());
}

/// Returns what Nix prints as the log of a derivation, or of what one made, read from a cache. Nix 2.8 wants to read a derivation that
/// is named, so that the store is the one in which it was evaluated; that store has no logs, and the cache is asked for it.
pub fn log_with_nix(place: &Place, cache: &str, path: &str) -> String {
    let config = place.path("nix-config");
    std::fs::create_dir_all(&config).expect("make directory");
    std::fs::write(config.join("nix.conf"), "experimental-features = nix-command\nsubstituters =\n").expect("write");
    let evaluated = format!("local?root={}", place.path("farm/evaluation").display());
    let from = match path.ends_with(".drv") {
        true => vec!["--store", &evaluated, "--option", "substituters", cache],
        false => vec!["--store", cache],
    };
    let mut command = Command::new("nix");
    command.arg("log").args(from).arg(path).env("NIX_CONF_DIR", &config).env("HOME", place.path("")).env_remove("NIX_REMOTE");
    let ran = command.output().expect("nix-bin is installed");
    assert!(ran.status.success(), "nix log {path}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).expect("UTF-8")
}

const FAILING: &str = r#"
rec {
  good = drv "good" "echo good > $out" [ ];
  bad = drv "bad" "echo line one; echo line two >&2; exit 3" [ good ];
  above = drv "above" "echo > $out" [ bad ];
  other = drv "other" "echo other > $out; echo made other" [ good ];
}
"#;

#[test]
fn a_failure_is_told_with_its_log_and_stops_only_what_needs_it() {
    let place = Place::new(FAILING);
    let _farm = place.up();
    let failed = place.run(&["build", "-f", "set.nix", "-A", "above", "-A", "other", "--keep-going"]);
    assert_eq!(failed.code(), 1, "{}", failed.err());
    let said = failed.err();
    for wanted in ["exit code 3", "| line one", "| line two", "above: not built, because bad failed", "built other", "kiln log"] {
        assert!(said.contains(wanted), "`{wanted}` is missing in:\n{said}");
    }
    let bad = said.lines().find_map(|line| line.split_once("-bad.drv failed:")).expect("names the derivation").0.trim().to_owned();
    let log = place.run(&["log", &format!("{bad}-bad.drv")]).expect_success();
    assert_eq!(log.out(), "line one\nline two\n");
    let cache = place.beacon()["cache"].as_str().expect("the beacon names it").to_owned();
    assert_eq!(log_with_nix(&place, &cache, &format!("/nix/store/{bad}-bad.drv")), log.out());
    let other = place.run(&["build", "-f", "set.nix", "-A", "other"]).expect_success();
    assert_eq!(log_with_nix(&place, &cache, other.out().trim()), "made other\n", "by the path that was made");
}

#[test]
fn an_embedded_farm_builds_without_nix_and_leaves_nothing_running() {
    let place = Place::new(WIDE_AND_DEEP);
    let drv = place.run(&["build", "-f", "set.nix", "-A", "deep"]).expect_success();
    assert!(!place.path("farm/farm.json").exists(), "it is stopped");
    let file =
        std::fs::read_dir(place.path("farm/evaluation/nix/store")).expect("evaluated").filter_map(Result::ok).map(|entry| entry.path());
    let file = file.into_iter().find(|path| path.to_string_lossy().ends_with("-deep-5.drv")).expect("the derivation");
    let mut command = place.kiln(&["build", file.to_str().expect("text")]);
    let again = command.env("PATH", "/nowhere").output().expect("runs");
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(String::from_utf8_lossy(&again.stdout), drv.out());
}
