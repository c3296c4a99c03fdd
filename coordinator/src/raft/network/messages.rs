//! What coordinators say to each other: our own types, so that a change in openraft never changes the wire.
//!
//! A connection begins with a [`Greeting`] on its first stream. Every stream after that is one [`Call`] and what follows it. The
//! protocol's name, `kiln-raft/1`, changes with what an older version could not even read; the version that a program says it speaks
//! with anything else. Greetings gain fields only: they come before either end knows what the other speaks.
//! Goals: fields by name, so that a newer peer may add some; one golden file for each version. Non-goals: workers and clients.

use std::collections::BTreeMap;

use kiln_wire::{NodeId, Program, Version};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult, VoteRequest, VoteResponse};
use serde::{Deserialize, Serialize};

use crate::raft::member::{DirectoryId, Member};
use crate::raft::record::{Entry, Position, VoteRecord};
use crate::raft::types::{LogId, TypeConfig, Vote};

/// Opens a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// The newest version that the dialer speaks; of a program of version 1, all that it says.
    pub version: Version,
    /// Who dials; must be its certificate's number.
    pub from: NodeId,
    /// The dialer's directory.
    pub directory: DirectoryId,
    /// Whom it means to reach.
    pub to: NodeId,
    /// Whose directory that is, if the group has it on record.
    pub want: Option<DirectoryId>,
    /// The dialer's program.
    #[serde(default)]
    pub program: Program,
}

/// Answers a [`Greeting`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Greeted {
    /// Calls may follow.
    Welcome(Introduction),
    /// They may not, for this reason.
    Refused(String),
}

/// What a coordinator says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// The newest version that it speaks; of a program of version 1, all that it says.
    pub version: Version,
    /// Its number.
    pub node: NodeId,
    /// Where it listens, and its directory.
    pub member: Member,
    /// Whether it belongs to a group already.
    pub has_group: bool,
    /// The directories of those who are or were in that group as far as it knows, its own if it votes. A program of before says none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub directories: BTreeMap<NodeId, DirectoryId>,
    /// What every coordinator of a farm must have in common, by name.
    pub common: Common,
    /// Its program.
    #[serde(default)]
    pub program: Program,
}

/// What every coordinator of a farm must have in common, by name: the store, the signing key, the store directory.
pub type Common = std::collections::BTreeMap<String, String>;

/// The first message of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// [`Append`] messages follow; each is answered by an [`Appended`], in order.
    Append,
    /// Answered by a [`BallotReply`].
    Vote(Ballot),
    /// Whether the vote would be given; changes nothing. Answered by a [`BallotReply`].
    PreVote(Ballot),
    /// The leader hands over. Answered by a [`HandOverReply`].
    HandOver(HandOver),
    /// [`Chunk`]s of a snapshot file follow. Answered by a [`SnapshotReply`].
    Snapshot(SnapshotHead),
}

/// Entries for a follower's log; without entries a sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Append {
    /// The leader.
    pub vote: VoteRecord,
    /// What comes before the first entry.
    pub prev: Option<Position>,
    /// What is committed.
    pub committed: Option<Position>,
    /// The entries.
    pub entries: Vec<Entry>,
}

/// What became of an [`Append`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Appended {
    /// The follower's log equals the leader's up to there, durably.
    Matching(Option<Position>),
    /// It has no such entry.
    Conflict(Position),
    /// It obeys a later vote.
    Higher(VoteRecord),
}

/// Asks for a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ballot {
    /// For whom.
    pub vote: VoteRecord,
    /// The candidate's last entry.
    pub last: Option<Position>,
    /// The leader wants it so: give the vote although the leader lives.
    pub handed_over: bool,
}

/// Answers a [`Ballot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BallotReply {
    /// For whom the voter has voted.
    pub vote: VoteRecord,
    /// Whether it gives its vote.
    pub granted: bool,
    /// The voter's last entry.
    pub last: Option<Position>,
}

/// The leader hands over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOver {
    /// The leader.
    pub from: VoteRecord,
    /// To whom.
    pub to: NodeId,
    /// The leader's last entry, which the next one must have.
    pub last: Option<Position>,
}

/// Answers a [`HandOver`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOverReply {
    /// Why it cannot be; none if it is done.
    pub refused: Option<String>,
}

/// Announces a snapshot file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHead {
    /// The leader.
    pub vote: VoteRecord,
    /// The file's size.
    pub size_bytes: u64,
}

/// A piece of a snapshot file, or of a message that is too long for one frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Another follows.
    pub more: bool,
    /// The bytes.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// Answers a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotReply {
    /// It is installed, or superfluous, or comes from a deposed leader: see the vote.
    Taken(VoteRecord),
    /// It is not what it should be, or could not be kept.
    Refused(String),
}

fn position(id: Option<LogId>) -> Option<Position> {
    id.as_ref().map(Position::from)
}

fn log_id(position: Option<Position>) -> Option<LogId> {
    position.map(LogId::from)
}

impl From<AppendEntriesRequest<TypeConfig>> for Append {
    fn from(request: AppendEntriesRequest<TypeConfig>) -> Self {
        Self {
            vote: VoteRecord::from(&request.vote),
            prev: position(request.prev_log_id),
            committed: position(request.leader_commit),
            entries: request.entries.into_iter().map(Entry::from).collect(),
        }
    }
}

impl TryFrom<Append> for AppendEntriesRequest<TypeConfig> {
    type Error = String;

    fn try_from(append: Append) -> Result<Self, String> {
        Ok(Self {
            vote: append.vote.into(),
            prev_log_id: log_id(append.prev),
            leader_commit: log_id(append.committed),
            entries: append.entries.into_iter().map(Entry::into_raft).collect::<Result<_, _>>()?,
        })
    }
}

impl From<StreamAppendResult<TypeConfig>> for Appended {
    fn from(result: StreamAppendResult<TypeConfig>) -> Self {
        match result {
            Ok(matching) => Self::Matching(position(matching)),
            Err(StreamAppendError::Conflict(at)) => Self::Conflict(Position::from(&at)),
            Err(StreamAppendError::HigherVote(vote)) => Self::Higher(VoteRecord::from(&vote)),
        }
    }
}

impl From<Appended> for StreamAppendResult<TypeConfig> {
    fn from(appended: Appended) -> Self {
        match appended {
            Appended::Matching(matching) => Ok(log_id(matching)),
            Appended::Conflict(at) => Err(StreamAppendError::Conflict(at.into())),
            Appended::Higher(vote) => Err(StreamAppendError::HigherVote(vote.into())),
        }
    }
}

impl From<VoteRequest<TypeConfig>> for Ballot {
    fn from(request: VoteRequest<TypeConfig>) -> Self {
        Self { vote: VoteRecord::from(&request.vote), last: position(request.last_log_id), handed_over: request.leadership_transfer }
    }
}

impl From<Ballot> for VoteRequest<TypeConfig> {
    fn from(ballot: Ballot) -> Self {
        Self { vote: ballot.vote.into(), last_log_id: log_id(ballot.last), leadership_transfer: ballot.handed_over }
    }
}

impl From<VoteResponse<TypeConfig>> for BallotReply {
    fn from(response: VoteResponse<TypeConfig>) -> Self {
        Self { vote: VoteRecord::from(&response.vote), granted: response.vote_granted, last: position(response.last_log_id) }
    }
}

impl From<BallotReply> for VoteResponse<TypeConfig> {
    fn from(reply: BallotReply) -> Self {
        Self { vote: Vote::from(reply.vote), vote_granted: reply.granted, last_log_id: log_id(reply.last) }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use kiln_core::Command;
    use kiln_wire::{BuildId, Leader, LogIndex, Timestamp, frame};

    use super::*;
    use crate::raft::record::Content;

    fn line<T: Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(text: &mut String, message: &T) {
        let bytes = frame::to_bytes(message).expect("encodes");
        let name = std::any::type_name::<T>().rsplit("::").next().expect("a name");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{name} {hex}").expect("a String takes any text");
        assert_eq!(frame::from_bytes::<T>(&bytes).expect("decodes"), *message);
    }

    /// Version 1 for ever: the file is never written again.
    #[test]
    fn the_messages_of_version_1_stay_readable() {
        let leader = Leader { term: 7, node: NodeId(2) };
        let at = Position { leader, index: LogIndex(40) };
        let vote = VoteRecord { leader, committed: true };
        let command = Command::Cancel { build: BuildId(3), now: Timestamp(4) };
        let entries = vec![Entry { position: at, content: Content::Blank }, Entry { position: at, content: Content::Command(command) }];
        let ballot = Ballot { vote, last: Some(at), handed_over: true };
        let mut text = String::new();
        line(&mut text, &Greeted::Refused("why".into()));
        for call in [Call::Append, Call::Vote(ballot), Call::PreVote(ballot)] {
            line(&mut text, &call);
        }
        line(&mut text, &Call::HandOver(HandOver { from: vote, to: NodeId(3), last: None }));
        line(&mut text, &Call::Snapshot(SnapshotHead { vote, size_bytes: 9 }));
        line(&mut text, &Append { vote, prev: None, committed: Some(at), entries });
        for appended in [Appended::Matching(None), Appended::Matching(Some(at)), Appended::Conflict(at), Appended::Higher(vote)] {
            line(&mut text, &appended);
        }
        line(&mut text, &BallotReply { vote, granted: true, last: Some(at) });
        line(&mut text, &HandOverReply { refused: Some("why".into()) });
        line(&mut text, &Chunk { more: true, bytes: vec![1, 2, 3] });
        line(&mut text, &SnapshotReply::Taken(vote));
        line(&mut text, &SnapshotReply::Refused("why".into()));
        let golden = include_str!("../../../tests/raft/messages-v1.txt");
        let (_greetings, rest) = golden.split_at(golden.find("\nGreeted 81a752").expect("a refusal") + 1);
        assert_eq!(text, rest, "what is said to a coordinator of version 1 is as it says it");
    }

    fn greetings(version: Version, program: &Program) -> (Greeting, Greeted) {
        let member = Member { link: "c2.example:7420".into(), http: "c2.example:7480".into(), directory: DirectoryId(5) };
        let common = Common::from([("store".into(), "s3://bucket/kiln".into())]);
        let (from, to, want) = (NodeId(1), NodeId(2), Some(DirectoryId(5)));
        let introduction =
            Introduction { version, node: to, member, has_group: false, directories: BTreeMap::new(), common, program: program.clone() };
        (Greeting { version, from, directory: DirectoryId(4), to, want, program: program.clone() }, Greeted::Welcome(introduction))
    }

    /// As version 1 has them, which greets with fewer fields and reads past those that it does not know.
    #[test]
    fn the_greetings_of_version_1_stay_readable() {
        let mut lines = include_str!("../../../tests/raft/messages-v1.txt").lines();
        let (greeting, greeted) = greetings(Version(1), &Program::default());
        assert_eq!(unhex::<Greeting>(lines.next()), greeting);
        assert_eq!(unhex::<Greeted>(lines.next()), greeted);
    }

    /// Version 2 for ever: `UPDATE_GOLDEN=1` writes the file anew, which only a new version may need.
    #[test]
    fn the_messages_that_version_2_adds_stay_readable() {
        let program = Program { release: "0.2.0".into(), oldest: Version(1), newest: Version(2) };
        let (greeting, greeted) = greetings(Version(2), &program);
        let leader = Leader { term: 7, node: NodeId(2) };
        let at = Position { leader, index: LogIndex(40) };
        let entries = vec![Entry { position: at, content: Content::Raise(Version(2)) }];
        let mut text = String::new();
        line(&mut text, &greeting);
        line(&mut text, &greeted);
        line(&mut text, &Append { vote: VoteRecord { leader, committed: true }, prev: None, committed: Some(at), entries });
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/raft/messages-v2.txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &text).expect("writes");
        }
        assert_eq!(text, std::fs::read_to_string(path).expect("the golden file"));
    }

    fn unhex<T: serde::de::DeserializeOwned>(line: Option<&str>) -> T {
        let hex = line.and_then(|line| line.rsplit(' ').next()).expect("a message");
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal")).collect();
        frame::from_bytes(&bytes).expect("decodes")
    }
}
