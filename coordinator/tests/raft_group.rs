//! Several coordinators as one group: elections, isolation, wiped disks, long absences, changes of the group.

mod raft_support;

use std::time::Duration;

use kiln_coordinator::raft::{About, Backup, ClusterError, Consensus, ConsensusConfig, ConsensusError, Member};
use kiln_wire::{Leader, NodeId, StoreDir, Timestamp};
use raft_support::group::{Group, Node, add, agree, commit, leader, until};
use raft_support::wire::{Append, Heard, Position, Vote, Wire};
use raft_support::{chain, register};

fn refusal(outcome: Result<(), ClusterError>) -> String {
    let err = outcome.expect_err("refused");
    assert!(matches!(err, ClusterError::Refused { .. } | ClusterError::Unreachable { .. }), "{err:?}");
    chain(&err)
}

/// Starts three coordinators as one group.
async fn form(group: &Group, config: impl Fn(u64) -> ConsensusConfig) -> Vec<Node> {
    let any = || "127.0.0.1:0".parse().expect("an address");
    let mut nodes = vec![group.start_as(config(1), any()).await];
    for number in [2, 3] {
        let node = group.start_as(config(number), any()).await;
        add(&nodes, &node).await;
        nodes.push(node);
    }
    nodes
}

/// Returns whether a leader has not heard of another for longer than it is patient.
fn notes_silence(leader: &Node, of: NodeId) -> bool {
    let members = leader.consensus.members();
    leader.leads() && members.iter().any(|standing| standing.node == of && standing.silent_ms.is_some_and(|ms| ms > 3000))
}

#[tokio::test(flavor = "multi_thread")]
async fn three_coordinators_apply_the_same_and_only_the_leader_takes_proposals() {
    let group = Group::new();
    let nodes = group.form(3).await;
    for number in 0..50 {
        commit(&nodes, register(number)).await;
    }
    agree(&nodes).await;
    let leading = leader(&nodes).await.number;
    for node in nodes.iter().filter(|node| node.number != leading) {
        let refused = node.consensus.propose(vec![register(99)]).await;
        assert!(matches!(refused, Err(ConsensusError::NotLeader { leader: Some(known) }) if known == leading), "{refused:?}");
        let (known, member) = node.consensus.leader().expect("known");
        assert_eq!((known.node, &member.link), (leading, &nodes.iter().find(|node| node.number == leading).expect("one").addr.to_string()));
        assert_eq!(node.consensus.members().len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_dies_another_goes_on_and_the_dead_one_comes_back() {
    let group = Group::new();
    let mut nodes = group.form(3).await;
    let terms = leader(&nodes).await.consensus.leadership().borrow().leader;
    commit(&nodes, register(1)).await;
    let dead = nodes.iter().position(Node::leads).expect("somebody leads");
    let dead = nodes.remove(dead);
    let number = dead.number;
    let addr = dead.stop().await;
    commit(&nodes, register(2)).await;
    assert!(leader(&nodes).await.consensus.leadership().borrow().leader > terms);
    agree(&nodes).await;
    nodes.push(group.start_as(group.config(number.0), addr).await);
    commit(&nodes, register(3)).await;
    agree(&nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_the_others_leads_no_more_and_commits_nothing() {
    let group = Group::new();
    let nodes = group.form(3).await;
    commit(&nodes, register(1)).await;
    agree(&nodes).await;
    let old = leader(&nodes).await;
    let under_way = old.consensus.propose_nowait(vec![register(2)]);
    group.cut(old.number);
    let lost = old.consensus.propose_nowait(vec![register(3)]);
    until("the isolated leader leads no more", || !old.leads()).await;
    assert!(matches!(old.consensus.propose(vec![register(4)]).await, Err(ConsensusError::NotLeader { .. })));
    if let Ok(lost) = lost {
        // Answers may have been on their way when the cut came.
        assert!(matches!(lost.applied().await, Ok(_) | Err(ConsensusError::Unknown)));
    }
    drop(under_way);
    let others: Vec<&Node> = nodes.iter().filter(|node| node.number != old.number).collect();
    commit(others.iter().copied(), register(5)).await;
    assert!(!old.leads(), "two leaders");
    group.mend(old.number);
    commit(&nodes, register(6)).await;
    agree(&nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_coordinator_is_refused_under_its_number_and_taken_in_under_another() {
    let group = Group::new();
    let mut nodes = group.form(3).await;
    commit(&nodes, register(1)).await;
    let lost = nodes.iter().position(|node| !node.leads()).expect("a follower");
    let lost = nodes.remove(lost);
    let number = lost.number;
    let addr = lost.stop().await;
    std::fs::remove_dir_all(group.dir(number.0)).expect("wipes");
    let wiped = group.start_as(ConsensusConfig { join: true, ..group.config(number.0) }, addr).await;
    commit(&nodes, register(2)).await;
    assert_eq!(wiped.consensus.members(), [], "nobody tells it anything");
    let refused = refusal(leader(&nodes).await.consensus.add(number, addr.to_string()).await);
    assert!(refused.contains("never used again"), "{refused}");
    wiped.stop().await;
    leader(&nodes).await.consensus.remove(number).await.expect("removes");
    let new = group.start(4).await;
    add(&nodes, &new).await;
    nodes.push(new);
    commit(&nodes, register(3)).await;
    agree(&nodes).await;
    leader(&nodes).await.consensus.remove(number).await.expect("who asks again has what was wanted");
}

/// Small segments and snapshots, so that the log of a short test is soon dropped.
fn short(config: ConsensusConfig) -> ConsensusConfig {
    ConsensusConfig { segment_bytes: 32 << 10, snapshot_log_bytes: 64 << 10, keep_entries: 20, ..config }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_was_away_for_long_gets_a_snapshot_while_the_others_go_on() {
    let group = Group::new();
    let mut nodes = form(&group, |number| short(group.config(number))).await;
    let away = nodes.iter().position(|node| !node.leads()).expect("a follower");
    let away = nodes.remove(away);
    let (number, before) = (away.number, away.consensus.metrics());
    let addr = away.stop().await;
    let leading = leader(&nodes).await;
    for round in 0.. {
        assert!(round < 2000, "no snapshot after {round} rounds");
        leading.consensus.propose((0..16).map(|worker| register(round * 16 + worker)).collect()).await.expect("commits");
        // Once the log it needs is gone, only a snapshot helps.
        if leading.consensus.metrics().snapshot_index.0 > before.last_log_index.0 + 100 && leading.consensus.metrics().log_segments < 8 {
            break;
        }
    }
    let back = group.start_as(short(group.config(number.0)), addr).await;
    for worker in 0..20 {
        commit(&nodes, register(1_000_000 + worker)).await;
    }
    let all: Vec<&Node> = nodes.iter().chain([&back]).collect();
    agree(all.iter().copied()).await;
    until("it has caught up by a snapshot", || back.consensus.metrics().snapshot_index > before.last_log_index).await;
    let farm = back.farm();
    let addr = back.stop().await;
    let again = group.start_as(short(group.config(number.0)), addr).await;
    until("the restarted one has the same", || again.farm() == farm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_to_a_voter_that_is_in_step_only() {
    let group = Group::new();
    let nodes = group.form(3).await;
    commit(&nodes, register(1)).await;
    let old = leader(&nodes).await;
    let to = nodes.iter().find(|node| node.number != old.number).expect("another");
    old.consensus.hand_over(Some(to.number)).await.unwrap_or_else(|err| panic!("{}", chain(&err)));
    until("the other leads", || to.leads()).await;
    commit(&nodes, register(2)).await;
    let refused = refusal(to.consensus.hand_over(Some(NodeId(9))).await);
    assert!(refused.contains("no voter"), "{refused}");
    assert!(matches!(old.consensus.hand_over(None).await, Err(ClusterError::NotLeader)));
    group.cut(old.number);
    until("its silence is noted", || notes_silence(to, old.number)).await;
    let refused = refusal(to.consensus.hand_over(Some(old.number)).await);
    assert!(refused.contains("does not answer"), "{refused}");
    to.consensus.hand_over(None).await.expect("the third takes over");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_hands_over_answers_nobody_from_then_on() {
    let group = Group::new();
    // So patient that its time does not run out meanwhile.
    let patient = |number| ConsensusConfig { election_ms: [5_000, 20_000], ..group.config(number) };
    let nodes = form(&group, patient).await;
    let old = leader(&nodes).await;
    let heir = nodes.iter().map(|node| node.number).find(|number| *number != old.number).expect("another");
    assert!(old.consensus.leads().is_some());
    // The heir never hears of it, so that nothing else tells the old leader that it leads no more.
    group.cut(heir);
    let consensus = old.consensus.clone();
    let handing_over = tokio::spawn(async move { consensus.hand_over(Some(heir)).await });
    until("it answers as leader no more", || old.consensus.leads().is_none()).await;
    assert!(old.leads(), "its time has not run out");
    handing_over.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_was_restarted_elects_nobody_while_the_leader_that_it_answered_may_lead() {
    let group = Group::new();
    let hasty = |number| ConsensusConfig { heartbeat_ms: 40, election_ms: [100, 200], ..group.config(number) };
    let patient = |number| ConsensusConfig { heartbeat_ms: 40, election_ms: [2_000, 5_000], ..group.config(number) };
    let of = |number| if number == 3 { hasty(number) } else { patient(number) };
    let mut nodes = form(&group, of).await;
    agree(&nodes).await;
    assert!(nodes[0].leads(), "nobody has had a reason to elect another");
    // One change at a time: this waits for the end of that which made a voter of it. Who lacks an entry of that cannot lead.
    nodes[0].consensus.add(NodeId(3), nodes[2].addr.to_string()).await.expect("it is there");
    let last = |node: &Node| node.consensus.metrics().last_log_index;
    until("all have every entry", || nodes.iter().all(|node| last(node) == last(&nodes[0]))).await;
    group.cut(NodeId(3));
    let addr = nodes.remove(1).stop().await;
    group.cut(NodeId(1));
    group.mend(NodeId(3));
    nodes.push(group.start_as(of(2), addr).await);
    let [old, candidate, _] = nodes.as_slice() else { panic!("three") };
    until("the third leads, by the vote of the second", || candidate.leads()).await;
    assert_eq!(old.consensus.leads(), None, "two lead at the same time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_a_deposed_leader_had_half_added_is_added_by_its_successor() {
    let group = Group::new();
    let mut nodes = group.form(3).await;
    let at = nodes.iter().position(Node::leads).expect("somebody leads");
    let old = nodes.remove(at);
    let new = group.start(4).await;
    // The new one hears of its addition; nobody who votes does.
    nodes.iter().for_each(|node| group.cut(node.number));
    let adding = tokio::spawn({
        let (consensus, link) = (old.consensus.clone(), new.addr.to_string());
        async move { consensus.add(NodeId(4), link).await }
    });
    until("the new one hears that it is added", || new.consensus.members().iter().any(|standing| standing.node == NodeId(4))).await;
    group.cut(old.number);
    nodes.iter().for_each(|node| group.mend(node.number));
    commit(&nodes, register(1)).await;
    assert!(nodes.iter().all(|node| node.consensus.members().len() == 3), "its addition is lost");
    add(&nodes, &new).await;
    adding.abort();
    commit(&nodes, register(2)).await;
    agree(nodes.iter().chain([&new])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_that_was_restored_beside_the_one_that_goes_on_is_no_part_of_it() {
    let group = Group::new();
    let mut nodes = group.form(2).await;
    let about = About {
        farm: "demo".into(),
        store_dir: StoreDir::default(),
        public_key: "demo:1".into(),
        store: "s3://demo".into(),
        taken_at: Timestamp(1),
        program: "kiln".into(),
    };
    let backup = leader(&nodes).await.consensus.back_up(about).expect("a leader backs up");
    let third = group.start(3).await;
    add(&nodes, &third).await;
    nodes.push(third);
    // One that the backup knows would be refused by the other side.
    leader(&nodes).await.consensus.hand_over(Some(NodeId(3))).await.expect("the third leads");
    let config = ConsensusConfig { join: false, ..group.config(5) };
    let restored = Backup::decode(&backup).expect("reads");
    restored.found(&config.dir, NodeId(5), config.segment_bytes, Member::default()).await.expect("restores");
    let twin = group.start_as(config, "127.0.0.1:0".parse().expect("an address")).await;
    let leading = leader(&nodes).await;
    assert_eq!(leading.number, NodeId(3));
    let refused = refusal(leading.consensus.add(NodeId(5), twin.addr.to_string()).await);
    assert!(refused.contains("belongs to another group already"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_crashes_with_a_leader_s_vote_and_no_entry_starts_again_and_is_added() {
    let group = Group::new();
    let first = group.start(1).await;
    let new = group.start(2).await;
    let wire = Wire::open(&group, 1, &new).await;
    let vote = Vote { leader: Leader { term: 1, node: NodeId(1) }, committed: true };
    let prev = Some(Position { leader: vote.leader, index: 3 });
    let mut answer = wire.append(&Append { vote, prev, committed: None, entries: Vec::new() }).await;
    let lacking: Option<Heard> = answer.receiver.recv().await.expect("an answer");
    assert!(lacking.is_some(), "it has noted who leads, and lacks the entries before");
    let addr = new.stop().await;
    let starts = tokio::time::timeout(Duration::from_secs(60), group.start_as(group.config(2), addr));
    let new = starts.await.expect("it starts, and waits to be told more");
    add([&first], &new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_would_cost_the_farm_its_state_are_refused() {
    let group = Group::new();
    let first = group.start(1).await;
    let refused = refusal(first.consensus.remove(NodeId(1)).await);
    assert!(refused.contains("last voter"), "{refused}");
    let refused = refusal(first.consensus.remove(NodeId(7)).await);
    assert!(refused.contains("no member"), "{refused}");
    let refused = refusal(first.consensus.hand_over(None).await);
    assert!(refused.contains("no other voter"), "{refused}");

    let own = group.start_as(ConsensusConfig { join: false, ..group.config(5) }, "127.0.0.1:0".parse().expect("an address")).await;
    let refused = refusal(first.consensus.add(NodeId(5), own.addr.to_string()).await);
    assert!(refused.contains("belongs to another group already"), "{refused}");
    let refused = refusal(first.consensus.add(NodeId(6), own.addr.to_string()).await);
    assert!(refused.contains("its certificate says"), "{refused}");
    let mut other = group.config(6);
    other.common.insert("signing key".into(), "demo:2".into());
    let other = group.start_as(other, "127.0.0.1:0".parse().expect("an address")).await;
    let refused = refusal(first.consensus.add(NodeId(6), other.addr.to_string()).await);
    assert!(refused.contains("its signing key is `demo:2`, that of the farm `demo:1`"), "{refused}");

    let second = group.start(2).await;
    add([&first], &second).await;
    let third = group.start(3).await;
    add([&first, &second], &third).await;
    group.cut(NodeId(2));
    until("its silence is noted", || [&first, &third].into_iter().any(|node| notes_silence(node, NodeId(2)))).await;
    let leading = leader([&first, &third]).await;
    let answering = if leading.number == NodeId(1) { NodeId(3) } else { NodeId(1) };
    let refused = refusal(leading.consensus.remove(answering).await);
    assert!(refused.contains("too few"), "{refused}");
    leading.consensus.remove(NodeId(2)).await.expect("a silent one may go");
    commit([&first, &third], register(1)).await;
    commit([&first, &third], register(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_moved_is_found_again_once_the_leader_is_told_where() {
    let group = Group::new();
    let mut nodes = group.form(3).await;
    let moved = nodes.iter().position(|node| !node.leads()).expect("a follower");
    let moved = nodes.remove(moved);
    let number = moved.number;
    let before = moved.stop().await;
    commit(&nodes, register(1)).await;
    let moved = group.start(number.0).await;
    assert_ne!(moved.addr, before);
    let told = leader(&nodes).await.consensus.add(number, moved.addr.to_string()).await;
    told.unwrap_or_else(|err| panic!("{}", chain(&err)));
    commit(&nodes, register(2)).await;
    nodes.push(moved);
    agree(&nodes).await;
    assert!(nodes.iter().all(|node| node.votes(number)), "it votes as before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_nobody_can_reach_takes_nobody_in() {
    let group = Group::new();
    let any = || "127.0.0.1:0".parse().expect("an address");
    let first = group.start_as(ConsensusConfig { link: "[::]:7420".into(), ..group.config(1) }, any()).await;
    let second = group.start(2).await;
    let refused = refusal(first.consensus.add(NodeId(2), second.addr.to_string()).await);
    assert!(refused.contains("`advertise`"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_waits_to_be_added_leads_nothing() {
    let group = Group::new();
    let waiting = group.start(2).await;
    assert!(!waiting.leads() && waiting.consensus.members().is_empty() && waiting.consensus.leader().is_none());
    let refused = waiting.consensus.propose(vec![register(1)]).await;
    assert!(matches!(refused, Err(ConsensusError::NotLeader { leader: None })), "{refused:?}");
    assert!(matches!(waiting.consensus.remove(NodeId(1)).await, Err(ClusterError::NotLeader)));
    waiting.stop().await;
    let again: Consensus = group.start(2).await.consensus;
    assert!(again.leader().is_none());
}
