//! A full disk. Each test runs again in a namespace of its own, where a small file system can be mounted.

mod raft_support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use kiln_coordinator::raft::{ConsensusConfig, ConsensusError};
use kiln_wire::NodeId;
use raft_support::group::{Group, Node, add, agree, commit, leader, until};
use raft_support::{chain, register};
use tempfile::TempDir;

const DIR: &str = "KILN_RAFT_FULL_DIR";
const SIZE: &str = "2m";

/// Runs the test of this name again with a small file system; returns where that is, if this is that run already.
fn small_disk(test: &str) -> Option<TempDir> {
    let dir = TempDir::new_in(std::env::var_os(DIR).unwrap_or_else(|| std::env::temp_dir().into())).expect("a directory");
    if std::env::var_os(DIR).is_some() {
        return Some(dir);
    }
    let script = format!("mount -t tmpfs -o size={SIZE} none \"$1\" && exec \"$2\" --exact {test} --nocapture");
    let program = std::env::current_exe().expect("this program");
    let mut again = Command::new("unshare");
    again.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"]).args([dir.path(), &program]).env(DIR, dir.path());
    let outcome = again.output().expect("these tests need `unshare` and user namespaces");
    let text = String::from_utf8_lossy(&outcome.stdout);
    assert!(outcome.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&outcome.stderr));
    None
}

/// Takes all the room that is left but `spare_bytes`.
fn fill(dir: &Path, spare_bytes: u64) {
    let ballast = fs::File::create(dir.join("ballast")).expect("creates");
    let block = vec![7; 4096];
    let mut at = 0;
    while ballast.write_all_at(&block, at).is_ok() {
        at += 4096;
    }
    ballast.set_len(at.saturating_sub(spare_bytes)).expect("shortens");
}

/// Small segments and snapshots, so that a small disk holds several.
fn on(dir: &Path, config: ConsensusConfig) -> ConsensusConfig {
    ConsensusConfig { dir: dir.join("raft"), segment_bytes: 32 << 10, snapshot_log_bytes: 64 << 10, keep_entries: 20, ..config }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_room_has_another_one_lead_and_comes_back() {
    let Some(disk) = small_disk("a_leader_without_room_has_another_one_lead_and_comes_back") else { return };
    let group = Group::new();
    let any = || "127.0.0.1:0".parse().expect("an address");
    let full = group.start_as(on(disk.path(), group.config(1)), any()).await;
    let mut nodes = vec![full];
    for number in [2, 3] {
        let node = group.start(number).await;
        add(&nodes, &node).await;
        nodes.push(node);
    }
    commit(&nodes, register(0)).await;
    fill(disk.path(), 4096);
    let mut number = 1;
    while nodes[0].leads() {
        commit(&nodes, register(number)).await;
        number += 1;
        assert!(number < 5000, "the full disk is not noticed");
    }
    let trouble = nodes[0].consensus.trouble().expect("it says so");
    assert!(trouble.contains("disk is full"), "{trouble}");
    let others: Vec<&Node> = nodes[1..].iter().collect();
    for more in 0..400 {
        commit(others.iter().copied(), register(number + more)).await;
    }
    until("even its last segment is full", || nodes[0].consensus.trouble().is_some_and(|trouble| trouble.contains("no part"))).await;
    fs::remove_file(disk.path().join("ballast")).expect("makes room");
    until("it takes part again", || nodes[0].consensus.trouble().is_none()).await;
    agree(&nodes).await;
    until("it can lead again", || nodes[0].consensus.leader().is_some()).await;
    let leading = leader(&nodes).await;
    if leading.number != NodeId(1) {
        leading.consensus.hand_over(Some(NodeId(1))).await.unwrap_or_else(|err| panic!("{}", chain(&err)));
    }
    until("it leads", || nodes[0].leads()).await;
    commit(&nodes, register(9999)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_alone_without_room_leads_no_more_until_there_is_room() {
    let Some(disk) = small_disk("a_coordinator_alone_without_room_leads_no_more_until_there_is_room") else { return };
    let group = Group::new();
    let node = group.start_as(on(disk.path(), group.config(1)), "127.0.0.1:0".parse().expect("an address")).await;
    fill(disk.path(), 4096);
    let mut committed = 0;
    let refused = loop {
        match node.consensus.propose(vec![register(committed)]).await {
            Ok(_) => committed += 1,
            Err(err) => break err,
        }
        assert!(committed < 5000, "the full disk is not noticed");
    };
    assert!(matches!(refused, ConsensusError::Unknown | ConsensusError::NotLeader { .. }), "{}", chain(&refused));
    assert!(!node.leads() && node.consensus.trouble().is_some());
    fs::remove_file(disk.path().join("ballast")).expect("makes room");
    until("it leads again", || node.leads()).await;
    node.consensus.propose(vec![register(committed + 1)]).await.expect("commits");
    let farm = node.farm();
    let addr = node.stop().await;
    let again = group.start_as(on(disk.path(), group.config(1)), addr).await;
    assert!(again.farm() == farm, "nothing was lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_without_room_can_be_stopped() {
    let Some(disk) = small_disk("a_coordinator_without_room_can_be_stopped") else { return };
    let group = Group::new();
    let node = group.start_as(on(disk.path(), group.config(1)), "127.0.0.1:0".parse().expect("an address")).await;
    fill(disk.path(), 4096);
    while node.consensus.propose(vec![register(1)]).await.is_ok() {}
    let addr = node.stop().await;
    fs::remove_file(disk.path().join("ballast")).expect("makes room");
    let again = group.start_as(on(disk.path(), group.config(1)), addr).await;
    again.consensus.propose(vec![register(2)]).await.expect("commits");
}
