//! The thread that raft runs on: recovers, takes part, tells of progress, keeps the log short, stops in order.
//!
//! One thread of its own: on a shared pool of threads raft was measured to be three times slower.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kiln_link::Connection;
use kiln_wire::{Leader, NodeId};
use openraft::SnapshotPolicy;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::api::{ConsensusConfig, ConsensusError, EffectReceiver, Leadership};
use super::cluster::{self, Group, Ordered};
use super::disk::{self, File, Lock};
use super::feed::{self, Proposed};
use super::follow::{self, Progress, Watched};
use super::log_store::LogStore;
use super::member::Member;
use super::network::{self, Caller, Dial, Host, Moved, Pace, Peers};
use super::snapshot::{self, Snapshot, SnapshotDir};
use super::state_machine::{Led, StateMachine};
use super::types::TypeConfig;
use super::version::Versions;
use super::wal::WalStats;

/// openraft over our types.
pub type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// What comes in from the handle.
pub struct Inbox {
    /// Commands for the log.
    pub proposals: mpsc::UnboundedReceiver<Proposed>,
    /// Connections of other coordinators.
    pub connections: mpsc::UnboundedReceiver<Connection>,
    /// Changes of the group.
    pub orders: mpsc::UnboundedReceiver<Ordered>,
    /// Told to stop.
    pub stop: watch::Receiver<bool>,
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
    /// When a leader last spoke.
    pub heard: watch::Receiver<Option<Instant>>,
    /// The log's figures.
    pub log: Arc<WalStats>,
    /// What the leader must do.
    pub effects: EffectReceiver,
}

/// Runs a node on the runtime of a simulated host until it is told to stop, fails, or no handle is left.
#[cfg(feature = "simulation")]
pub async fn run(config: ConsensusConfig, started: oneshot::Sender<Result<Started, ConsensusError>>, inbox: Inbox) {
    match Disk::open(&config) {
        Ok((disk, snapshot)) => {
            let joined = join(&config, &disk, snapshot).await;
            live(&config, &disk, joined, started, inbox).await;
        }
        // Whoever started the node may have given up.
        Err(err) => drop(started.send(Err(err))),
    }
}

/// Runs a node until it is told to stop, fails, or no handle is left.
#[cfg(not(feature = "simulation"))]
pub fn run(config: &ConsensusConfig, started: oneshot::Sender<Result<Started, ConsensusError>>, inbox: Inbox) {
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
        live(config, &disk, joined, started, inbox).await;
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
    joined: Result<(Arc<Group>, Started), ConsensusError>,
    started: oneshot::Sender<Result<Started, ConsensusError>>,
    inbox: Inbox,
) {
    let (group, parts) = match joined {
        Ok(joined) => joined,
        Err(err) => {
            let _ = started.send(Err(err));
            return;
        }
    };
    let mut failed = parts.progress.clone();
    let _ = started.send(Ok(parts));
    let Inbox { proposals, connections, orders, mut stop } = inbox;
    let host = Arc::clone(&group.host);
    tokio::select! {
        () = feed::feed(&host.raft, proposals) => {}
        () = answer(&host, connections) => {}
        () = cluster::run(Arc::clone(&group), orders) => {}
        () = cluster::mind_the_disk(&group, disk.log.stats().room.subscribe()) => {}
        () = compact(&host.raft, config, &disk.log) => {}
        _ = stop.wait_for(|stop| *stop) => {}
        _ = failed.wait_for(|progress| progress.failed.is_some()) => {}
    }
    if host.raft.shutdown().await.is_err() {
        tracing::error!("raft panicked");
    }
}

/// Answers other coordinators until no handle is left.
async fn answer(host: &Arc<Host>, mut connections: mpsc::UnboundedReceiver<Connection>) {
    while let Some(connection) = connections.recv().await {
        tokio::spawn(network::serve(Arc::clone(host), connection));
    }
}

/// What lies in the directory, beside the farm.
struct Disk {
    #[cfg_attr(feature = "simulation", expect(dead_code, reason = "nobody has to be kept out of a simulated host"))]
    lock: Lock,
    log: LogStore,
    snapshots: SnapshotDir,
}

impl Disk {
    fn open(config: &ConsensusConfig) -> Result<(Self, Snapshot), ConsensusError> {
        let dir = &config.dir;
        let refused = |err| ConsensusError::Open { path: dir.clone(), err };
        disk::create_dir_all(dir).map_err(refused)?;
        let lock = Lock::take(&dir.join("lock")).map_err(refused)?.ok_or_else(|| ConsensusError::InUse { path: dir.clone() })?;
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
            None => Snapshot::default(),
        };
        // What is committed of the log is not known yet, and who cannot read all of it must not vote on it.
        let version = snapshot.version.max(log.state().needs());
        if let Some(why) = config.program.objection(version).filter(|_| !is_empty) {
            return Err(ConsensusError::Version { path: dir.clone(), why });
        }
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
    match disk::read_to_string(dir.join(OWNER)) {
        Ok(text) => {
            let node = text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("`{OWNER}` is no number")))?;
            Ok(Some(NodeId(node)))
        }
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
}

/// Notes whose directory it is.
pub fn set_owner(dir: &Path, node: NodeId) -> io::Result<()> {
    let unfinished = dir.join(format!("{OWNER}.tmp"));
    disk::write(&unfinished, format!("{node}\n"))?;
    File::open(&unfinished)?.sync_all()?;
    disk::rename(&unfinished, dir.join(OWNER))?;
    disk::sync_dir(dir)
}

/// Starts raft over what the disk holds. A group of one is returned once this node leads it and has raised it to what it speaks.
async fn join(config: &ConsensusConfig, disk: &Disk, snapshot: Snapshot) -> Result<(Arc<Group>, Started), ConsensusError> {
    let failed = |err: &dyn std::fmt::Display| ConsensusError::Start { reason: err.to_string() };
    let (effects, owed) = mpsc::unbounded_channel();
    let unknown = Leadership { leader: Leader::default(), is_self: false };
    let (lead, mut leadership) = watch::channel(unknown);
    let after_term = disk.log.state().vote().map_or(0, |vote| vote.leader_id.term);
    let after_index = disk.log.state().last().map_or(0, |last| last.index);
    let led = Led { node: config.node.0, after_term, after_index };
    let machine = StateMachine::new(snapshot, disk.snapshots.clone(), led, config.program.clone(), effects);
    let versions = Versions::new(config.program.clone(), machine.clone());
    let settings = Arc::new(settings(config).validate().map_err(|err| failed(&err))?);
    let pace = Pace { heartbeat_ms: config.heartbeat_ms, election_ms: config.election_ms };
    let dial = config.identity.as_ref().map(Dial::new).transpose().map_err(ConsensusError::Link)?;
    let member = Member { link: config.link.clone(), http: config.http.clone(), directory: disk.log.directory() };
    let moved = Moved::default();
    let votes_from = Instant::now() + Duration::from_millis(config.election_ms[1]);
    let peers = Peers::new(Caller {
        me: config.node,
        directory: member.directory,
        dial: dial.clone(),
        pace,
        moved: moved.clone(),
        votes_from,
        versions: versions.clone(),
    });
    let raft = Raft::new(config.node.0, settings, peers.clone(), disk.log.clone(), machine.clone()).await.map_err(|err| failed(&err))?;
    let (tell, mut progress) = watch::channel(Progress::default());
    let lease = Duration::from_millis(config.election_ms[1]);
    let (hand_over, handed_over) = watch::channel(0);
    let (unreadable, cannot_read) = watch::channel(None);
    let (heard, last_heard) = watch::channel(None);
    let room = disk.log.stats().room.subscribe();
    let watched = Watched { node: config.node, lease, room, handed_over, unreadable: cannot_read };
    tokio::spawn(follow::follow(raft.clone(), watched, tell, lead));
    tokio::spawn(peers.keep_open(progress.clone()));
    // Nobody votes as far as one knows that waits to be added, also if it crashed when it had noted who leads and no entry yet. Raft
    // itself is asked: its metrics may not have been reported yet.
    let voters = raft.with_raft_state(|state| state.membership_state.effective().voter_ids().collect::<Vec<u64>>());
    let voters = voters.await.map_err(|err| failed(&err))?;
    let (is_alone, begins) = (voters == [config.node.0], voters.is_empty() && !config.join);
    if is_alone {
        raft.trigger().elect(false).await.map_err(|err| failed(&err))?;
    } else if begins {
        let alone = std::collections::BTreeMap::from([(config.node.0, member.clone())]);
        raft.initialize(alone).await.map_err(|err| failed(&err))?;
    }
    let must_lead = is_alone || begins;
    tokio::select! {
        _ = leadership.wait_for(|known| known.is_self || !must_lead) => {}
        stopped = progress.wait_for(|progress| progress.failed.is_some()) => {
            let reason = stopped.ok().and_then(|progress| progress.failed.clone()).unwrap_or_default();
            return Err(ConsensusError::Start { reason });
        }
    }
    let (node, common, snapshots) = (config.node, config.common.clone(), disk.snapshots.clone());
    let receiving = Mutex::default();
    let host = Host { node, member, common, versions, unreadable, heard, raft, machine: machine.clone(), snapshots, receiving, votes_from };
    let host = Arc::new(host);
    let group = Group { host, dial, pace, moved, progress: progress.clone(), handed_over: hand_over, changing: Mutex::default() };
    if must_lead {
        group.raise_alone().await.map_err(|err| failed(&err))?;
    }
    let log = Arc::clone(disk.log.stats());
    Ok((Arc::new(group), Started { machine, leadership, progress, heard: last_heard, log, effects: owed }))
}

/// A new leader writes about the longest wait, one more wait and a tenth of a second after the old one fell silent.
fn settings(config: &ConsensusConfig) -> openraft::Config {
    let [election_timeout_min, election_timeout_max] = config.election_ms;
    openraft::Config {
        cluster_name: "kiln".into(),
        heartbeat_interval: config.heartbeat_ms,
        election_timeout_min,
        election_timeout_max,
        // Long enough that those who still hear a leader without a quorum can elect another.
        quorum_loss_probe_interval: Some(2 * election_timeout_max + election_timeout_max / 2),
        enable_pre_vote: Some(true),
        max_payload_entries: 1024,
        // A follower gets entries as long as the leader has them; `compact` decides how long that is.
        replication_lag_threshold: u64::MAX,
        install_snapshot_timeout: 120_000,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_entries),
        // `compact` drops entries by count and by bytes; openraft would count only.
        max_in_snapshot_log_to_keep: u64::MAX,
        // A restarted leader must win a new term: what it sent before is fenced by it.
        enable_leader_restore: Some(false),
        ..openraft::Config::default()
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
