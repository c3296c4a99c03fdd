//! kill -9 of everything in mid-build, and bytes that flip on disk: nothing committed is lost or built again, nothing wrong is read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use kiln_store::{Location, Store, StoreConfig, VerifyReport};
use kiln_wire::StoreDir;

use crate::farm::{Place, Process, free_port};

/// Where daemons log, in their place.
const LOG: &str = "daemons.log";

/// Twelve jobs of a third of a second, in two chains and a row.
const SLOW: &str = r#"
let slow = name: deps: drv name "usleep 300000; cat $deps /dev/null > $out; echo ${name} >> $out" deps; in
rec {
  left = builtins.foldl' (below: i: slow "left-${i}" [ below ]) (slow "left" [ ]) (range 4);
  right = builtins.foldl' (below: i: slow "right-${i}" [ below ]) (slow "right" [ ]) (range 4);
  row = map (i: slow "row-${i}" [ ]) (range 2);
  all = row ++ [ left right ];
}
"#;

/// Returns NAR hashes by path of everything that the set builds.
fn hashes(place: &Place, farm: &[&str]) -> BTreeMap<String, String> {
    let built = place.run(&[&["build", "-f", "set.nix", "-A", "all"], farm].concat()).expect_success();
    let paths: Vec<String> = built.out().lines().map(str::to_owned).collect();
    let mut args = vec!["path-info", "--json", "-r"];
    args.extend(farm);
    args.extend(paths.iter().map(String::as_str));
    let infos = place.run(&args).expect_success().out();
    let infos: Vec<serde_json::Value> = serde_json::from_str(&infos).expect("JSON");
    let text = |info: &serde_json::Value, key: &str| info[key].as_str().expect("it is text").to_owned();
    infos.iter().map(|info| (text(info, "path"), text(info, "narHash"))).collect()
}

/// Starts a build and returns once this many jobs are committed, with the derivations that were.
fn build_until(place: &Place, farm: &[&str], committed: usize) -> (Process, BTreeSet<String>) {
    let mut build = Process::start(place.kiln(&[&["build", "-f", "set.nix", "-A", "all", "--json"], farm].concat()).stderr(Stdio::null()));
    let built = (0..committed).map(|_| derivation(&build.wait_for_line("\"event\":\"built\""))).collect();
    (build, built)
}

/// Returns the derivation that an event is about.
fn derivation(event: &str) -> String {
    let event: serde_json::Value = serde_json::from_str(event).expect("an event is JSON");
    event["derivation"].as_str().expect("it names one").to_owned()
}

/// Ends the build and fails the test if anything is started that was committed before.
fn end_build(place: &Place, farm: &[&str], committed: &BTreeSet<String>) {
    let ended = place.run(&[&["build", "-f", "set.nix", "-A", "all", "--json"], farm].concat()).expect_success();
    let started = ended.out().lines().filter(|line| line.contains("\"event\":\"started\"")).map(derivation).collect::<Vec<_>>();
    let again: Vec<&String> = started.iter().filter(|derivation| committed.contains(*derivation)).collect();
    assert!(again.is_empty(), "built again after it was committed: {again:?}");
    assert!(!started.is_empty(), "something was left to build, or the kill came too late to mean anything");
}

#[test]
fn a_whole_farm_that_is_killed_in_mid_build_goes_on_where_it_was() {
    let undisturbed = Place::new(SLOW);
    let farm = undisturbed.up();
    let reference = hashes(&undisturbed, &[]);
    drop(farm);

    let place = Place::new(SLOW);
    let mut committed = BTreeSet::new();
    for count in [1, 3, 2] {
        let farm = place.up();
        let (build, built) = build_until(&place, &[], count);
        farm.kill_9();
        build.kill_9();
        assert!(built.is_disjoint(&committed), "built again after it was committed: {built:?} of {committed:?}");
        committed.extend(built);
        every_published_nar_is_whole(&place);
    }
    let _farm = place.up();
    end_build(&place, &[], &committed);
    assert_eq!(hashes(&place, &[]), reference);
}

fn every_published_nar_is_whole(place: &Place) {
    let report = verify_store(place);
    assert!(report.damages.is_empty(), "{:?}", report.damages);
    let stored = std::fs::read_dir(place.path("farm/store")).expect("a store").filter_map(Result::ok);
    let published = stored.filter(|entry| entry.path().extension().is_some_and(|ending| ending == "narinfo")).count();
    assert_eq!(report.path_count, published as u64, "every path is checked");
}

/// Reads the store of a farm that does not run: every narinfo and NAR, sizes, hashes and grammar.
fn verify_store(place: &Place) -> VerifyReport {
    let config = StoreConfig {
        location: Location::Local { dir: place.path("farm/store"), durable: false },
        store_dir: StoreDir::default(),
        spool_dir: place.path("spool"),
        cached_paths_max: 10,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { Store::open(config).await.expect("opens").verify_all().await.expect("the store can be listed") })
}

#[test]
fn a_published_nar_that_changed_in_place_is_not_whole() {
    let place = Place::new(r#"{ one = drv "one" "echo one > $out" [ ]; }"#);
    let path = place.run(&["build", "-f", "set.nix", "-A", "one"]).expect_success().out().trim().to_owned();
    every_published_nar_is_whole(&place);
    flip(nar_of(&place.path("farm/store"), &path), 0.5);
    let damages: Vec<String> = verify_store(&place).damages.iter().map(|damage| format!("{damage:?}")).collect();
    assert!(matches!(&damages[..], [damage] if damage.contains(&path.trim_start_matches("/nix/store/")[..32])), "{damages:?}");
}

/// Returns the file in the farm's store that a path's narinfo names.
pub fn nar_of(store: &Path, path: &str) -> PathBuf {
    let hash = &path.trim_start_matches("/nix/store/")[..32];
    let narinfo = std::fs::read_to_string(store.join(format!("{hash}.narinfo"))).expect("it is published");
    store.join(narinfo.lines().find_map(|line| line.strip_prefix("URL: ")).expect("it names its NAR"))
}

/// Three daemons' worth of configuration, with certificates of a real authority.
pub struct Daemons {
    /// Where everything of them lies.
    pub place: Place,
    /// The farm, as clients name it.
    pub url: String,
}

impl Daemons {
    fn new() -> Self {
        Self::with(SLOW)
    }

    /// Makes certificates and configurations, and a set to build.
    pub fn with(set: &str) -> Self {
        let place = Place::new(set);
        let text = |path: PathBuf| path.to_str().expect("text").to_owned();
        place.run(&["ca", "init", "--dir", "ca", "--farm", "test"]).expect_success();
        for role in ["coordinator/1", "worker/w1", "client/me"] {
            let out = text(place.path("id")) + "/" + role;
            std::fs::create_dir_all(place.path("id")).expect("make directory");
            place.run(&["ca", "issue", "--dir", "ca", "--role", role, "--out", &out]).expect_success();
        }
        let (link, http) = (free_port(), free_port());
        let coordinator = format!(
            "dir = '{}'\nfarm = 'test'\nlisten = '127.0.0.1:{link}'\nhttp = '127.0.0.1:{http}'\nidentity = '{}'\n",
            text(place.path("coordinator")),
            text(place.path("id/coordinator/1")),
        );
        let worker = format!(
            "name = 'w1'\ndir = '{}'\ncoordinators = ['127.0.0.1:{link}']\nidentity_dir = '{}'\nslots = 2\nslot_first = 100\n",
            text(place.path("worker")),
            text(place.path("id/worker/w1")),
        );
        std::fs::write(place.path("coordinator.toml"), coordinator).expect("write");
        std::fs::write(place.path("worker.toml"), worker).expect("write");
        Self { place, url: format!("kiln://127.0.0.1:{link}") }
    }

    /// Starts `coordinator` or `worker`.
    pub fn start(&self, daemon: &str) -> Process {
        self.start_as(daemon, &format!("{daemon}.toml"))
    }

    /// Starts a daemon with this configuration. What it logs is kept, for whoever reads why a test failed.
    pub fn start_as(&self, daemon: &str, config: &str) -> Process {
        let mut command = self.place.kiln(&[daemon, "--config", config]);
        let log = File::options().create(true).append(true).open(self.place.path(LOG)).expect("open the daemons' log");
        Process::start(command.stderr(log))
    }

    /// Returns the arguments that name the farm.
    pub fn farm(&self) -> [&str; 4] {
        ["--farm", &self.url, "--identity", "id/client/me"]
    }

    /// Asks until the coordinator answers; each question has its own time-out.
    pub fn wait_until_up(&self) {
        let mut asked = (0..60).map(|_| self.place.run(&[&["status"][..], &self.farm()[..]].concat()).code());
        let is_up = asked.any(|code| code == 0);
        assert!(
            is_up,
            "the coordinator does not answer: {}",
            std::fs::read_to_string(self.place.path(LOG)).expect("read the daemons' log")
        );
    }
}

#[test]
fn daemons_that_are_killed_come_back_and_end_the_build() {
    let undisturbed = Place::new(SLOW);
    let farm = undisturbed.up();
    let reference = hashes(&undisturbed, &[]);
    drop(farm);

    let daemons = Daemons::new();
    let coordinator = daemons.start("coordinator");
    let worker = daemons.start("worker");
    daemons.wait_until_up();

    let (build, _) = build_until(&daemons.place, &daemons.farm(), 2);
    worker.kill_9();
    let _worker = daemons.start("worker");
    let (code, rest) = build.finish();
    assert_eq!(code, 0, "the build ends by itself after its worker came back: {rest}");

    std::fs::write(
        daemons.place.path("set.nix"),
        std::fs::read_to_string(daemons.place.path("set.nix")).expect("read").replace("echo ${name}", "echo two ${name}"),
    )
    .expect("write");
    std::fs::copy(daemons.place.path("set.nix"), undisturbed.path("set.nix")).expect("copy");
    let (build, committed) = build_until(&daemons.place, &daemons.farm(), 2);
    coordinator.kill_9();
    build.kill_9();
    let _coordinator = daemons.start("coordinator");
    daemons.wait_until_up();
    end_build(&daemons.place, &daemons.farm(), &committed);
    let after = hashes(&daemons.place, &daemons.farm());
    let farm = undisturbed.up();
    assert_eq!(after, hashes(&undisturbed, &[]));
    drop(farm);
    assert_eq!(after.len(), reference.len());
}

#[test]
fn a_certificate_allows_its_role_and_no_more() {
    let daemons = Daemons::new();
    let _coordinator = daemons.start("coordinator");
    daemons.wait_until_up();
    let as_worker = daemons.place.run(&["build", "-f", "set.nix", "--farm", &daemons.url, "--identity", "id/worker/w1"]);
    assert_ne!(as_worker.code(), 0);
    assert!(as_worker.err().contains("does not allow"), "{}", as_worker.err());
    daemons.place.run(&["ca", "init", "--dir", "other", "--farm", "test"]).expect_success();
    daemons.place.run(&["ca", "issue", "--dir", "other", "--role", "client/me", "--out", "stranger"]).expect_success();
    let stranger = daemons.place.run(&["status", "--farm", &daemons.url, "--identity", "stranger"]);
    assert_eq!(stranger.code(), 3, "{}", stranger.err());
}

#[test]
fn a_byte_that_flips_on_disk_is_found_and_named() {
    let place = Place::new(r#"{ one = drv "one" "echo one > $out" [ ]; }"#);
    let farm = place.up();
    let path = place.run(&["build", "-f", "set.nix", "-A", "one"]).expect_success().out().trim().to_owned();
    let hash = path.trim_start_matches("/nix/store/")[..32].to_owned();
    flip(nar_of(&place.path("farm/store"), &path), 0.5);
    let fetched = place.run(&["build", "-f", "set.nix", "-A", "one", "--to", "root"]);
    assert_ne!(fetched.code(), 0);
    assert!(fetched.err().contains(&hash), "the path is named: {}", fetched.err());
    assert!(!place.path("root").join(path.trim_start_matches('/')).exists(), "nothing wrong is kept");
    farm.kill_9();

    let segment = std::fs::read_dir(place.path("farm/raft/log"))
        .expect("a log")
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .min()
        .expect("a segment");
    let bytes = std::fs::read(&segment).expect("readable");
    let used = bytes.iter().rposition(|byte| *byte != 0).expect("it is not empty");
    flip(segment.clone(), used as f64 / bytes.len() as f64 / 2.0);
    let refused = place.run(&["up", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    assert_ne!(refused.code(), 0);
    let name = segment.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(refused.err().contains(&name) && refused.err().contains("at byte"), "file and offset are named: {}", refused.err());
}

/// Flips a bit of the byte at this share of a file.
pub fn flip(file: PathBuf, share: f64) {
    let mut bytes = std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let at = (bytes.len() as f64 * share) as usize;
    bytes[at] ^= 0x10;
    std::fs::write(&file, bytes).expect("write");
}
