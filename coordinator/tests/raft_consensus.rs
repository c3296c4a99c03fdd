//! Consensus as the coordinator uses it: proposals, effects, leadership, restarts, snapshots, damage.

mod raft_support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use kiln_coordinator::raft::{Consensus, ConsensusConfig, ConsensusError};
use kiln_core::{Answer, Command, Effect, Farm, Refused};
use kiln_wire::{BuildId, Epoch, NodeId, Timestamp};
use raft_support::{chain, config, register, start};
use tempfile::TempDir;

fn dir() -> TempDir {
    TempDir::new().expect("a directory")
}

/// A command that the farm refuses.
fn cancel(build: u64) -> Command {
    Command::Cancel { build: BuildId(build), now: Timestamp(1) }
}

fn farm(consensus: &Consensus) -> Vec<u8> {
    consensus.read(Farm::to_snapshot)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("makes a directory");
    for file in fs::read_dir(from).expect("lists") {
        let file = file.expect("lists").path();
        let target = to.join(file.file_name().expect("a name"));
        if file.is_dir() {
            copy(&file, &target);
        } else {
            fs::copy(&file, &target).expect("copies");
        }
    }
}

fn flip(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("reads");
    file.write_all_at(&[byte[0] ^ 0x20], at).expect("writes");
}

#[tokio::test]
async fn a_proposal_is_answered_to_its_proposer_and_its_effects_are_owed_to_the_driver() {
    let dir = dir();
    let (consensus, mut effects) = start(dir.path()).await;
    let leadership = *consensus.leadership().borrow();
    assert!(leadership.is_self && leadership.leader.node == NodeId(1) && leadership.leader.term > 0);

    let refused = consensus.propose(vec![cancel(77)]).await.expect("commits");
    assert_eq!(refused.answers, [Answer::Refused(Refused::NoSuchBuild(BuildId(77)))]);

    let told = effects.recv().await.expect("the driver is told of every entry, for it may have to plan again");
    assert_eq!((told.index, told.effects.len()), (refused.index, 0), "the answer went to its proposer only");

    let applied = consensus.propose(vec![register(1), register(2)]).await.expect("commits");
    assert_eq!(applied.index.0, refused.index.0 + 2, "one entry for each command");
    for index in [applied.index.0 - 1, applied.index.0] {
        let owed = effects.recv().await.expect("owed");
        assert_eq!((owed.index.0, owed.leader), (index, leadership.leader));
        assert!(owed.effects.iter().any(|effect| matches!(effect, Effect::Welcome { epoch, .. } if *epoch == Epoch(index))));
    }
}

#[tokio::test]
async fn nothing_committed_is_lost_by_a_restart() {
    let dir = dir();
    let (consensus, _) = start(dir.path()).await;
    for number in 0..50 {
        consensus.propose(vec![register(number)]).await.expect("commits");
    }
    let (before, leader) = (farm(&consensus), consensus.leadership().borrow().leader);
    consensus.shutdown().await;
    let (consensus, mut effects) = start(dir.path()).await;
    assert_eq!(farm(&consensus), before);
    assert!(consensus.leadership().borrow().leader > leader, "a restart wins a new term");
    assert!(effects.try_recv().is_err(), "what was applied again is not owed again");
}

#[tokio::test]
async fn the_last_handle_stops_the_node() {
    let dir = dir();
    let (consensus, mut effects) = start(dir.path()).await;
    drop(consensus);
    assert!(effects.recv().await.is_none(), "the state machine is gone");
    loop {
        match Consensus::start(config(dir.path())).await {
            Ok(_) => return,
            Err(ConsensusError::InUse { .. }) => tokio::task::yield_now().await,
            Err(err) => panic!("start: {}", chain(&err)),
        }
    }
}

#[tokio::test]
async fn a_directory_in_use_or_of_another_node_is_refused() {
    let dir = dir();
    let (consensus, _) = start(dir.path()).await;
    let again = Consensus::start(config(dir.path())).await;
    assert!(matches!(again, Err(ConsensusError::InUse { .. })), "{again:?}");
    consensus.shutdown().await;
    let other = Consensus::start(ConsensusConfig { node: NodeId(2), ..config(dir.path()) }).await;
    assert!(matches!(other, Err(ConsensusError::OtherNode { found: NodeId(1), want: NodeId(2), .. })), "{other:?}");
    start(dir.path()).await;
}

#[tokio::test]
async fn a_stopped_node_says_so() {
    let dir = dir();
    let (consensus, _) = start(dir.path()).await;
    assert!(matches!(consensus.propose(Vec::new()).await, Err(ConsensusError::Empty)));
    consensus.shutdown().await;
    assert!(matches!(consensus.stopped().await, ConsensusError::Stopped { .. }));
    assert!(matches!(consensus.propose(vec![cancel(1)]).await, Err(ConsensusError::Stopped { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_proposals_get_indexes_of_their_own_and_share_syncs() {
    let dir = dir();
    let (consensus, _) = start(dir.path()).await;
    let before = consensus.metrics().sync.count;
    let pending: Vec<_> = (0..2000).map(|build| consensus.propose_nowait(vec![cancel(build)]).expect("takes it")).collect();
    let mut indexes = BTreeSet::new();
    for (build, pending) in (0..).zip(pending) {
        let applied = pending.applied().await.expect("commits");
        assert_eq!(applied.answers, [Answer::Refused(Refused::NoSuchBuild(BuildId(build)))]);
        assert!(indexes.last().is_none_or(|last| *last < applied.index) && indexes.insert(applied.index), "in the order of the calls");
    }
    let metrics = consensus.metrics();
    assert!(metrics.sync.count - before < 1000, "{} syncs for 2000 proposals", metrics.sync.count - before);
    assert_eq!((metrics.commit.count, metrics.proposals_in_flight), (2000, 0));
    assert_eq!(metrics.applied_index, *indexes.last().expect("2000"));
}

/// Proposes until a snapshot was made and the log before it dropped.
#[tokio::test(flavor = "multi_thread")]
async fn proposals_that_are_written_together_get_each_its_own_answers() {
    let dir = dir();
    let (consensus, _effects) = start(dir.path()).await;
    let builds = |number: u64| (0..=number % 3).map(move |place| 10 * number + place);
    let propose = |number| consensus.propose_nowait(builds(number).map(cancel).collect()).expect("takes it");
    let pending: Vec<_> = (0..600).map(propose).collect();
    let mut last = None;
    for (number, pending) in (0..).zip(pending) {
        let applied = pending.applied().await.expect("commits");
        let refused: Vec<_> = builds(number).map(|build| Answer::Refused(Refused::NoSuchBuild(BuildId(build)))).collect();
        assert_eq!(applied.answers, refused);
        if let Some(last) = last {
            assert_eq!(applied.index.0, last + refused.len() as u64, "in the order of the calls, and nothing between");
        }
        last = Some(applied.index.0);
    }
    consensus.shutdown().await;
}

async fn fill(consensus: &Consensus) {
    let mut highest = 0;
    for round in 0..2000 {
        let commands = (0..16).map(|number| register(round * 16 + number)).collect();
        consensus.propose(commands).await.expect("commits");
        let metrics = consensus.metrics();
        highest = highest.max(metrics.log_segments);
        if metrics.snapshot_index.0 > 0 && metrics.log_segments < highest {
            return;
        }
    }
    panic!("no snapshot after {highest} segments");
}

#[tokio::test]
async fn a_snapshot_replaces_the_log_before_it() {
    let dir = dir();
    let (consensus, _) = start(dir.path()).await;
    fill(&consensus).await;
    let before = farm(&consensus);
    consensus.shutdown().await;
    assert_eq!(fs::read_dir(dir.path().join("snapshot")).expect("lists").count(), 1);
    assert!(!dir.path().join("log/0000000000000001.wal").exists(), "the oldest segment is gone");
    let (consensus, _) = start(dir.path()).await;
    assert_eq!(farm(&consensus), before);
    consensus.propose(vec![register(1_000_000)]).await.expect("goes on");
}

#[tokio::test]
async fn a_crash_while_a_snapshot_comes_in_or_is_written_leaves_the_one_before() {
    let dir = dir();
    let (consensus, _) = start(dir.path()).await;
    fill(&consensus).await;
    let before = farm(&consensus);
    consensus.shutdown().await;
    let snapshots = dir.path().join("snapshot");
    for unfinished in ["received.tmp", "unfinished.tmp"] {
        fs::write(snapshots.join(unfinished), b"KILNSNAP, and then the lights went out").expect("writes");
    }
    let (consensus, _) = start(dir.path()).await;
    assert_eq!(farm(&consensus), before);
    consensus.shutdown().await;
    assert_eq!(fs::read_dir(snapshots).expect("lists").count(), 1, "what was unfinished is gone");
}

#[tokio::test]
async fn a_flip_of_any_byte_of_a_snapshot_is_named() {
    let dir = dir();
    let (consensus, _) = start(dir.path()).await;
    fill(&consensus).await;
    consensus.shutdown().await;
    let file = fs::read_dir(dir.path().join("snapshot")).expect("lists").next().expect("one").expect("lists").path();
    let size = file.metadata().expect("is there").len();
    for at in (0..40).chain((40..size - 40).step_by(usize::try_from(size / 20).expect("small"))).chain(size - 40..size) {
        flip(&file, at);
        let err = Consensus::start(config(dir.path())).await.expect_err("damaged");
        assert!(matches!(err, ConsensusError::Snapshot(_)) && chain(&err).contains(&file.display().to_string()), "{at}: {}", chain(&err));
        flip(&file, at);
    }
    start(dir.path()).await;
}

#[tokio::test]
async fn a_flip_of_a_byte_of_the_log_is_named_or_loses_nothing() {
    let original = dir();
    let (consensus, _) = start(original.path()).await;
    for number in 0..20 {
        consensus.propose(vec![register(number)]).await.expect("commits");
    }
    let before = farm(&consensus);
    consensus.shutdown().await;
    let used = 128 + consensus.metrics().log_bytes;
    let mut named = 0;
    let places: Vec<u64> = (0..used).step_by(97).collect();
    for at in places.iter().copied() {
        let dir = dir();
        copy(original.path(), dir.path());
        let segment = dir.path().join("log/0000000000000001.wal");
        flip(&segment, at);
        match Consensus::start(config(dir.path())).await {
            Ok((consensus, _)) => assert_eq!(farm(&consensus), before, "byte {at}"),
            Err(err @ ConsensusError::Log(_)) => {
                let text = chain(&err);
                assert!(text.contains(&segment.display().to_string()) && text.contains("at byte"), "{text}");
                named += 1;
            }
            Err(err) => panic!("byte {at}: {}", chain(&err)),
        }
    }
    assert!(named + 3 >= places.len(), "only the unsynced mark at the end may be cut: {named} of {} named", places.len());
}

#[tokio::test]
async fn a_snapshot_whose_log_was_lost_is_refused() {
    let dir = dir();
    let (consensus, _) = start(dir.path()).await;
    fill(&consensus).await;
    consensus.shutdown().await;
    fs::remove_dir_all(dir.path().join("log")).expect("removes");
    let err = Consensus::start(config(dir.path())).await.expect_err("the log is lost");
    assert!(matches!(err, ConsensusError::Start { .. }) && chain(&err).contains("the log was lost"), "{}", chain(&err));
}
