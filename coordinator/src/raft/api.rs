//! What the rest of the coordinator sees of consensus: configuration, answers, effects, leadership, figures, errors.

use std::path::PathBuf;

use kiln_core::{Answer, Effect};
use kiln_link::{Identity, LinkError};
use kiln_wire::{Leader, LogIndex, NodeId, Program};
use tokio::sync::mpsc;

use super::latency::Latencies;
use super::member::Member;
use super::network::Common;
use super::snapshot::SnapshotError;
use super::version;
use super::wal::WalError;

/// How a coordinator keeps its replicated state.
#[derive(Clone, Debug)]
pub struct ConsensusConfig {
    /// Directory of the log, the snapshot and the lock. Made if absent.
    pub dir: PathBuf,
    /// This coordinator. A directory belongs to one node for ever.
    pub node: NodeId,
    /// Bytes of one log segment. Two are preallocated, so a small farm wants few (16 MiB) and a large one 64 MiB.
    pub segment_bytes: u64,
    /// Bytes of log after which a snapshot is made and the log before it dropped. Bounds the log's share of memory.
    pub snapshot_log_bytes: u64,
    /// Log entries after which a snapshot is made, whatever their size. Bounds the time of a restart.
    pub snapshot_entries: u64,
    /// Log entries kept behind a snapshot for followers that lag.
    pub keep_entries: u64,
    /// Bytes of log kept behind a snapshot for followers that lag.
    pub keep_bytes: u64,
    /// Between two signs of life of the leader, in milliseconds.
    pub heartbeat_ms: u64,
    /// Shortest and longest wait of a follower that hears nothing before it stands for election, in milliseconds. The longest is
    /// also how long a leader counts as one after a quorum last answered.
    pub election_ms: [u64; 2],
    /// Who this coordinator is towards others; without it, it runs alone.
    pub identity: Option<Identity>,
    /// `host:port` where others reach it.
    pub link: String,
    /// `host:port` of its binary cache.
    pub http: String,
    /// An empty directory waits to be added to a group; otherwise it becomes a group of one. A directory that is in a group stays.
    pub join: bool,
    /// What every coordinator of the farm must have in common, by name. Compared when one is added.
    pub common: Common,
    /// What this coordinator says that it speaks: what the program does, but in tests of farms whose coordinators differ.
    pub program: Program,
}

impl ConsensusConfig {
    /// Returns the settings of a small farm for `node` in `dir`.
    pub fn new(dir: impl Into<PathBuf>, node: NodeId) -> Self {
        Self {
            dir: dir.into(),
            node,
            segment_bytes: 16 << 20,
            snapshot_log_bytes: 64 << 20,
            snapshot_entries: 100_000,
            keep_entries: 20_000,
            keep_bytes: 16 << 20,
            heartbeat_ms: 50,
            election_ms: [250, 400],
            identity: None,
            link: String::new(),
            http: String::new(),
            join: false,
            common: Common::new(),
            program: version::this_program(),
        }
    }
}

/// What became of a proposal: every command of it is committed, durable and applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Log index of the proposal's last entry.
    pub index: LogIndex,
    /// What the farm answered, in the order of the commands. A command may have no answer.
    pub answers: Vec<Answer>,
}

/// What this coordinator must do because of one log entry that it led to commitment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owed {
    /// Log index of the entry.
    pub index: LogIndex,
    /// Under whose leadership the entry was written: this node's. Stamp it on what goes to workers.
    pub leader: Leader,
    /// The effects in order, without the answers: those went to the proposer. None, if the entry was only answered.
    pub effects: Vec<Effect>,
}

/// Owed effects in the order of the log. Only entries that this process led; what earlier leaders left undone is
/// `Farm::pending_effects`, asked for when [`Leadership`] says that this node leads.
pub type EffectReceiver = mpsc::UnboundedReceiver<Owed>;

/// Who leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// Term and node.
    pub leader: Leader,
    /// This node leads, a quorum has answered lately, and everything of earlier terms is applied here.
    pub is_self: bool,
}

/// A coordinator as the group sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Which.
    pub node: NodeId,
    /// What is on record of it.
    pub member: Member,
    /// Whether it votes; a learner becomes a voter once it is in step.
    pub votes: bool,
    /// Its last entry that equals the leader's. Known to the leader only.
    pub matched: Option<LogIndex>,
    /// Milliseconds since it last answered the leader, or since that leads if it never has. Known to the leader only.
    pub silent_ms: Option<u64>,
}

/// Figures for `/metrics`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsensusMetrics {
    /// Raft's term.
    pub term: u64,
    /// Last entry of the log.
    pub last_log_index: LogIndex,
    /// Last entry that the farm has applied.
    pub applied_index: LogIndex,
    /// Last entry that the newest snapshot covers.
    pub snapshot_index: LogIndex,
    /// Bytes of records in the segments on disk.
    pub log_bytes: u64,
    /// Segments on disk.
    pub log_segments: u64,
    /// Proposals that wait for their answer.
    pub proposals_in_flight: u64,
    /// Time from a proposal to its answer.
    pub commit: Latencies,
    /// Time of one write and fdatasync of the log; its count is the number of group commits.
    pub sync: Latencies,
}

/// Consensus that cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    /// The directory cannot be used.
    #[error("open consensus directory `{path}`")]
    Open {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        err: std::io::Error,
    },
    /// Another process has the directory open.
    #[error("consensus directory `{path}` is in use by another process: stop that one first")]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// The directory was made for another node.
    #[error("consensus directory `{path}` belongs to node {found}, not to node {want}: a node's directory is never given to another")]
    OtherNode {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who asked.
        want: NodeId,
    },
    /// The farm in the directory is at a version that this program does not speak.
    #[error("consensus directory `{path}`: {why}")]
    Version {
        /// Which.
        path: PathBuf,
        /// Which versions, and what to do.
        why: String,
    },
    /// The log cannot be read or is damaged.
    #[error("recover the log")]
    Log(#[source] WalError),
    /// The snapshot cannot be read or is damaged.
    #[error("recover the snapshot")]
    Snapshot(#[source] SnapshotError),
    /// The identity cannot be used towards other coordinators.
    #[error("speak with other coordinators")]
    Link(#[source] LinkError),
    /// Raft could not start from what the disk holds.
    #[error("start raft: {reason}")]
    Start {
        /// Raft's words.
        reason: String,
    },
    /// This node does not lead: ask `leader`.
    #[error("this coordinator does not lead; the leader is {}", .leader.map_or_else(|| "unknown".to_owned(), |node| format!("node {node}")))]
    NotLeader {
        /// Who leads, if known.
        leader: Option<NodeId>,
    },
    /// Leadership changed while the proposal was under way: it may or may not be committed.
    #[error("leadership changed: whether the proposal was committed is unknown")]
    Unknown,
    /// The proposal has no commands.
    #[error("propose: no commands")]
    Empty,
    /// Too many proposals wait for their answer.
    #[error("propose: {PROPOSALS_IN_FLIGHT_MAX} proposals are in flight already")]
    Busy,
    /// Consensus has stopped, on request or because its disk failed.
    #[error("consensus has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}

/// Proposals that may wait for their answer at once. Each holds its commands in memory. Passing it: [`ConsensusError::Busy`].
pub const PROPOSALS_IN_FLIGHT_MAX: u64 = 16_384;
