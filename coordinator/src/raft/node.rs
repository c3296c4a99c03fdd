//! The thread that raft runs on: recovers, takes part, tells of progress, keeps the log short, stops in order.
//!
//! One thread of its own: on a shared pool of threads raft was measured to be three times slower.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;

use kiln_core::Farm;
use kiln_wire::NodeId;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{BasicNode, RaftMetrics, SnapshotPolicy};
use tokio::sync::{mpsc, oneshot, watch};

use super::api::{ConsensusConfig, ConsensusError, EffectReceiver, Leadership};
use super::log_store::LogStore;
use super::network::Peers;
use super::snapshot::{self, Snapshot, SnapshotDir};
use super::state_machine::{Led, StateMachine};
use super::types::{Change, Responder, StoredMembership, TypeConfig};
use super::wal::WalStats;

type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// A command on its way to the log.
pub struct Proposed {
    /// The command.
    pub change: Change,
    /// Who waits for it.
    pub responder: Responder,
}

/// How far this node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Raft's term.
    pub term: u64,
    /// Index of the last entry.
    pub last_log: u64,
    /// Index up to which a snapshot reaches.
    pub snapshot: u64,
    /// Why raft cannot go on.
    pub failed: Option<String>,
}

/// What the handle needs of a node that has started.
#[derive(Debug)]
pub struct Started {
    /// The farm.
    pub machine: StateMachine,
    /// Who leads.
    pub leadership: watch::Receiver<Leadership>,
    /// How far the node is.
    pub progress: watch::Receiver<Progress>,
    /// The log's figures.
    pub log: Arc<WalStats>,
    /// What the leader must do.
    pub effects: EffectReceiver,
}

/// Runs a node until it is told to stop, fails, or no handle is left.
pub fn run(
    config: &ConsensusConfig,
    started: oneshot::Sender<Result<Started, ConsensusError>>,
    inbox: mpsc::UnboundedReceiver<Vec<Proposed>>,
    stop: watch::Receiver<bool>,
) {
    let (disk, snapshot) = match Disk::open(config) {
        Ok(opened) => opened,
        Err(err) => {
            // Whoever started the node may have given up.
            let _ = started.send(Err(err));
            return;
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(err) => {
            let _ = started.send(Err(ConsensusError::Open { path: config.dir.clone(), err }));
            return;
        }
    };
    let joining = async {
        let joined = join(config, &disk, snapshot).await;
        live(config, &disk, joined, started, inbox, stop).await;
    };
    runtime.block_on(joining);
    // In this order: first whatever still uses the log, then the log, which writes what is queued, then the lock.
    drop(runtime);
    drop(disk.log);
    drop(disk.lock);
}

async fn live(
    config: &ConsensusConfig,
    disk: &Disk,
    joined: Result<(Raft, Started), ConsensusError>,
    started: oneshot::Sender<Result<Started, ConsensusError>>,
    inbox: mpsc::UnboundedReceiver<Vec<Proposed>>,
    stop: watch::Receiver<bool>,
) {
    let (raft, parts) = match joined {
        Ok(joined) => joined,
        Err(err) => {
            let _ = started.send(Err(err));
            return;
        }
    };
    let mut failed = parts.progress.clone();
    let _ = started.send(Ok(parts));
    let mut stop = stop;
    tokio::select! {
        () = feed(&raft, inbox) => {}
        () = compact(&raft, config, &disk.log) => {}
        _ = stop.wait_for(|stop| *stop) => {}
        _ = failed.wait_for(|progress| progress.failed.is_some()) => {}
    }
    if raft.shutdown().await.is_err() {
        tracing::error!("raft panicked");
    }
}

/// What lies in the directory, beside the farm.
struct Disk {
    lock: File,
    log: LogStore,
    snapshots: SnapshotDir,
}

impl Disk {
    fn open(config: &ConsensusConfig) -> Result<(Self, Snapshot), ConsensusError> {
        let dir = &config.dir;
        let refused = |err| ConsensusError::Open { path: dir.clone(), err };
        std::fs::create_dir_all(dir).map_err(refused)?;
        let lock = File::options().write(true).create(true).truncate(false).open(dir.join("lock")).map_err(refused)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ConsensusError::InUse { path: dir.clone() }),
            Err(TryLockError::Error(err)) => return Err(refused(err)),
        }
        let owner = owner(dir).map_err(refused)?;
        if let Some(found) = owner.filter(|found| *found != config.node) {
            return Err(ConsensusError::OtherNode { path: dir.clone(), found, want: config.node });
        }
        let log = LogStore::open(&dir.join("log"), config.segment_bytes, config.snapshot_log_bytes).map_err(ConsensusError::Log)?;
        let snapshots = SnapshotDir::open(dir.join("snapshot")).map_err(ConsensusError::Snapshot)?;
        let newest = snapshots.newest().map_err(ConsensusError::Snapshot)?;
        let is_empty = newest.is_none() && log.state().vote().is_none();
        if newest.is_some() && log.state().vote().is_none() {
            let reason = "there is a snapshot but no log: the log was lost, and with it what this node promised to others".into();
            return Err(ConsensusError::Start { reason });
        }
        let snapshot = match newest {
            Some(path) => snapshot::read(&path).map_err(ConsensusError::Snapshot)?,
            None => Snapshot { farm: Farm::new(), last: None, members: StoredMembership::default() },
        };
        match owner {
            Some(_) => {}
            None if is_empty => set_owner(dir, config.node).map_err(refused)?,
            None => return Err(ConsensusError::Start { reason: format!("`{}` is missing", dir.join(OWNER).display()) }),
        }
        Ok((Self { lock, log, snapshots }, snapshot))
    }
}

const OWNER: &str = "node";

/// Returns whose directory it is, if it is anybody's yet.
fn owner(dir: &Path) -> io::Result<Option<NodeId>> {
    match std::fs::read_to_string(dir.join(OWNER)) {
        Ok(text) => {
            let node = text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("`{OWNER}` is no number")))?;
            Ok(Some(NodeId(node)))
        }
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
}

fn set_owner(dir: &Path, node: NodeId) -> io::Result<()> {
    let unfinished = dir.join(format!("{OWNER}.tmp"));
    std::fs::write(&unfinished, format!("{node}\n"))?;
    File::open(&unfinished)?.sync_all()?;
    std::fs::rename(&unfinished, dir.join(OWNER))?;
    File::open(dir)?.sync_all()
}

/// Starts raft over what the disk holds and waits until this node leads.
async fn join(config: &ConsensusConfig, disk: &Disk, snapshot: Snapshot) -> Result<(Raft, Started), ConsensusError> {
    let failed = |err: &dyn std::fmt::Display| ConsensusError::Start { reason: err.to_string() };
    let (effects, owed) = mpsc::unbounded_channel();
    let unknown = Leadership { leader: kiln_wire::Leader::default(), is_self: false };
    let (lead, mut leadership) = watch::channel(unknown);
    let after_term = disk.log.state().vote().map_or(0, |vote| vote.leader_id.term);
    let led = Led { node: config.node.0, after_term };
    let machine = StateMachine::new(snapshot, disk.snapshots.clone(), led, effects, lead.clone());
    let settings = Arc::new(settings(config).validate().map_err(|err| failed(&err))?);
    let raft = Raft::new(config.node.0, settings, Peers, disk.log.clone(), machine.clone()).await.map_err(|err| failed(&err))?;
    let (tell, mut progress) = watch::channel(Progress::default());
    tokio::spawn(follow(raft.clone(), config.node, tell, lead));
    if raft.is_initialized().await.map_err(|err| failed(&err))? {
        raft.trigger().elect(false).await.map_err(|err| failed(&err))?;
    } else {
        let alone = std::collections::BTreeMap::from([(config.node.0, BasicNode::default())]);
        raft.initialize(alone).await.map_err(|err| failed(&err))?;
    }
    tokio::select! {
        _ = leadership.wait_for(|known| known.is_self) => {}
        stopped = progress.wait_for(|progress| progress.failed.is_some()) => {
            let reason = stopped.ok().and_then(|progress| progress.failed.clone()).unwrap_or_default();
            return Err(ConsensusError::Start { reason });
        }
    }
    let log = Arc::clone(disk.log.stats());
    Ok((raft, Started { machine, leadership, progress, log, effects: owed }))
}

/// Times as measured for failover in PLATFORM.md section 3.3: about 1.6 s until a new leader writes.
fn settings(config: &ConsensusConfig) -> openraft::Config {
    openraft::Config {
        cluster_name: "kiln".into(),
        heartbeat_interval: 100,
        election_timeout_min: 500,
        election_timeout_max: 1000,
        quorum_loss_probe_interval: Some(2500),
        enable_pre_vote: Some(true),
        max_payload_entries: 1024,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_entries),
        // `compact` drops entries by count and by bytes; openraft would count only.
        max_in_snapshot_log_to_keep: u64::MAX,
        // A restarted leader must win a new term: what it sent before is fenced by it.
        enable_leader_restore: Some(false),
        ..openraft::Config::default()
    }
}

/// Hands proposals to raft, in order, until no handle is left or raft stops.
async fn feed(raft: &Raft, mut inbox: mpsc::UnboundedReceiver<Vec<Proposed>>) {
    while let Some(proposal) = inbox.recv().await {
        for Proposed { change, responder } in proposal {
            if raft.client_write_ff(change, Some(responder)).await.is_err() {
                return;
            }
        }
    }
}

/// Makes a snapshot when the log has grown, and drops what every snapshot makes superfluous.
async fn compact(raft: &Raft, config: &ConsensusConfig, log: &LogStore) {
    let mut snapshots = raft.watch_snapshot_progress();
    loop {
        let asked = tokio::select! {
            () = log.full() => raft.trigger().snapshot().await,
            made = snapshots.changed() => {
                if made.is_err() {
                    return;
                }
                let upto = snapshots.get().map_or(0, |last| last.index);
                let point = log.state().purge_point(upto, config.keep_entries, config.keep_bytes);
                match point {
                    Some(point) => raft.trigger().purge_log(point).await,
                    None => Ok(()),
                }
            }
        };
        if asked.is_err() {
            return;
        }
    }
}

/// Tells the handle how far raft is, that it failed, and that this node no longer leads.
async fn follow(raft: Raft, node: NodeId, progress: watch::Sender<Progress>, leadership: watch::Sender<Leadership>) {
    let mut metrics = raft.metrics();
    drop(raft);
    loop {
        let seen = metrics.borrow_watched().clone();
        step_down(&seen, node, &leadership);
        progress.send_replace(Progress {
            term: seen.current_term,
            last_log: seen.last_log_index.unwrap_or(0),
            snapshot: seen.snapshot.map_or(0, |last| last.index),
            failed: seen.running_state.err().map(|err| err.to_string()),
        });
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// That this node leads is told by the state machine, once everything of earlier terms is applied; that it does not, here.
fn step_down(seen: &RaftMetrics<TypeConfig>, node: NodeId, leadership: &watch::Sender<Leadership>) {
    leadership.send_if_modified(|known| {
        let deposed = known.is_self && seen.current_term >= known.leader.term && seen.current_leader != Some(node.0);
        if deposed {
            known.is_self = false;
        }
        deposed
    });
}
