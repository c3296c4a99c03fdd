//! The types that Kiln gives to openraft, and short names for what openraft makes of them.

use std::fmt;

use kiln_core::{Answer, Command};
use kiln_wire::Version;
use openraft::type_config::alias;
use serde::{Deserialize, Serialize};

use super::member::Member;

/// What one log entry does. One command each: attempts, builds and epochs are named by the index of their command, and the farm
/// takes an index once. Many entries still share one write and one fdatasync.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Changes the farm.
    Command(Command),
    /// From here on the farm is at this version: every coordinator can read it.
    Raise(Version),
}

impl Change {
    /// Returns the version that a coordinator must speak to read it. What needs a later one is proposed only to a farm that is at it.
    pub fn version(&self) -> Version {
        match self {
            Self::Command(command) => command.version(),
            Self::Raise(to) => *to,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(_) => f.write_str("command"),
            Self::Raise(to) => write!(f, "raise to version {to}"),
        }
    }
}

openraft::declare_raft_types!(
    /// Kiln's choice of raft types. A leader's id is (term, node), as workers know it.
    pub TypeConfig:
        D = Change,
        R = Vec<Answer>,
        NodeId = u64,
        Node = Member,
);

/// A leader: term and node.
pub type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
/// An entry: its leader and its index.
pub type LogId = alias::LogIdOf<TypeConfig>;
/// Whom a node voted for.
pub type Vote = alias::VoteOf<TypeConfig>;
/// A log entry.
pub type Entry = alias::EntryOf<TypeConfig>;
/// Who takes part.
pub type Membership = openraft::Membership<u64, Member>;
/// Who takes part as of some entry.
pub type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
/// What a snapshot covers.
pub type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
/// Told when entries are durable.
pub type IoFlushed = openraft::storage::IOFlushed<TypeConfig>;
/// A snapshot whose content is `Data`.
pub type SnapshotOf<Data> = alias::SnapshotOf<TypeConfig, Data>;
