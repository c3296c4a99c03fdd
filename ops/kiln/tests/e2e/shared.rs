//! A farm whose store is a bucket: nothing of a finished build is on the coordinator's disk, and a bucket that fails delays and loses nothing.

use std::path::Path;

use kiln_s3::{Config, Faults, S3Server};
use tokio::runtime::Runtime;

use crate::builds::{copy_with_nix, log_with_nix};
use crate::crashes::Daemons;
use crate::farm::{Process, free_port, wait_for};

/// A chain and a few beside it, small enough to be quick.
pub const SET: &str = r#"
let step = name: deps: drv name "cat $deps /dev/null > $out; echo ${name} >> $out; echo made ${name}" deps; in
rec {
  all = map (i: step "row-${i}" [ chain ]) (range 3);
  chain = builtins.foldl' (below: i: step "chain-${i}" [ below ]) (step "chain" [ ]) (range 3);
  broken = drv "broken" "echo this one fails; exit 1" [ chain ];
}
"#;

/// What the farm signs its requests with.
pub const S3_SECRET: &str = "s3-secret-b3c1f0a7";

/// A bucket of the test's own.
pub struct Bucket {
    pub server: S3Server,
    _runtime: Runtime,
}

impl Bucket {
    /// Serves a bucket from a directory.
    pub fn serve(dir: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let config = Config {
            listen: "127.0.0.1:0".parse().expect("an address"),
            dir: dir.to_owned(),
            access_key: "key".to_owned(),
            secret_key: S3_SECRET.to_owned(),
            buckets: vec!["kiln".to_owned()],
        };
        let server = runtime.block_on(S3Server::start(config)).expect("starts");
        Self { server, _runtime: runtime }
    }

    /// Changes what goes wrong.
    pub fn set_faults(&self, faults: &str) {
        self.server.set_faults(Faults::parse(faults).expect("faults"));
    }
}

/// Gives the coordinator of these daemons a store in the bucket and a signing key beside its directory.
pub fn share_store(daemons: &Daemons, bucket: &Bucket) {
    let place = &daemons.place;
    place.run(&["keys", "generate", "--name", "test-1", "signing.key"]).expect_success();
    let secret = place.path("s3.toml");
    std::fs::write(&secret, format!("access_key_id = 'key'\nsecret_access_key = '{S3_SECRET}'\n")).expect("write");
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
    let file = place.path("coordinator.toml");
    let text = std::fs::read_to_string(&file).expect("read");
    let store = format!(
        "signing_key = '{}'\n[store]\nurl = 's3://kiln/farms/test'\nendpoint = '{}'\nallow_http = true\ncredentials = '{}'\n",
        place.path("signing.key").display(),
        bucket.server.endpoint(),
        secret.display(),
    );
    std::fs::write(file, text + &store).expect("write");
}

#[test]
fn a_farm_on_a_bucket_that_fails_builds_everything_and_nix_reads_it() {
    let daemons = Daemons::with(SET);
    let place = &daemons.place;
    let bucket = Bucket::serve(&place.path("s3"));
    share_store(&daemons, &bucket);
    let coordinator = daemons.start("coordinator");
    let _worker = daemons.start("worker");
    daemons.wait_until_up();
    bucket.set_faults("errors_percent=20&lost_percent=5&cut_percent=5&delay_ms=2&seed=4");
    let built = place.run(&[&["build", "-f", "set.nix", "-A", "all"], &daemons.farm()[..]].concat()).expect_success();
    assert!(bucket.server.served().faults > 10, "{:?}", bucket.server.served());
    bucket.set_faults("");
    assert!(!place.path("coordinator/store").exists(), "no output is on the coordinator's disk");
    let status = place.run(&[&["status", "--json"], &daemons.farm()[..]].concat()).expect_success().json();
    let text = |name: &str| status[name].as_str().expect("text").to_owned();
    assert!(text("publicKey").starts_with("test-1:"), "the key that was configured signs: {}", text("publicKey"));
    for path in built.out().lines() {
        copy_with_nix(place, &text("cacheUrl"), &text("publicKey"), path);
    }
    let failed = place.run(&[&["build", "-f", "set.nix", "-A", "broken"], &daemons.farm()[..]].concat());
    assert!(failed.code() == 1 && failed.err().contains("| this one fails"), "{}", failed.err());
    let broken = failed.err().lines().find_map(|line| Some(line.split_once("-broken.drv failed:")?.0.trim().to_owned())).expect("named");
    let log = place.run(&[&["log", &format!("{broken}-broken.drv")], &daemons.farm()[..]].concat()).expect_success();
    assert_eq!(log.out(), "this one fails\n");
    wait_for("logs and builds leave the coordinator's disk", || {
        place.run(&[&["status"], &daemons.farm()[..]].concat()).expect_success();
        let left = |dir: &str| std::fs::read_dir(place.path(dir)).map_or(0, Iterator::count);
        let (log, builds) = (format!("s3/kiln/farms/test/logs/{broken}-broken.drv"), left("s3/kiln/farms/test/builds"));
        (left("coordinator/logs") == 0 && left("coordinator/builds") == 0 && left(&log) == 1 && builds == 2).then_some(())
    });
    let again = place.run(&[&["log", &format!("{broken}-broken.drv")], &daemons.farm()[..]].concat()).expect_success();
    assert_eq!(again.out(), "this one fails\n", "read from the bucket");

    // What a leader that died left on its disk: a whole log that the bucket lacks, and a part of one that the bucket has.
    coordinator.kill_9();
    let kept = |derivation: &str, attempt: &str| place.path(&format!("s3/kiln/farms/test/logs/{derivation}/{attempt}.log.zst"));
    let lost = format!("{}-lost.drv", "0".repeat(32));
    let attempt = std::fs::read_dir(kept(&format!("{broken}-broken.drv"), "").parent().expect("a directory"));
    let name = attempt.expect("a log").next().expect("a log").expect("readable").file_name().into_string().expect("text");
    let attempt = name.trim_end_matches(".log.zst").to_owned();
    for (derivation, attempt, text) in [(lost.clone(), "7", "all of it\n"), (format!("{broken}-broken.drv"), attempt.as_str(), "this")] {
        let dir = place.path(&format!("coordinator/logs/{derivation}"));
        std::fs::create_dir_all(&dir).expect("make directory");
        std::fs::write(dir.join(format!("{attempt}.log")), text).expect("write");
    }
    let _coordinator = daemons.start("coordinator");
    daemons.wait_until_up();
    wait_for("what was left is swept up", || {
        place.run(&[&["status"], &daemons.farm()[..]].concat()).expect_success();
        (std::fs::read_dir(place.path("coordinator/logs")).map_or(0, Iterator::count) == 0).then_some(())
    });
    assert!(kept(&lost, "7").exists());
    for (derivation, text) in [(lost, "all of it\n"), (format!("{broken}-broken.drv"), "this one fails\n")] {
        let log = place.run(&[&["log", &derivation], &daemons.farm()[..]].concat()).expect_success();
        assert_eq!(log.out(), text, "{derivation}");
    }
}

/// Another coordinator beside the first of these daemons: configuration `coordinator-NODE.toml`, with a certificate. Returns its address
/// and that of its cache.
pub fn beside(daemons: &Daemons, node: u64) -> (String, String) {
    let place = &daemons.place;
    let identity = format!("coordinator-{node}");
    if !place.path(&identity).exists() {
        place.run(&["ca", "issue", "--dir", "ca", "--role", &format!("coordinator/{node}"), "--out", &identity]).expect_success();
    }
    let (link, http) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let first = std::fs::read_to_string(place.path("coordinator.toml")).expect("read");
    let common: String = first.split_inclusive('\n').skip_while(|line| !line.starts_with("signing_key")).collect();
    let text = format!(
        "dir = '{}'\nfarm = 'test'\nnode = {node}\nlisten = '{link}'\nhttp = '{http}'\nidentity = '{}'\njoin = ['{}']\n{common}",
        place.path(&format!("farm-{node}")).display(),
        place.path(&identity).display(),
        daemons.url.trim_start_matches("kiln://"),
    );
    std::fs::write(place.path(&format!("coordinator-{node}.toml")), text).expect("write");
    (link, http)
}

/// Three coordinators that share a store, and their worker.
pub struct Three {
    /// The first one leads.
    pub coordinators: Vec<Process>,
    /// Their HTTP addresses.
    pub caches: Vec<String>,
    /// It knows them all.
    _worker: Process,
}

/// Starts the first coordinator, with a store that others can share, and takes two others in.
pub fn three(daemons: &mut Daemons) -> Three {
    daemons.place.run(&["ca", "issue", "--dir", "ca", "--role", "admin/root", "--out", "id/admin/root"]).expect_success();
    let config = std::fs::read_to_string(daemons.place.path("coordinator.toml")).expect("read");
    let http = config.lines().find_map(|line| line.strip_prefix("http = '")).expect("an address").trim_end_matches('\'');
    let mut caches = vec![format!("http://{http}")];
    let mut coordinators = vec![daemons.start("coordinator")];
    daemons.wait_until_up();
    for node in [2, 3] {
        let (link, http) = beside(daemons, node);
        coordinators.push(daemons.start_as("coordinator", &format!("coordinator-{node}.toml")));
        let words = ["cluster", "add", &node.to_string(), &link, "--farm", &daemons.url, "--identity", "id/admin/root"];
        wait_for("it is taken in", || (daemons.place.run(&words).code() == 0).then_some(()));
        daemons.url = format!("{},{link}", daemons.url);
        caches.push(format!("http://{http}"));
    }
    let place = &daemons.place;
    let worker = std::fs::read_to_string(place.path("worker.toml")).expect("read");
    let all: Vec<String> = daemons.url.trim_start_matches("kiln://").split(',').map(|host| format!("'{host}'")).collect();
    let worker = worker.replace(&format!("[{}]", all[0]), &format!("[{}]", all.join(", ")));
    std::fs::write(place.path("worker.toml"), worker).expect("write");
    let words = ["cluster", "status", "--json", "--farm", &daemons.url, "--identity", "id/client/me"];
    wait_for("everybody is in step", || (place.run(&words).out().matches("\"state\":\"voter\"").count() == 2).then_some(()));
    let worker = daemons.start("worker");
    Three { coordinators, caches, _worker: worker }
}

#[test]
fn what_one_coordinator_finished_the_next_leader_shows_and_every_one_serves() {
    let mut daemons = Daemons::with(SET);
    let bucket = Bucket::serve(&daemons.place.path("s3"));
    share_store(&daemons, &bucket);
    let mut farm = three(&mut daemons);
    let first = farm.coordinators.remove(0);
    let place = &daemons.place;
    let built = place.run(&[&["build", "-f", "set.nix", "-A", "chain"], &daemons.farm()[..]].concat()).expect_success();
    let failed = place.run(&[&["build", "-f", "set.nix", "-A", "broken"], &daemons.farm()[..]].concat());
    let broken = failed.err().lines().find_map(|line| Some(line.split_once("-broken.drv failed:")?.0.trim().to_owned())).expect("named");
    let status = place.run(&[&["status", "--json"], &daemons.farm()[..]].concat()).expect_success().json();
    let key = status["publicKey"].as_str().expect("text").to_owned();
    wait_for("the log is in the bucket", || place.path(&format!("s3/kiln/farms/test/logs/{broken}-broken.drv")).exists().then_some(()));
    let caches = &farm.caches[1..];
    for cache in caches {
        copy_with_nix(place, cache, &key, built.out().trim());
        assert_eq!(log_with_nix(place, cache, &format!("/nix/store/{broken}-broken.drv")), "this one fails\n");
    }
    first.kill_9();
    let log = place.run(&[&["log", &format!("{broken}-broken.drv")], &daemons.farm()[..]].concat()).expect_success();
    assert_eq!(log.out(), "this one fails\n");
    let again = place.run(&[&["build", "-f", "set.nix", "-A", "all"], &daemons.farm()[..]].concat()).expect_success();
    copy_with_nix(place, &caches[0], &key, again.out().lines().next().expect("a path"));
}

#[test]
fn a_bucket_that_goes_away_in_mid_build_holds_it_up_and_charges_nobody() {
    let daemons = Daemons::with(SET);
    let place = &daemons.place;
    let bucket = Bucket::serve(&place.path("s3"));
    share_store(&daemons, &bucket);
    let _coordinator = daemons.start("coordinator");
    let _worker = daemons.start("worker");
    daemons.wait_until_up();
    let mut build = Process::start(&mut place.kiln(&[&["build", "-f", "set.nix", "-A", "all", "--json"], &daemons.farm()[..]].concat()));
    build.wait_for_line("\"event\":\"built\"");
    let before = bucket.server.served().faults;
    bucket.set_faults("away=true");
    wait_for("the bucket is missed", || {
        place.run(&[&["status"], &daemons.farm()[..]].concat()).expect_success();
        // More than the tries of every request that can be under way: some have given up, and whoever asked waits.
        (bucket.server.served().faults > before + 30).then_some(())
    });
    bucket.set_faults("");
    let (code, said) = build.finish();
    assert_eq!(code, 0, "{said}");
    assert!(!said.contains("\"event\":\"retried\"") && !said.contains("\"event\":\"failed\""), "{said}");
}

#[test]
fn a_coordinator_that_joins_must_share_a_store_and_a_key_and_is_told_why() {
    let daemons = Daemons::with("{ }");
    let place = &daemons.place;
    let file = place.path("coordinator.toml");
    let alone = std::fs::read_to_string(&file).expect("read");
    for (more, expected) in [
        ("", "is lost with it, and no other could serve it"),
        ("[store]\nurl = 's3://kiln/farm'\n", "who trusts one refuses what another signed"),
    ] {
        std::fs::write(&file, format!("join = ['127.0.0.1:1']\n{alone}{more}")).expect("write");
        let refused = place.run(&["coordinator", "--config", "coordinator.toml"]);
        assert_eq!(refused.code(), 2, "{}", refused.err());
        assert!(refused.err().contains(expected) && refused.err().contains("join a farm"), "{}", refused.err());
        assert!(!place.path("coordinator").exists(), "nothing was begun");
    }
    std::fs::write(&file, alone).expect("write");
    place.run(&["ca", "issue", "--dir", "ca", "--role", "admin/root", "--out", "id/admin/root"]).expect_success();
    let _coordinator = daemons.start("coordinator");
    daemons.wait_until_up();
    let refused = place.run(&["cluster", "add", "2", "127.0.0.1:1", "--farm", &daemons.url, "--identity", "id/admin/root"]);
    assert!(
        refused.code() != 0 && refused.err().contains("add coordinator 2") && refused.err().contains("lost with it"),
        "{}",
        refused.err()
    );
}
