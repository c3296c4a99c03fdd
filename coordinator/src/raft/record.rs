//! What Kiln writes into its log: our own types, so that a change in openraft never changes the disk.
//!
//! Every payload is MessagePack with named fields; its version stands in the record's head, and a golden file pins each version.
//! Version 1, which is still read, had of a member no more than an address; version 2 says who and where it is; version 3 may hold
//! [`Content::Raise`]; versions 4 to 7 what versions 3 to 6 of the farm add. A record has the oldest version that can hold it: programs that lack a later one can read it.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::Command;
use kiln_wire::frame::{self, FrameError};
use kiln_wire::{Leader, LogIndex, NodeId, Version};
use openraft::EntryPayload;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::member::Member;
use super::types::{self, Change, LogId, StoredMembership, Vote};
use super::wal::{Kind, NewRecord, Stored};

/// The newest version of the payloads' encoding that this program reads and writes.
pub const VERSION: u8 = 7;
/// The version of every record that farms at version 1 can have.
pub const VERSION_FIRST: u8 = 2;
/// The oldest version that it reads.
pub const VERSION_OLDEST: u8 = 1;

/// A place in the log: whose entry, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The leader that wrote the entry.
    pub leader: Leader,
    /// Its index.
    pub index: LogIndex,
}

/// Who takes part in consensus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// Sets of voters; two while they change.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// What is on record of each voter and learner.
    pub nodes: BTreeMap<NodeId, Member>,
}

/// What an entry holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Nothing: a new leader's first entry.
    Blank,
    /// A change of the farm.
    Command(Command),
    /// A change of the members.
    Members(Members),
    /// The farm's version from here on.
    Raise(Version),
}

/// A log entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it stands.
    pub position: Position,
    /// What it holds.
    pub content: Content,
}

/// Whom a node voted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteRecord {
    /// The candidate.
    pub leader: Leader,
    /// A quorum voted for it.
    pub committed: bool,
}

/// One record, decoded.
#[derive(Clone, Debug)]
pub enum Record {
    /// An entry.
    Entry(types::Entry),
    /// The vote.
    Vote(Vote),
    /// Entries after this are void; all of them if there is none.
    Truncate(Option<LogId>),
    /// Entries up to this are dropped.
    Purge(LogId),
    /// Entries up to this are committed.
    Committed(Option<LogId>),
}

impl Record {
    /// Returns the record's bytes.
    ///
    /// # Errors
    /// [`FrameError::Encode`] if serde refuses a command.
    pub fn encode(&self) -> Result<NewRecord, FrameError> {
        let (kind, index, payload) = match self {
            Self::Entry(entry) => (Kind::Entry, entry.log_id.index, frame::to_bytes(&EntryOf::from(entry))?),
            Self::Vote(vote) => (Kind::Vote, 0, frame::to_bytes(&VoteRecord::from(vote))?),
            Self::Truncate(after) => (Kind::Truncate, 0, frame::to_bytes(&after.as_ref().map(Position::from))?),
            Self::Purge(upto) => (Kind::Purge, upto.index, frame::to_bytes(&Position::from(upto))?),
            Self::Committed(upto) => (Kind::Committed, 0, frame::to_bytes(&upto.as_ref().map(Position::from))?),
        };
        Ok(NewRecord { kind, index, version: self.version(), payload })
    }

    /// Returns the oldest version of the encoding that can hold the record.
    fn version(&self) -> u8 {
        match self {
            Self::Entry(entry) => version_for(needs(entry)),
            Self::Vote(_) | Self::Truncate(_) | Self::Purge(_) | Self::Committed(_) => VERSION_FIRST,
        }
    }

    /// Reads a record; the error says what is wrong.
    ///
    /// # Errors
    /// Text for `WalError::Damaged`.
    pub fn decode(stored: Stored<'_>) -> Result<Self, String> {
        if !(VERSION_OLDEST..=VERSION).contains(&stored.version) {
            return Err(format!("the record has version {}, this program reads {VERSION_OLDEST} to {VERSION}", stored.version));
        }
        let record = match stored.kind {
            Kind::Entry => Self::Entry(read::<Entry>(stored)?.into_raft()?),
            Kind::Vote => Self::Vote(read::<VoteRecord>(stored)?.into()),
            Kind::Truncate => Self::Truncate(read::<Option<Position>>(stored)?.map(LogId::from)),
            Kind::Purge => Self::Purge(read::<Position>(stored)?.into()),
            Kind::Committed => Self::Committed(read::<Option<Position>>(stored)?.map(LogId::from)),
        };
        let index = match &record {
            Self::Entry(entry) => entry.log_id.index,
            Self::Purge(upto) => upto.index,
            Self::Vote(_) | Self::Truncate(_) | Self::Committed(_) => 0,
        };
        if index == stored.index { Ok(record) } else { Err(format!("the record's head names index {}, its payload {index}", stored.index)) }
    }
}

/// Returns the oldest version of the payloads' encoding that holds what a farm at some version may have.
fn version_for(farm: Version) -> u8 {
    match farm {
        Version(..=1) => VERSION_FIRST,
        Version(2) => 3,
        Version(3) => 4,
        Version(4) => 5,
        Version(5) => 6,
        Version(_) => VERSION,
    }
}

/// Returns the version that a coordinator must speak to read an entry.
pub fn needs(entry: &types::Entry) -> Version {
    match &entry.payload {
        EntryPayload::Blank | EntryPayload::Membership(_) => Version::FIRST,
        EntryPayload::Normal(change) => change.version(),
    }
}

fn read<T: DeserializeOwned>(stored: Stored<'_>) -> Result<T, String> {
    frame::from_bytes(stored.payload).map_err(|err| match std::error::Error::source(&err) {
        Some(source) => format!("{err}: {source}"),
        None => err.to_string(),
    })
}

/// An [`Entry`] to be written, whose command stays where it is. The same fields in the same order.
#[derive(Serialize)]
struct EntryOf<'a> {
    position: Position,
    content: ContentOf<'a>,
}

/// A [`Content`] to be written.
#[derive(Serialize)]
enum ContentOf<'a> {
    Blank,
    Command(&'a Command),
    Members(Members),
    Raise(Version),
}

impl<'a> From<&'a types::Entry> for EntryOf<'a> {
    fn from(entry: &'a types::Entry) -> Self {
        let content = match &entry.payload {
            EntryPayload::Blank => ContentOf::Blank,
            EntryPayload::Normal(Change::Command(command)) => ContentOf::Command(command),
            EntryPayload::Normal(Change::Raise(to)) => ContentOf::Raise(*to),
            EntryPayload::Membership(membership) => ContentOf::Members(membership.into()),
        };
        Self { position: Position::from(&entry.log_id), content }
    }
}

impl Entry {
    /// Returns the entry as openraft has it; the error says what is wrong with it.
    pub fn into_raft(self) -> Result<types::Entry, String> {
        let payload = match self.content {
            Content::Blank => EntryPayload::Blank,
            Content::Command(command) => EntryPayload::Normal(Change::Command(command)),
            Content::Raise(to) => EntryPayload::Normal(Change::Raise(to)),
            Content::Members(members) => EntryPayload::Membership(members.try_into()?),
        };
        Ok(types::Entry { log_id: self.position.into(), payload })
    }
}

impl From<types::Entry> for Entry {
    fn from(entry: types::Entry) -> Self {
        let position = Position::from(&entry.log_id);
        let content = match entry.payload {
            EntryPayload::Blank => Content::Blank,
            EntryPayload::Normal(Change::Command(command)) => Content::Command(command),
            EntryPayload::Normal(Change::Raise(to)) => Content::Raise(to),
            EntryPayload::Membership(membership) => Content::Members(Members::from(&membership)),
        };
        Self { position, content }
    }
}

impl From<&LogId> for Position {
    fn from(id: &LogId) -> Self {
        Self { leader: from_leader_id(&id.leader_id), index: LogIndex(id.index) }
    }
}

impl From<Position> for LogId {
    fn from(position: Position) -> Self {
        Self { leader_id: to_leader_id(position.leader), index: position.index.0 }
    }
}

impl From<&Vote> for VoteRecord {
    fn from(vote: &Vote) -> Self {
        Self { leader: from_leader_id(&vote.leader_id), committed: vote.committed }
    }
}

impl From<VoteRecord> for Vote {
    fn from(vote: VoteRecord) -> Self {
        Self { leader_id: to_leader_id(vote.leader), committed: vote.committed }
    }
}

impl From<&types::Membership> for Members {
    fn from(membership: &types::Membership) -> Self {
        let voters = membership.get_joint_config().iter().map(|set| set.iter().copied().map(NodeId).collect()).collect();
        let nodes = membership.nodes().map(|(id, node)| (NodeId(*id), node.clone())).collect();
        Self { voters, nodes }
    }
}

impl TryFrom<Members> for types::Membership {
    type Error = String;

    fn try_from(members: Members) -> Result<Self, String> {
        let voters = members.voters.into_iter().map(|set| set.into_iter().map(|id| id.0).collect()).collect();
        let nodes: BTreeMap<u64, Member> = members.nodes.into_iter().map(|(id, member)| (id.0, member)).collect();
        Self::new(voters, nodes).map_err(|err| err.to_string())
    }
}

/// The members as of some entry; no position for a node that has not joined a farm yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersAt {
    /// The entry that set them.
    pub position: Option<Position>,
    /// Who they are.
    pub members: Members,
}

impl From<&StoredMembership> for MembersAt {
    fn from(stored: &StoredMembership) -> Self {
        Self { position: stored.log_id().as_ref().map(Position::from), members: stored.membership().into() }
    }
}

impl TryFrom<MembersAt> for StoredMembership {
    type Error = String;

    fn try_from(at: MembersAt) -> Result<Self, String> {
        Ok(Self::new(at.position.map(LogId::from), at.members.try_into()?))
    }
}

/// Returns Kiln's name for a raft leader.
pub fn from_leader_id(id: &types::LeaderId) -> Leader {
    Leader { term: id.term, node: NodeId(id.node_id) }
}

/// Returns raft's name for a leader.
pub fn to_leader_id(leader: Leader) -> types::LeaderId {
    types::LeaderId { term: leader.term, node_id: leader.node.0 }
}
