//! Garbage is collected beside builds: what nobody keeps goes, what somebody does stays whole, and Nix's own commands see it so.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use kiln_store::{Location, Store, StoreConfig};
use kiln_wire::StoreDir;
use serde_json::Value;

use crate::crashes::Daemons;
use crate::farm::{Place, Process, Ran};

const SET: &str = r#"
rec {
  lib = v: drv "lib" "echo lib ${v} > $out" [ ];
  app = v: drv "app" "echo app ${v} $deps > $out" [ (lib v) ];
  one = app "1";
  two = app "2";
  libs = [ (lib "1") (lib "2") ];
  slow = builtins.foldl' (below: i: drv "slow-${i}" "${boot}/busybox usleep 300000; cat $deps /dev/null > $out; echo ${i} >> $out" [ below ]) (lib "1") (range 6);
  noisy = drv "noisy" "echo noise; echo noise > $out" [ ];
  endless = drv "endless" "while :; do ${boot}/busybox sleep 1; done" [ ];
}
"#;

/// Daemons whose configuration says this of garbage, and somebody who may delete.
fn daemons(gc: &str) -> (Daemons, Process, Process) {
    let daemons = Daemons::with(SET);
    let place = &daemons.place;
    let out = place.path("id/admin/me");
    std::fs::create_dir_all(place.path("id/admin")).expect("make directory");
    place.run(&["ca", "issue", "--dir", "ca", "--role", "admin/me", "--out", out.to_str().expect("text")]).expect_success();
    let text = std::fs::read_to_string(place.path("coordinator.toml")).expect("read");
    std::fs::write(place.path("coordinator.toml"), format!("{text}[gc]\n{gc}")).expect("write");
    let (coordinator, worker) = (daemons.start("coordinator"), daemons.start("worker"));
    daemons.wait_until_up();
    (daemons, coordinator, worker)
}

fn run(daemons: &Daemons, args: &[&str]) -> Ran {
    daemons.place.run(&[args, &["--farm", &daemons.url, "--identity", "id/admin/me"]].concat())
}

fn build(daemons: &Daemons, attribute: &str) -> Vec<String> {
    let built = run(daemons, &["build", "-f", "set.nix", "-A", attribute]).expect_success();
    built.out().lines().map(str::to_owned).collect()
}

fn paths(report: &serde_json::Value) -> BTreeSet<String> {
    let paths = report["paths"].as_array().expect("paths").iter();
    paths.map(|path| path.as_str().expect("text").to_owned()).collect()
}

/// Reads the store of a coordinator that does not run: all that is valid is whole, refers to what is valid, and nothing else lies about.
fn everything_left_is_whole(place: &Place) {
    let config = StoreConfig {
        location: Location::Local { dir: place.path("coordinator/store"), durable: false },
        store_dir: StoreDir::default(),
        spool_dir: place.path("spool"),
        cached_paths_max: 10,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let report = runtime.block_on(async { Store::open(config).await.expect("opens").verify_all().await.expect("the store can be listed") });
    assert!(report.damages.is_empty() && report.path_count > 0, "{:?}", report.damages);
    let dir = place.path("coordinator/store");
    let names = |dir: &std::path::Path| -> BTreeSet<String> {
        std::fs::read_dir(dir).expect("lists").map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect()
    };
    let mut nars = BTreeSet::new();
    for name in names(&dir).iter().filter(|name| name.ends_with(".narinfo")) {
        let text = std::fs::read_to_string(dir.join(name)).expect("read");
        let field = |field: &str| text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default().trim().to_owned();
        for reference in field("References:").split_whitespace() {
            assert!(dir.join(format!("{}.narinfo", &reference[..32])).exists(), "{name} refers to {reference}");
        }
        nars.insert(field("URL:").trim_start_matches("nar/").to_owned());
    }
    assert_eq!(names(&dir.join("nar")), nars, "every NAR belongs to a path");
}

#[test]
fn what_nobody_keeps_goes_and_what_is_left_is_whole() {
    let (daemons, coordinator, worker) = daemons("keep_builds = 1\nkeep_days = 0\nnar_grace_seconds = 0\n");
    let libs = build(&daemons, "libs");
    let one = build(&daemons, "one").remove(0);
    let two = build(&daemons, "two").remove(0);
    // A newer build of the name that `libs` has, so that nothing but `two` keeps its library.
    let foreseen = run(&daemons, &["gc", "--dry-run", "--grace", "0", "--json"]).expect_success().json();
    assert!(paths(&foreseen).contains(&one) && !paths(&foreseen).contains(&two), "{foreseen}");
    let refused = daemons.place.run(&[&["gc", "--grace", "0"], &daemons.farm()[..]].concat());
    assert!(refused.code() != 0 && refused.err().contains("does not allow"), "a client may look only: {}", refused.err());
    let young = run(&daemons, &["gc", "--json"]).expect_success().json();
    assert_eq!(paths(&young), BTreeSet::new(), "everything was built or asked for lately");

    run(&daemons, &["pin", "base", &one]).expect_success();
    let why = run(&daemons, &["gc", "--why", &libs[0]]).expect_success().out();
    assert!(why.contains("build") || why.contains("pin base"), "{why}");
    let kept = run(&daemons, &["gc", "--grace", "0", "--json"]).expect_success().json();
    assert!(!paths(&kept).contains(&one), "it is pinned: {kept}");
    run(&daemons, &["unpin", "base"]).expect_success();
    let mut endless =
        Process::start(&mut daemons.place.kiln(&[&["build", "-f", "set.nix", "-A", "endless", "--json"], &daemons.farm()[..]].concat()));
    endless.wait_for_line("\"event\":\"started\"");
    let gone = run(&daemons, &["gc", "--grace", "0", "--json"]).expect_success().json();
    assert_eq!(
        (paths(&gone).contains(&one), gone["nars"].as_u64() > Some(0), gone["bytes"].as_u64() > Some(0)),
        (true, true, true),
        "{gone}"
    );
    assert_eq!(run(&daemons, &["path-info", &one]).code(), 2);
    run(&daemons, &["path-info", "-r", &two]).expect_success();
    endless.interrupt();
    endless.finish();

    // What is gone is built again, and what is kept is not.
    let again = run(&daemons, &["build", "-f", "set.nix", "-A", "two", "--json"]).expect_success();
    assert_eq!(again.events("started"), 0, "{}", again.out());
    let again = run(&daemons, &["build", "-f", "set.nix", "-A", "one", "--json"]).expect_success();
    assert!(again.events("started") > 0, "{}", again.out());
    drop((worker, coordinator));
    everything_left_is_whole(&daemons.place);
}

#[test]
fn the_last_of_each_name_and_a_bounded_number_of_young_builds_are_kept() {
    let (daemons, _coordinator, _worker) = daemons("keep_builds = 1\nkeep_days = 30\nkeep_builds_max = 1\nkeep_log_days = 7\n");
    let submit = |name: &str| {
        let ran = run(&daemons, &["build", "-f", "set.nix", "-A", "noisy", "--name", name, "--json"]).expect_success();
        let last: Value = ran.out().lines().last().and_then(|line| serde_json::from_str(line).ok()).expect("the build");
        last["build"].to_string()
    };
    let builds = ["rare", "nightly", "nightly", "nightly"].map(submit);
    let status = run(&daemons, &["status"]).expect_success().out();
    let said =
        "the last 1 of each name, and others for 30 days, 1 of those at most; logs for 7 days; the rest is deleted when `kiln gc` is asked";
    assert!(status.contains(said), "{status}");
    let log = logs(&daemons).pop().expect("a builder wrote one");
    let file = std::fs::File::options().append(true).open(&log).expect("a log");
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("any time can be set");

    let gone = run(&daemons, &["gc", "--json"]).expect_success().json();
    assert_eq!(gone["builds"], 1, "{gone}");
    let is_kept = |build: &String| run(&daemons, &["status", build]).code() == 0;
    assert_eq!(builds.each_ref().map(is_kept), [true, false, true, true], "the last of each name, and one more");
    assert!(!log.exists() && !logs(&daemons).contains(&log), "nobody wrote to it for more than 7 days");
}

fn logs(daemons: &Daemons) -> Vec<std::path::PathBuf> {
    let dirs = std::fs::read_dir(daemons.place.path("coordinator/logs")).expect("logs").filter_map(Result::ok);
    dirs.flat_map(|dir| std::fs::read_dir(dir.path()).into_iter().flatten()).filter_map(Result::ok).map(|file| file.path()).collect()
}

#[test]
fn what_leads_nowhere_goes_and_what_leads_somewhere_stays() {
    let (daemons, _coordinator, _worker) = daemons("keep_builds = 1\nkeep_days = 0\nnar_grace_seconds = 0\n");
    let one = build(&daemons, "one").remove(0);
    let store = daemons.place.path("coordinator/store");
    let narinfo = std::fs::read_to_string(store.join(format!("{}.narinfo", &one[11..43]))).expect("a narinfo");
    let field = |name: &str| narinfo.lines().find_map(|line| line.strip_prefix(name)).expect("a field").trim().to_owned();
    let (blob, nar) = (field("URL: nar/").replace(".nar.zst", ""), field("NarHash: sha256:"));
    let (gone, gone_path) = ("1".repeat(52), format!("{}-gone", "1".repeat(32)));
    let there = one["/nix/store/".len()..].to_owned();
    let old = |hash: &str, path: &str| {
        let id = format!("sha256:{}!out", hash.repeat(32));
        (format!("realisations/{id}.doi"), format!(r#"{{"dependentRealisations":{{}},"id":"{id}","outPath":"{path}","signatures":[]}}"#))
    };
    let new = |letter: &str, path: &str| {
        (format!("build-trace-v2/{}-x.drv/out.doi", letter.repeat(32)), format!(r#"{{"outPath":"{path}","signatures":[]}}"#))
    };
    let debug = |digits: &str, blob: &str| {
        (format!("debuginfo/{}", digits.repeat(20)), format!(r#"{{"archive":"../nar/{blob}.nar.zst","member":"x"}}"#))
    };
    let dangling = [
        debug("0a", &gone),
        (format!("uploaded/{gone}"), gone.clone()),
        (format!("listings/{gone}.ls"), "{}".to_owned()),
        old("0a", &gone_path),
        new("a", &gone_path),
    ];
    let leading = [
        debug("0b", &blob),
        (format!("uploaded/{}", "0".repeat(52)), blob.clone()),
        (format!("listings/{nar}.ls"), "{}".to_owned()),
        old("0b", &there),
        new("b", &there),
    ];
    let put = |name: &String, text: &String| {
        let file = store.join(name);
        std::fs::create_dir_all(file.parent().expect("a directory")).expect("makes directories");
        std::fs::write(file, text).expect("writes");
    };
    dangling.iter().chain(&leading).for_each(|(name, text)| put(name, text));
    run(&daemons, &["gc", "--json"]).expect_success();
    assert!(dangling.iter().all(|(name, _)| store.join(name).exists()), "what was written lately stays");
    run(&daemons, &["gc", "--grace", "0", "--json"]).expect_success();
    for (name, _) in &dangling {
        assert!(!store.join(name).exists(), "{name} leads nowhere");
    }
    for (name, _) in &leading {
        assert!(store.join(name).exists(), "{name} leads to what is kept");
    }
}

#[test]
fn a_pin_is_ended_by_whoever_pinned_or_an_admin() {
    let (daemons, _coordinator, _worker) = daemons("");
    let one = build(&daemons, "one").remove(0);
    daemons.place.run(&["ca", "issue", "--dir", "ca", "--role", "client/bob", "--out", "id/bob"]).expect_success();
    let own = |args: &[&str]| daemons.place.run(&[args, &daemons.farm()].concat());
    let bob = |args: &[&str]| daemons.place.run(&[args, &["--farm", &daemons.url, "--identity", "id/bob"]].concat());
    for ends in ["own", "admin"] {
        own(&["pin", "release", &one]).expect_success();
        let refused = bob(&["unpin", "release"]);
        assert!(refused.code() != 0 && refused.err().contains("it was pinned by"), "{}", refused.err());
        assert!(own(&["pins"]).out().contains("release"));
        match ends {
            "own" => own(&["unpin", "release"]).expect_success(),
            _ => run(&daemons, &["unpin", "release"]).expect_success(),
        };
        assert!(!own(&["pins"]).out().contains("release"));
    }
}

#[test]
fn builds_succeed_while_garbage_is_collected() {
    let (daemons, coordinator, worker) = daemons("keep_builds = 0\nkeep_days = 0\nnar_grace_seconds = 0\n");
    build(&daemons, "one");
    build(&daemons, "two");
    let words = [&["build", "-f", "set.nix", "-A", "slow", "--json"], &daemons.farm()[..]].concat();
    let mut slow = Process::start(&mut daemons.place.kiln(&words));
    slow.wait_for_line("\"event\":\"started\"");
    // Without any grace, of the build that goes on nothing may go, and of those that ended everything.
    let mut gone = BTreeSet::new();
    for _ in 0..3 {
        let report = run(&daemons, &["gc", "--grace", "0", "--json"]).expect_success().json();
        gone.extend(paths(&report));
    }
    assert!(gone.iter().any(|path| path.ends_with("-app")), "{gone:?}");
    // With it, whoever submits meanwhile finds what it was told is there.
    let collecting = Process::start(&mut daemons.place.kiln(&["gc", "--json", "--farm", &daemons.url, "--identity", "id/admin/me"]));
    let two = build(&daemons, "two");
    assert_eq!(collecting.finish().0, 0);
    run(&daemons, &["path-info", "-r", &two[0]]).expect_success();
    let (code, rest) = slow.finish();
    assert_eq!(code, 0, "{rest}");
    drop((worker, coordinator));
    everything_left_is_whole(&daemons.place);
}

#[test]
fn nix_itself_keeps_lists_and_collects() {
    let (daemons, _coordinator, _worker) = daemons("keep_builds = 0\nkeep_days = 0\nnar_grace_seconds = 0\ngrace_seconds = 0\n");
    let place = &daemons.place;
    let text = |path: std::path::PathBuf| path.to_str().expect("text").to_owned();
    let (socket, root) = (text(place.path("socket")), text(place.path("root")));
    let mut serve = place.kiln_aloud(&["daemon", "--socket", &socket, "--to", &root, "--farm", &daemons.url, "--identity", "id/admin/me"]);
    let mut daemon = Process::start(&mut serve);
    daemon.wait_for_line("serving Nix clients");
    std::fs::create_dir(place.path("conf")).expect("make directory");
    std::fs::write(place.path("conf/nix.conf"), "experimental-features = nix-command\nsubstituters =\n").expect("write");
    let store = format!("unix://{socket}?root={root}");
    let nix = |command: &[&str], args: &[&str]| -> Ran {
        let mut nix = Command::new("timeout");
        nix.args(["--signal=KILL", "120"]).args(command).args(["--store", &store]).args(args);
        nix.current_dir(place.path("")).stdin(Stdio::null()).env("NIX_CONF_DIR", place.path("conf")).env("HOME", place.path(""));
        for name in ["NIX_REMOTE", "NIX_PATH", "KILN_FARM", "KILN_IDENTITY"] {
            nix.env_remove(name);
        }
        Ran(nix.output().expect("nix-bin is installed"))
    };
    let ask = |args: &[&str]| nix(&["nix-store"], args).expect_success().out();

    let one = nix(&["nix-build"], &["set.nix", "-A", "one"]).expect_success().out().trim().to_owned();
    let two = nix(&["nix-build"], &["set.nix", "-A", "two", "--no-out-link"]).expect_success().out().trim().to_owned();
    let link = text(place.path("result"));
    assert!(ask(&["--gc", "--print-roots"]).contains(&format!("{link} -> {one}")), "{}", ask(&["--gc", "--print-roots"]));
    assert!(ask(&["-q", "--roots", &one]).contains(&link));
    let library = ask(&["-q", "--references", &one]).trim().to_owned();
    assert!(library.ends_with("-lib"), "{library}");
    assert!(ask(&["-q", "--referrers", &library]).contains(&one));
    assert!(ask(&["-q", "--roots", &library]).contains(&link), "by way of what refers to it");
    let all = nix(&["nix", "path-info"], &["--all"]).expect_success().out();
    assert!(all.contains(&one) && all.contains(&two), "{all}");
    let (live, dead) = (ask(&["--gc", "--print-live"]), ask(&["--gc", "--print-dead"]));
    assert!(live.contains(&one) && live.contains(&library) && !live.contains(&two), "{live}");
    assert!(dead.contains(&two) && !dead.contains(&one) && !dead.contains(&library), "{dead}");

    let alive = nix(&["nix-store"], &["--delete", &library]);
    assert!(alive.code() != 0 && alive.err().contains("still alive"), "{}", alive.err());
    let deleted = nix(&["nix-store"], &["--delete", &two]).expect_success();
    assert!(deleted.out().contains("1 store paths deleted"), "{}\n{}", deleted.out(), deleted.err());
    nix(&["nix", "store", "gc"], &[]).expect_success();
    assert_eq!(ask(&["--gc", "--print-dead"]), "");
    assert!(nix(&["nix", "path-info"], &[&two]).err().contains("is not valid"));
    nix(&["nix", "store", "verify"], &["--no-trust", "-r", &one]).expect_success();

    std::fs::remove_file(place.path("result")).expect("it is there");
    let freed = nix(&["nix", "store", "gc"], &[]).expect_success();
    assert!(
        freed.out().contains(" store paths deleted") && !freed.out().starts_with("0 "),
        "the link was all that kept it: {}",
        freed.out()
    );
    assert!(nix(&["nix", "path-info"], &[&one]).err().contains("is not valid"));
    let again = nix(&["nix-build"], &["set.nix", "-A", "two", "--no-out-link"]).expect_success().out();
    assert_eq!(again.trim(), two, "what the daemon remembered of it is forgotten");
}
