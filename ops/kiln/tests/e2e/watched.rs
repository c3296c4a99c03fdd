//! A farm of three coordinators and two workers, watched by a real Prometheus: without faults nothing fires, and with each fault its alert does.
//!
//! | alert | fault |
//! |---|---|
//! | `KilnBackupOld` | the farm was never backed up; a backup ends it |
//! | `KilnDiskFull` | a disk without room for the log's next file; room ends it |
//! | `KilnDiskNearlyFull` | that disk is filled to nineteen parts of twenty |
//! | `KilnNoWorkerForQueue` | a job for a system that no worker has |
//! | `KilnWorkersStrained` | a worker whose disk is too small for what must be free there |
//! | `KilnInfrastructureFailures`, `KilnQueueNotDraining` | kill -9 of the worker that runs twelve jobs |
//! | `KilnCoordinatorDown`, `KilnMemberSilent`, `KilnQuorumAtRisk`, `KilnReplicationLag` | kill -9 of a coordinator that follows |
//! | `KilnNoWorkers` | the last worker ends |
//! | `KilnNoLeader` | kill -9 of a second coordinator |
//! | `KilnWorkerQuarantined` | a worker's directory is broken: `quarantined::a_worker_with_a_broken_disk_is_quarantined_and_its_jobs_are_built_elsewhere` |
//!
//! `KilnCommitSlow` is shown by the tests of the rules alone (`ops/alerts/kiln_test.yml`): no disk here is slow on request. How the rules are
//! hurried says [`crate::prometheus`].

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::crashes::Daemons;
use crate::failures::{wait_for_workers, worker};
use crate::farm::{Place, Process, wait_for};
use crate::prometheus::{Prometheus, RULES, get};
use crate::shared::{Bucket, beside, share_store};
use crate::strained::Small;

const SET: &str = r#"
rec {
  hello = drv "hello" "echo hello > $out" [ ];
  long = map (n: drv "long-${n}" "${boot}/busybox sleep 3000" [ ]) (range 12);
  strange = derivation { name = "strange"; system = "riscv64-linux"; builder = "${boot}/busybox"; args = [ ]; };
  both = [ long strange ];
}
"#;

/// A worker that takes twelve jobs, whatever the machine does beside it.
const ROOMY: &str = "cores = 16\ndisk_free_bytes_min = 8388608\n[admission]\nmemory_free_mib_min = 0\nmemory_pressure_percent_max = 0\n\
                     io_pressure_percent_max = 0\nload_percent_max = 0\n";

const DASHBOARD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../grafana/kiln.json");

/// Three coordinators, of which the third has a disk of its own.
struct Watched {
    coordinators: Vec<Process>,
    /// Where their metrics are.
    targets: Vec<String>,
    /// The third's disk.
    disk: Small,
    _bucket: Bucket,
    daemons: Daemons,
}

impl Watched {
    fn new() -> Self {
        let mut daemons = Daemons::with(SET);
        let place = &daemons.place;
        place.run(&["ca", "issue", "--dir", "ca", "--role", "admin/root", "--out", "id/admin/root"]).expect_success();
        let bucket = Bucket::serve(&place.path("s3"));
        share_store(&daemons, &bucket);
        // One file of the log has room there, and the next one has not.
        let disk = Small::mount(&place.path("farm-3"), 30);
        let config = fs::read_to_string(place.path("coordinator.toml")).expect("read");
        let first = config.lines().find_map(|line| line.strip_prefix("http = '")).expect("an address").trim_end_matches('\'');
        let mut targets = vec![first.to_owned()];
        let mut coordinators = vec![daemons.start("coordinator")];
        daemons.wait_until_up();
        let mut all = daemons.url.trim_start_matches("kiln://").to_owned();
        for node in [2, 3] {
            let (link, http) = beside(&daemons, node);
            coordinators.push(daemons.start_as("coordinator", &format!("coordinator-{node}.toml")));
            let words = ["cluster", "add", &node.to_string(), &link, "--farm", &daemons.url, "--identity", "id/admin/root"];
            wait_for("it is taken in", || (daemons.place.run(&words).code() == 0).then_some(()));
            all = format!("{all},{link}");
            targets.push(http);
        }
        let hosts: Vec<String> = all.split(',').map(|host| format!("'{host}'")).collect();
        let config = fs::read_to_string(daemons.place.path("worker.toml")).expect("read");
        let config = config.replace(&format!("[{}]", hosts[0]), &format!("[{}]", hosts.join(", ")));
        fs::write(daemons.place.path("worker.toml"), config).expect("write");
        daemons.url = format!("kiln://{all}");
        Self { coordinators, targets, disk, _bucket: bucket, daemons }
    }

    fn place(&self) -> &Place {
        &self.daemons.place
    }

    fn backup(&self) {
        let words = ["cluster", "backup", "farm.backup", "--farm", &self.daemons.url, "--identity", "id/admin/root"];
        self.place().run(&words).expect_success();
    }

    /// Has the farm write some entries of its log.
    fn write_entries(&self, count: u32) {
        for weight in 1..=count {
            let words = ["share", "set", "me", "--weight", &weight.to_string(), "--farm", &self.daemons.url, "--identity", "id/admin/root"];
            self.place().run(&words).expect_success();
        }
    }

    fn building(&self, attribute: &str) -> Process {
        Process::start(&mut self.place().kiln(&[&["build", "-f", "set.nix", "-A", attribute, "--json"], &self.daemons.farm()[..]].concat()))
    }

    /// Kills a coordinator that does not lead.
    fn kill_a_follower(&mut self, prefer_last: bool) {
        let leads = |target: &String| get(target, "/metrics").is_some_and(|page| page.contains("\nkiln_raft_leader 1\n"));
        let followers: Vec<usize> = (0..self.targets.len()).filter(|at| !leads(&self.targets[*at])).collect();
        let at = if prefer_last { followers.last() } else { followers.first() };
        let at = *at.expect("at most one leads");
        self.targets.remove(at);
        self.coordinators.remove(at).kill_9();
    }
}

#[test]
fn every_alert_fires_at_its_fault_and_without_faults_none_does() {
    let mut farm = Watched::new();
    let first = worker(&farm.daemons, 1, ROOMY);
    rewrite(&farm.place().path(&first), "slots = 2", "slots = 12");
    let second = worker(&farm.daemons, 2, &format!("disk_free_bytes_min = {}\n", 1u64 << 60));
    let strong = farm.daemons.start_as("worker", &first);
    wait_for_workers(&farm.daemons, &["w1"]);
    let targets: Vec<&str> = farm.targets.iter().map(String::as_str).collect();
    let mut prometheus = Prometheus::start(farm.place(), &targets);

    prometheus.wait_for_alerts(&["KilnBackupOld", "KilnDiskFull"]);
    farm.backup();
    farm.disk.resize(100);
    let built = [&["build", "-f", "set.nix", "-A", "hello"], &farm.daemons.farm()[..]].concat();
    farm.place().run(&built).expect_success();
    let third = farm.targets[2].clone();
    wait_for("silence", || {
        let firing = prometheus.firing();
        // The machine's own disk, and how fast it is, are no faults of this test's.
        let ours = |name: &str, instance: &str| name != "KilnCommitSlow" && (name != "KilnDiskNearlyFull" || instance == third);
        let is_silent = !firing.iter().any(|(name, instance)| ours(name, instance));
        // Fifteen seconds of it: what is counted over time has been.
        let looked = prometheus.query("min(count_over_time(up[1m])) > 15").expect("an expression");
        (is_silent && !looked.is_empty()).then_some(())
    });
    prometheus.forget();
    pages_are_clean(&farm.targets);
    the_dashboard_is_understood(&prometheus, &farm.targets[0]);

    let client = farm.building("both");
    let weak = farm.daemons.start_as("worker", &second);
    prometheus.wait_for_result("max(kiln_attempts_running) == 12");
    strong.kill_9();
    farm.disk.fill_but(5 << 20);
    prometheus.wait_for_alerts(&["KilnNoWorkerForQueue", "KilnWorkersStrained", "KilnDiskNearlyFull"]);
    farm.kill_a_follower(true);
    farm.write_entries(6);
    prometheus.wait_for_alerts(&["KilnCoordinatorDown", "KilnMemberSilent", "KilnQuorumAtRisk"]);
    prometheus.wait_for_alerts(&["KilnInfrastructureFailures", "KilnReplicationLag", "KilnQueueNotDraining"]);
    drop(weak);
    prometheus.wait_for_alerts(&["KilnNoWorkers"]);
    farm.kill_a_follower(false);
    prometheus.wait_for_alerts(&["KilnNoLeader"]);
    // Nobody is left who could let them end in order.
    farm.coordinators.drain(..).chain([client]).for_each(Process::kill_9);
}

fn rewrite(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).expect("read");
    assert!(text.contains(from), "{text}");
    fs::write(file, text.replace(from, to)).expect("write");
}

/// Has Prometheus' own tool look for what its conventions forbid.
fn pages_are_clean(targets: &[String]) {
    for target in targets {
        let page = get(target, "/metrics").expect("it answers");
        let mut check =
            Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
        std::io::Write::write_all(&mut check.stdin.take().expect("a pipe"), page.as_bytes()).expect("it reads");
        let ended = check.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success() && said.is_empty(), "{target}: {said}\n{page}");
    }
}

/// Every expression of the dashboard has an answer, and it and the rules name families that a coordinator tells.
fn the_dashboard_is_understood(prometheus: &Prometheus, target: &str) {
    let page = get(target, "/metrics").expect("it answers");
    let families: BTreeSet<&str> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let text = fs::read_to_string(DASHBOARD).expect("the dashboard is there");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("a list");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let expressions: Vec<&str> = targets.map(|target| target["expr"].as_str().expect("an expression")).collect();
    assert!(expressions.len() > 40, "{} expressions", expressions.len());
    for expression in &expressions {
        let asked = expression.replace("$__rate_interval", "15s").replace("$job", "kiln");
        let answer = prometheus.query(&asked);
        assert!(answer.is_ok(), "{asked}: {answer:?}");
    }
    let rules = fs::read_to_string(RULES).expect("the rules are there");
    let words = expressions.iter().copied().chain(rules.lines().filter(|line| !line.trim_start().starts_with('#')));
    for word in words.flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')) {
        let is_part = || ["_bucket", "_sum", "_count"].iter().any(|part| word.strip_suffix(part).is_some_and(|of| families.contains(of)));
        let is_metric = word.starts_with("kiln_") || word.starts_with("process_");
        assert!(!is_metric || families.contains(word) || is_part(), "{word} is no metric of {target}:\n{page}");
    }
}
