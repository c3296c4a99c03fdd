//! Coordinators of two versions in one group, as in the midst of an upgrade; and those that are too old for it.

mod raft_support;

use std::time::Duration;

use kiln_coordinator::raft::{ClusterError, Consensus, ConsensusConfig, ConsensusError, this_program};
use kiln_wire::{Leader, NodeId, Program, Version};
use raft_support::group::{Group, Node, add, agree, commit, leader, until};
use raft_support::wire::{Append, Entry, Position, Unknown, Vote, Wire};
use raft_support::{chain, register};

const OLDER: Version = Version(1);

/// A coordinator that says that it speaks the version before only.
fn older(config: ConsensusConfig) -> ConsensusConfig {
    ConsensusConfig { program: Program { release: "0.1.0".into(), oldest: OLDER, newest: OLDER }, ..config }
}

/// Starts coordinators 1 to 3 of the older version as one group of voters.
async fn form_older(group: &Group) -> Vec<Node> {
    let any = || "127.0.0.1:0".parse().expect("an address");
    let mut nodes = vec![group.start_as(older(group.config(1)), any()).await];
    for number in [2, 3] {
        let node = group.start_as(older(group.config(number)), any()).await;
        add(&nodes, &node).await;
        nodes.push(node);
    }
    nodes
}

/// Stops a coordinator and starts this program in its place.
async fn upgrade(group: &Group, nodes: &mut Vec<Node>, number: u64) {
    let at = nodes.iter().position(|node| node.number == NodeId(number)).expect("a member");
    let addr = nodes.remove(at).stop().await;
    nodes.push(group.start_as(group.config(number), addr).await);
}

/// Has a coordinator lead.
async fn let_lead(nodes: &[Node], number: u64) {
    for _ in 0..100 {
        // It may lag a moment yet, or another may lead meanwhile.
        if leader(nodes).await.consensus.hand_over(Some(NodeId(number))).await.is_ok() {
            let wanted = nodes.iter().find(|node| node.number == NodeId(number)).expect("a member");
            return until("it leads", || wanted.leads()).await;
        }
        commit(nodes, register(0)).await;
    }
    panic!("coordinator {number} does not take over in 100 tries");
}

async fn wait_for_version(nodes: &[Node], version: Version) {
    until("all are at the version", || nodes.iter().all(|node| node.consensus.version() == version)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_raised_once_the_last_coordinator_speaks_the_newer_version() {
    let group = Group::new();
    let mut nodes = form_older(&group).await;
    commit(&nodes, register(1)).await;
    for (round, number) in [3, 2, 1].into_iter().enumerate() {
        wait_for_version(&nodes, OLDER).await;
        upgrade(&group, &mut nodes, number).await;
        commit(&nodes, register(10 + round as u64)).await;
        if round < 2 {
            // The newer one leads and must write what the older ones read: whatever they could not would stop them.
            let_lead(&nodes, number).await;
            commit(&nodes, register(20 + round as u64)).await;
            agree(&nodes).await;
            assert!(nodes.iter().all(|node| node.consensus.version() == OLDER), "raised too soon");
        }
    }
    wait_for_version(&nodes, this_program().newest).await;
    commit(&nodes, register(30)).await;
    agree(&nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_too_old_for_its_group_neither_starts_nor_is_taken_in() {
    let group = Group::new();
    let mut nodes = group.form(3).await;
    wait_for_version(&nodes, this_program().newest).await;
    let newest = this_program().newest;
    let at = nodes.iter().position(|node| !node.leads()).expect("a follower");
    let follower = nodes.remove(at);
    let number = follower.number;
    follower.stop().await;
    let refused = Consensus::start(older(group.config(number.0))).await.map(drop).expect_err("it cannot read its own log");
    assert!(matches!(refused, ConsensusError::Version { .. }), "{refused:?}");
    let refused = chain(&refused);
    let want = format!("kiln 0.1.0 (speaks 1) is too old for the farm, which is at version {newest}: install");
    assert!(refused.contains(&want), "{refused}");
    let new = group.start_as(older(group.config(4)), "127.0.0.1:0".parse().expect("an address")).await;
    let refused = leader(&nodes).await.consensus.add(NodeId(4), new.addr.to_string()).await.expect_err("it cannot read the log");
    assert!(matches!(refused, ClusterError::Refused { .. } | ClusterError::Unreachable { .. }), "{refused:?}");
    let refused = chain(&refused);
    assert!(refused.contains("is too old for the farm") && refused.contains(&format!("version {newest}")), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_a_coordinator_cannot_read_stops_it_and_says_so() {
    let group = Group::new();
    let node = group.start(2).await;
    let vote = Vote { leader: Leader { term: 9, node: NodeId(1) }, committed: true };
    let entry = Entry { position: Position { leader: vote.leader, index: 0 }, content: Unknown::FromLater(7) };
    let wire = Wire::open(&group, 1, &node).await;
    assert_eq!(wire.version, this_program().newest.0, "as version 1 reads it");
    let _open = wire.append(&Append { vote, prev: None, committed: None, entries: vec![entry] }).await;
    let stopped = tokio::time::timeout(Duration::from_secs(60), node.consensus.stopped()).await.expect("it stops").to_string();
    assert!(stopped.contains("entries that cannot be read by the program kiln"), "{stopped}");
}
