//! Snapshot files: the farm as of some log entry.
//!
//! A file is `magic 8 | version 4 | meta length 4 | meta | farm length 8 | farm | BLAKE3 of all before 32`, integers little endian;
//! `meta` is MessagePack, `farm` is the core's own snapshot. A file gets its name only when it is durable, and it is verified whole
//! before any of it is used. Never falls back to an older state: the log behind a snapshot may be gone.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use kiln_core::Farm;
use kiln_wire::{NodeId, Version, frame};
use serde::{Deserialize, Serialize};

use super::disk::{self, File};
use super::member::DirectoryId;
use super::record::{MembersAt, Position};
use super::types::{LogId, SnapshotMeta, StoredMembership};
use super::wal::is_full;

/// The newest version that this program reads and writes; from 3 on a file names the farm's version.
pub const VERSION: u32 = 7;
/// The version of a farm at its first, which coordinators that lack the newest can read.
pub const VERSION_FIRST: u32 = 2;
/// The oldest version that it reads: of members it held an address only.
pub const VERSION_OLDEST: u32 = 1;

const MAGIC: [u8; 8] = *b"KILNSNAP";
const ENDING: &str = ".snapshot";
const UNFINISHED: &str = "unfinished.tmp";
const RECEIVED: &str = "received.tmp";
const HASH_BYTES: usize = 32;

/// A snapshot that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The system refused.
    #[error("{operation} `{path}`")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        err: io::Error,
    },
    /// The file is not what was written.
    #[error("snapshot `{path}` is damaged: {what}; this node's data is lost, restore it from a backup or from its peers")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The file was written by a newer program.
    #[error(
        "snapshot `{path}` has version {found}, this program reads {VERSION_OLDEST} to {VERSION}: install the program that wrote it, that of the farm's other coordinators"
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The farm in it cannot be.
    #[error("snapshot `{path}`: read the farm")]
    Farm {
        /// Which file.
        path: PathBuf,
        /// What the core said.
        #[source]
        err: kiln_core::SnapshotError,
    },
    /// A file in the directory is no snapshot.
    #[error("`{path}` does not belong in a snapshot directory")]
    Stranger {
        /// Which.
        path: PathBuf,
    },
}

impl SnapshotError {
    /// Returns whether the disk refused for want of room.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Io { err, .. } => is_full(err),
            Self::Damaged { .. } | Self::Newer { .. } | Self::Farm { .. } | Self::Stranger { .. } => false,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    last: Option<Position>,
    members: MembersAt,
    #[serde(default)]
    directories: BTreeMap<NodeId, DirectoryId>,
    #[serde(default, skip_serializing_if = "Version::is_first")]
    version: Version,
}

/// A snapshot in memory. The default is that of a farm that has not begun.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The farm.
    pub farm: Farm,
    /// The last entry that it has applied.
    pub last: Option<LogId>,
    /// The members as of that entry.
    pub members: StoredMembership,
    /// The directory of everybody who was ever a member: a number is never used again.
    pub directories: BTreeMap<NodeId, DirectoryId>,
    /// The version that the farm is at.
    pub version: Version,
}

impl Snapshot {
    /// Takes in a change of the members.
    pub fn change_members(&mut self, members: StoredMembership) {
        for (node, member) in members.membership().nodes() {
            let known = self.directories.entry(NodeId(*node)).or_default();
            if *known == DirectoryId(0) {
                *known = member.directory;
            }
        }
        self.members = members;
    }

    /// Returns what openraft wants to know about it.
    pub fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.last, last_membership: self.members.clone() }
    }
}

/// Where snapshots lie. At most one is current.
#[derive(Clone, Debug)]
pub struct SnapshotDir {
    path: PathBuf,
}

impl SnapshotDir {
    /// Opens the directory, making it if absent, and removes what a crash left unfinished.
    ///
    /// # Errors
    /// [`SnapshotError::Io`] if the system refuses.
    pub fn open(path: PathBuf) -> Result<Self, SnapshotError> {
        disk::create_dir_all(&path).map_err(at("create", &path))?;
        for unfinished in [path.join(UNFINISHED), path.join(RECEIVED)] {
            if unfinished.exists() {
                disk::remove_file(&unfinished).map_err(at("remove", &unfinished))?;
            }
        }
        Ok(Self { path })
    }

    /// Returns where a snapshot from another coordinator is put until it is verified.
    pub fn received(&self) -> PathBuf {
        self.path.join(RECEIVED)
    }

    /// Gives a durable and verified file its name and removes older ones.
    ///
    /// # Errors
    /// [`SnapshotError::Io`] if the disk refuses; the older snapshot is still there then.
    pub fn adopt(&self, file: &Path, last: Option<LogId>) -> Result<PathBuf, SnapshotError> {
        let path = self.path.join(name(last));
        disk::rename(file, &path).map_err(at("name", &path))?;
        sync_dir(&self.path)?;
        for older in self.list()? {
            if older != path {
                disk::remove_file(&older).map_err(at("remove", &older))?;
            }
        }
        Ok(path)
    }

    /// Writes a snapshot, makes it durable and removes older ones. Returns its path.
    ///
    /// # Errors
    /// [`SnapshotError::Io`] if the disk refuses; the older snapshot is still there then.
    pub fn write(&self, snapshot: &Snapshot) -> Result<PathBuf, SnapshotError> {
        let path = self.path.join(name(snapshot.last));
        let unfinished = self.path.join(UNFINISHED);
        let file = File::create(&unfinished).map_err(at("create", &unfinished))?;
        let version = version_for(snapshot.version);
        let out = Hashed { file: io::BufWriter::with_capacity(1 << 20, file), hash: blake3::Hasher::new() };
        let meta = Meta {
            last: snapshot.last.as_ref().map(Position::from),
            members: MembersAt::from(&snapshot.members),
            directories: snapshot.directories.clone(),
            version: snapshot.version,
        };
        let meta = frame::to_bytes(&meta).map_err(|err| at("encode", &path)(io::Error::other(err)))?;
        if let Err(err) = out.write_all(version, &meta, &snapshot.farm.to_snapshot()) {
            // What was written so far takes room that others need.
            let _gone = disk::remove_file(&unfinished);
            return Err(at("write", &unfinished)(err));
        }
        self.adopt(&unfinished, snapshot.last)
    }

    /// Returns the newest snapshot's path, if there is one.
    ///
    /// # Errors
    /// [`SnapshotError`] if the directory cannot be read or holds something else.
    pub fn newest(&self) -> Result<Option<PathBuf>, SnapshotError> {
        Ok(self.list()?.pop())
    }

    fn list(&self) -> Result<Vec<PathBuf>, SnapshotError> {
        let mut paths = Vec::new();
        for file in disk::read_dir(&self.path).map_err(at("list", &self.path))? {
            let path = file.map_err(at("list", &self.path))?.path();
            if path.file_name().is_some_and(|name| name == UNFINISHED || name == RECEIVED) {
                continue;
            }
            if path.extension().is_none_or(|ending| ENDING.trim_start_matches('.') != ending) {
                return Err(SnapshotError::Stranger { path });
            }
            paths.push(path);
        }
        paths.sort();
        Ok(paths)
    }
}

/// Reads and verifies a snapshot.
///
/// # Errors
/// [`SnapshotError::Damaged`] if a single byte differs from what was written, [`SnapshotError::Farm`] if the core refuses it.
pub fn read(path: &Path) -> Result<Snapshot, SnapshotError> {
    let bytes = disk::read(path).map_err(at("read", path))?;
    let damaged = |what: &str| damaged(path, what);
    let body_bytes = bytes.len().checked_sub(HASH_BYTES).ok_or_else(|| damaged("the file is too short"))?;
    let (body, hash) = bytes.split_at(body_bytes);
    if body.get(..8) != Some(&MAGIC) {
        return Err(damaged("it does not start as a snapshot"));
    }
    if blake3::hash(body).as_bytes() != hash {
        return Err(damaged("its hash does not match"));
    }
    let (version, rest) = split_u32(&body[8..]).ok_or_else(|| damaged("the header is cut off"))?;
    if version > VERSION {
        return Err(SnapshotError::Newer { path: path.to_owned(), found: version });
    }
    if version < VERSION_OLDEST {
        return Err(damaged(&format!("it has version {version}, this program reads {VERSION_OLDEST} to {VERSION}")));
    }
    let (meta, rest) =
        split_u32(rest).and_then(|(size, rest)| rest.split_at_checked(size as usize)).ok_or_else(|| damaged("the meta data is cut off"))?;
    let (size, farm) = rest.split_at_checked(8).ok_or_else(|| damaged("the farm is cut off"))?;
    if size != (farm.len() as u64).to_le_bytes() {
        return Err(damaged("the farm has another length than stated"));
    }
    let meta: Meta = frame::from_bytes(meta).map_err(|err| damaged(&format!("its meta data: {err}")))?;
    let farm = Farm::from_snapshot(farm).map_err(|err| SnapshotError::Farm { path: path.to_owned(), err })?;
    let members = meta.members.try_into().map_err(|what: String| damaged(&what))?;
    Ok(Snapshot { farm, last: meta.last.map(LogId::from), members, directories: meta.directories, version: meta.version })
}

/// Reads what a snapshot is of, without the farm and without verifying it: for a file that was verified when it got its name, and
/// is verified again by whoever uses it.
///
/// # Errors
/// [`SnapshotError`] if the file cannot be read so far.
pub fn read_meta(path: &Path) -> Result<SnapshotMeta, SnapshotError> {
    let mut file = File::open(path).map_err(at("open", path))?;
    let mut head = [0; 16];
    file.read_exact(&mut head).map_err(at("read", path))?;
    let (_, size) = head.split_at(12);
    let mut meta = vec![0; split_u32(size).map_or(0, |(size, _)| size as usize)];
    file.read_exact(&mut meta).map_err(at("read", path))?;
    let meta: Meta = frame::from_bytes(&meta).map_err(|err| damaged(path, &format!("its meta data: {err}")))?;
    let members = meta.members.try_into().map_err(|what: String| damaged(path, &what))?;
    Ok(SnapshotMeta { last_log_id: meta.last.map(LogId::from), last_membership: members })
}

/// Returns the oldest version of a file that holds what a farm at some version may have.
fn version_for(farm: Version) -> u32 {
    match farm {
        Version(..=1) => VERSION_FIRST,
        Version(2) => 3,
        Version(3) => 4,
        Version(4) => 5,
        Version(5) => 6,
        Version(_) => VERSION,
    }
}

fn damaged(path: &Path, what: &str) -> SnapshotError {
    SnapshotError::Damaged { path: path.to_owned(), what: what.to_owned() }
}

/// Writes to a file and hashes what it writes.
struct Hashed {
    file: io::BufWriter<File>,
    hash: blake3::Hasher,
}

impl Hashed {
    fn write_all(mut self, version: u32, meta: &[u8], farm: &[u8]) -> io::Result<()> {
        let meta_bytes = u32::try_from(meta.len()).map_err(io::Error::other)?;
        let farm_bytes = farm.len() as u64;
        for part in [&MAGIC[..], &version.to_le_bytes(), &meta_bytes.to_le_bytes(), meta, &farm_bytes.to_le_bytes(), farm] {
            self.hash.update(part);
            self.file.write_all(part)?;
        }
        self.file.write_all(self.hash.finalize().as_bytes())?;
        self.file.into_inner()?.sync_all()
    }
}

/// Sorts as the log does: a snapshot of nothing comes first.
fn name(last: Option<LogId>) -> String {
    last.map_or_else(|| format!("-{ENDING}"), |last| format!("{:020}-{:020}{ENDING}", last.index, last.leader_id.term))
}

fn split_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    bytes.split_first_chunk().map(|(number, rest)| (u32::from_le_bytes(*number), rest))
}

fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError + use<> {
    let path = path.to_owned();
    move |err| SnapshotError::Io { operation, path, err }
}

fn sync_dir(path: &Path) -> Result<(), SnapshotError> {
    disk::sync_dir(path).map_err(at("sync", path))
}
