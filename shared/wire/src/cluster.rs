//! The coordinators themselves: who they are, and how a person changes that.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{Leader, LogIndex, NodeId, Program, Version};

/// What is asked of the coordinators. Looking is for every client and answered by any coordinator; changing is for admins, and for
/// the leader to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterRequest {
    /// How the asked coordinator sees the group. Answered by a [`ClusterView`].
    Status,
    /// Take in the coordinator that listens there; it votes once it is in step. Again for a member: it listens there now.
    Add {
        /// Its number, as in its certificate.
        node: NodeId,
        /// `host:port` where the others reach it.
        link: String,
    },
    /// Let a coordinator go for good. Its number is never used again.
    Remove {
        /// Which.
        node: NodeId,
    },
    /// Have another voter lead.
    Transfer {
        /// Which; whoever is most in step if none is named.
        to: Option<NodeId>,
    },
}

/// The group as one coordinator sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// The coordinator that was asked.
    pub node: NodeId,
    /// Who leads; none while there is no leader.
    pub leader: Option<Leader>,
    /// The asked coordinator leads, and a quorum answers it.
    pub is_self: bool,
    /// Its last log entry.
    pub last: LogIndex,
    /// The last entry that its farm has applied.
    pub applied: LogIndex,
    /// The last entry that its snapshot covers.
    pub snapshot: LogIndex,
    /// What keeps it from taking part in full, in words; none if nothing does.
    pub trouble: Option<String>,
    /// The asked coordinator's program.
    #[serde(default)]
    pub program: Program,
    /// The version that the farm is at, as far as the asked coordinator has applied the log.
    #[serde(default)]
    pub version: Version,
    /// The members of the group.
    pub members: Vec<MemberView>,
}

/// One coordinator, as another sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// Its number.
    pub node: NodeId,
    /// `host:port` where coordinators, workers and clients reach it.
    pub link: String,
    /// `host:port` of its binary cache.
    pub http: String,
    /// Whether it votes, or follows until it is in step.
    pub votes: bool,
    /// Its last entry that equals the leader's; only a leader knows.
    pub matched: Option<LogIndex>,
    /// Milliseconds since it last answered; only a leader knows.
    pub silent_ms: Option<u64>,
}
