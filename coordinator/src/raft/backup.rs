//! Backups: the farm as its leader has it, in one file; and a new group of one coordinator from such a file.
//!
//! A file is `magic 8 | version 4 | header length 4 | header | farm length 8 | farm | BLAKE3 of all before 32`, integers little endian;
//! the header is MessagePack, `farm` is the core's own snapshot.
//!
//! A farm that is restored must be ahead of the one that was lost: workers obey no term and no registration below those that they
//! have seen, and attempts and builds that were numbered after the backup have left logs and records in the store. How far the lost
//! farm got is not known. So terms and log indices go on at the next multiple of a number that no farm gets past between a backup
//! and its restore.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kiln_core::Farm;
use kiln_wire::{Leader, LogIndex, NodeId, StoreDir, Timestamp, Version, frame};
use openraft::storage::RaftLogStorage;
use serde::{Deserialize, Serialize};

use super::api::ConsensusError;
use super::consensus::Consensus;
use super::log_store::LogStore;
use super::member::{DirectoryId, Member};
use super::node;
use super::record::{Members, MembersAt, Position, VoteRecord};
use super::snapshot::{Snapshot, SnapshotDir, SnapshotError};
use super::wal::WalError;

/// The newest version that this program writes and reads: of a farm at version 6 or later, which a program that lacks it would read as if
/// what it does not know were not there. Versions 2 to 4 were of farms at versions 3 to 5.
pub const VERSION: u32 = 5;
/// The version of a backup of an earlier farm.
const VERSION_FIRST: u32 = 1;

const MAGIC: [u8; 8] = *b"KILNBACK";
const HASH_BYTES: usize = 32;

/// A restored farm's terms go on at the next multiple: more elections than a farm holds in years.
const TERMS_APART: u64 = 1_000_000_000;
/// A restored farm's log goes on at the next multiple: more entries than a farm writes in a year at full speed. A power of ten, for
/// people read the numbers of builds and attempts that come of it.
const ENTRIES_APART: u64 = 1_000_000_000_000;

/// What a backup is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The farm's name.
    pub farm: String,
    /// The directory that its store paths name.
    pub store_dir: StoreDir,
    /// The key that signs its cache, as Nix writes it.
    pub public_key: String,
    /// Where its outputs are.
    pub store: String,
    /// When the backup was made.
    pub taken_at: Timestamp,
    /// The program that made it.
    pub program: String,
}

/// A backup in memory.
#[derive(Clone, Debug)]
pub struct Backup {
    /// What it is of.
    pub about: About,
    /// The last leader that wrote to the log, and its last entry that the farm had applied.
    pub last: (Leader, LogIndex),
    /// Numbers of everybody who was ever a member: they are not used again.
    pub nodes: BTreeSet<NodeId>,
    farm: Farm,
    directories: BTreeMap<NodeId, DirectoryId>,
    /// What the farm was at.
    version: Version,
}

/// A file that is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Its bytes are not those that were written.
    #[error("the backup is damaged: {0}")]
    Damaged(String),
    /// Its farm cannot be.
    #[error("the backup's farm cannot be read")]
    Farm(#[source] kiln_core::SnapshotError),
}

/// A group that cannot be made from a backup.
#[derive(Debug, thiserror::Error)]
pub enum FoundError {
    /// The directory holds something.
    #[error("`{}` is not empty: a farm is restored where there is none; move it away if it is not needed any more", .0.display())]
    NotEmpty(PathBuf),
    /// The number was used in the farm that was lost.
    #[error(
        "coordinator {node} was a member of the farm that was backed up, and a number is never used again; take a new one: {free} is free"
    )]
    UsedNumber {
        /// The number.
        node: NodeId,
        /// One that was never used.
        free: NodeId,
    },
    /// The system refused.
    #[error("{operation} `{}`", path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        err: std::io::Error,
    },
    /// The log cannot be made.
    #[error("make the log")]
    Log(#[source] WalError),
    /// The snapshot cannot be made.
    #[error("make the snapshot")]
    Snapshot(#[source] SnapshotError),
}

#[derive(Serialize, Deserialize)]
struct Header {
    about: About,
    last: Position,
    directories: BTreeMap<NodeId, DirectoryId>,
    #[serde(default, skip_serializing_if = "Version::is_first")]
    version: Version,
}

impl Consensus {
    /// Returns a backup of the farm as it is: with everything that this leader has answered, and nothing of what it has not committed.
    /// Takes a moment for a large farm: call it where that harms nobody.
    ///
    /// # Errors
    /// [`ConsensusError::NotLeader`] if this node does not lead before and after the copy is made.
    pub fn back_up(&self, about: About) -> Result<Vec<u8>, ConsensusError> {
        let copy = self.machine().state().clone();
        // A quorum has answered this leader lately: no other has committed anything that is not in the copy.
        if !self.leadership().borrow().is_self {
            return Err(ConsensusError::NotLeader { leader: None });
        }
        let last = copy.last.as_ref().map_or(Position { leader: Leader::default(), index: LogIndex(0) }, Position::from);
        let header = Header { about, last, directories: copy.directories, version: copy.version };
        let bytes = frame::to_bytes(&header).map_err(|err| ConsensusError::Start { reason: err.to_string() })?;
        Ok(encode(version_for(header.version), &bytes, &copy.farm.to_snapshot()))
    }
}

/// Returns the oldest version of a backup that holds what a farm at some version may have.
fn version_for(farm: Version) -> u32 {
    match farm {
        Version(..=2) => VERSION_FIRST,
        Version(3) => 2,
        Version(4) => 3,
        Version(5) => 4,
        Version(_) => VERSION,
    }
}

fn encode(version: u32, header: &[u8], farm: &[u8]) -> Vec<u8> {
    let header_bytes = u32::try_from(header.len()).expect("a header is small");
    let parts = [&MAGIC[..], &version.to_le_bytes(), &header_bytes.to_le_bytes(), header, &(farm.len() as u64).to_le_bytes(), farm];
    let mut bytes = parts.concat();
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    bytes
}

impl Backup {
    /// Reads a backup: its checksum, its version, its farm and every invariant of that.
    ///
    /// # Errors
    /// [`BackupError`] says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, BackupError> {
        let damaged = |what: &str| BackupError::Damaged(what.to_owned());
        if bytes.get(..MAGIC.len()) != Some(&MAGIC) {
            return Err(damaged("it does not start as a backup does"));
        }
        let (body, hash) = bytes.split_at(bytes.len().saturating_sub(HASH_BYTES));
        if blake3::hash(body).as_bytes() != hash {
            return Err(damaged("its checksum does not match; it may be cut off"));
        }
        let (version, rest) = split_u32(&body[MAGIC.len()..]).ok_or_else(|| damaged("it has no version"))?;
        if !(VERSION_FIRST..=VERSION).contains(&version) {
            return Err(damaged(&format!("it has version {version}, this program reads {VERSION_FIRST} to {VERSION}")));
        }
        let (header, rest) = split_u32(rest)
            .and_then(|(size, rest)| rest.split_at_checked(size as usize))
            .ok_or_else(|| damaged("its header is cut off"))?;
        let (size, farm) = rest.split_at_checked(8).ok_or_else(|| damaged("its farm is cut off"))?;
        if size != (farm.len() as u64).to_le_bytes() {
            return Err(damaged("its farm has another length than stated"));
        }
        let Header { about, last, directories, version } =
            frame::from_bytes(header).map_err(|err| damaged(&format!("its header: {err}")))?;
        let farm = Farm::from_snapshot(farm).map_err(BackupError::Farm)?;
        let nodes = directories.keys().copied().collect();
        Ok(Self { about, last: (last.leader, last.index), nodes, farm, directories, version })
    }

    /// Returns the term and the entry that a farm restored from this goes on after.
    fn resumes_after(&self, node: NodeId) -> Position {
        let (leader, index) = self.last;
        let next = |number: u64, apart: u64| (number / apart + 1).saturating_mul(apart);
        Position { leader: Leader { term: next(leader.term, TERMS_APART), node }, index: LogIndex(next(index.0, ENTRIES_APART)) }
    }

    /// Makes the directory of a group of one, this coordinator, with the farm of this backup. All of it or nothing is there afterwards.
    ///
    /// # Errors
    /// [`FoundError`] says why not.
    pub async fn found(self, dir: &Path, node: NodeId, segment_bytes: u64, mut member: Member) -> Result<(), FoundError> {
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |err| FoundError::Io { operation, path, err }
        };
        if self.nodes.contains(&node) {
            let free = NodeId(self.nodes.last().map_or(1, |last| last.0 + 1));
            return Err(FoundError::UsedNumber { node, free });
        }
        if std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(FoundError::NotEmpty(dir.to_owned()));
        }
        let unfinished = dir.with_extension("restoring");
        if unfinished.exists() {
            std::fs::remove_dir_all(&unfinished).map_err(failed("remove", &unfinished))?;
        }
        std::fs::create_dir_all(&unfinished).map_err(failed("make", &unfinished))?;
        let last = self.resumes_after(node);
        let mut log = LogStore::open(&unfinished.join("log"), segment_bytes, u64::MAX).map_err(FoundError::Log)?;
        member.directory = log.directory();
        log.purge(last.into()).await.map_err(failed("write", &unfinished.join("log")))?;
        // The last that is written: a directory with a vote is one that is whole.
        let snapshots = SnapshotDir::open(unfinished.join("snapshot")).map_err(FoundError::Snapshot)?;
        snapshots.write(&self.snapshot(node, member, last)).map_err(FoundError::Snapshot)?;
        node::set_owner(&unfinished, node).map_err(failed("write", &unfinished))?;
        let vote = VoteRecord { leader: last.leader, committed: false };
        log.save_vote(&vote.into()).await.map_err(failed("write", &unfinished.join("log")))?;
        drop(log);
        if dir.exists() {
            std::fs::remove_dir(dir).map_err(failed("remove", dir))?;
        }
        std::fs::rename(&unfinished, dir).map_err(failed("name", dir))?;
        let parent = dir.parent().unwrap_or(Path::new("/"));
        std::fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed("sync", parent))
    }

    fn snapshot(mut self, node: NodeId, member: Member, last: Position) -> Snapshot {
        self.directories.insert(node, member.directory);
        let members = Members { voters: vec![[node].into()], nodes: [(node, member)].into() };
        let members = MembersAt { position: Some(last), members }.try_into().expect("one voter that is on record is a group");
        Snapshot { farm: self.farm, last: Some(last.into()), members, directories: self.directories, version: self.version }
    }
}

fn split_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    bytes.split_first_chunk().map(|(number, rest)| (u32::from_le_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(version: Version) -> Vec<u8> {
        let about = About {
            farm: "test".into(),
            store_dir: StoreDir::default(),
            public_key: "test-1:key".into(),
            store: "s3://kiln/test".into(),
            taken_at: Timestamp(5),
            program: "kiln".into(),
        };
        let last = Position { leader: Leader { term: 7, node: NodeId(2) }, index: LogIndex(1234) };
        let directories = [(NodeId(1), DirectoryId(11)), (NodeId(4), DirectoryId(44))].into();
        let header = Header { about, last, directories, version };
        encode(version_for(version), &frame::to_bytes(&header).expect("encodes"), &Farm::new().to_snapshot())
    }

    #[test]
    fn a_backup_reads_back_and_no_byte_of_it_may_differ() {
        let bytes = backup(Version(3));
        let read = Backup::decode(&bytes).expect("reads");
        assert_eq!((read.about.farm.as_str(), read.last.1, read.nodes.len()), ("test", LogIndex(1234), 2));
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 4;
            assert!(Backup::decode(&other).is_err(), "byte {at}");
            assert!(Backup::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_backup_is_of_the_oldest_version_that_holds_its_farm() {
        let last = Position { leader: Leader { term: 7, node: NodeId(5) }, index: LogIndex(1234) };
        for (farm, version) in [(1, 1), (2, 1), (3, 2), (4, 3), (5, 4), (6, 5)] {
            let bytes = backup(Version(farm));
            assert_eq!(bytes[MAGIC.len()..][..4], u32::to_le_bytes(version), "a farm at version {farm}");
            let restored = Backup::decode(&bytes).expect("reads").snapshot(NodeId(5), Member::default(), last);
            assert_eq!(restored.version, Version(farm));
        }
    }

    #[test]
    fn what_is_restored_goes_on_beyond_everything_that_was() {
        let after = Backup::decode(&backup(Version(3))).expect("reads").resumes_after(NodeId(5));
        assert_eq!(after, Position { leader: Leader { term: 1_000_000_000, node: NodeId(5) }, index: LogIndex(1_000_000_000_000) });
        let mut again = Backup::decode(&backup(Version(3))).expect("reads");
        again.last = (after.leader, after.index);
        assert_eq!(again.resumes_after(NodeId(6)).index, LogIndex(2_000_000_000_000));
    }

    #[tokio::test]
    async fn a_restored_group_leads_itself_and_a_used_number_or_directory_is_refused() {
        use super::super::api::ConsensusConfig;
        let place = tempfile::tempdir().expect("a temporary directory");
        let dir = place.path().join("raft");
        let found = |node| Backup::decode(&backup(Version(3))).expect("reads").found(&dir, NodeId(node), 1 << 20, Member::default());
        let error = found(4).await.expect_err("it was a member");
        assert!(error.to_string().contains("5 is free"), "{error}");
        found(5).await.expect("restores");
        assert!(matches!(found(6).await, Err(FoundError::NotEmpty(_))));
        for restart in 0..2 {
            let config = ConsensusConfig { segment_bytes: 1 << 20, ..ConsensusConfig::new(&dir, NodeId(5)) };
            let (consensus, _effects) = Consensus::start(config).await.expect("starts");
            let leadership = *consensus.leadership().borrow();
            assert!(leadership.is_self && leadership.leader.term > 1_000_000_000, "{restart}: {leadership:?}");
            let now = Timestamp(10);
            let command = kiln_core::Command::Cancel { build: kiln_wire::BuildId(1), now };
            let applied = consensus.propose(vec![command]).await.expect("takes commands");
            assert!(applied.index.0 > 1_000_000_000_000, "{:?}", applied.index);
            consensus.shutdown().await;
        }
    }
}
