//! The write-ahead log: numbered segments of preallocated zeros, one thread that writes, one fdatasync for all that waits.
//!
//! Knows record kinds, not what is in them. Never retries after the disk refused a sync: what the disk holds is unknown then, so
//! every later request fails with the same reason and the node must stop. Does not repair: a torn tail, which a crash leaves, is
//! cut; anything else that is wrong is an error that names file and offset.
//! Source of the scheme: PostgreSQL's and etcd's logs; the recovery rules follow Protocol-Aware Recovery, Alagappan et al. 2018.

mod back;
mod layout;
#[cfg_attr(feature = "simulation", path = "prepare_simulated.rs")]
mod prepare;
mod recover;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::disk::{self, Server};
use super::latency::Recorder;

use back::Places;
pub use layout::Kind;
pub use recover::Stored;

/// Bytes of one record's payload: a proposal of 512 jobs is about 256 KiB. Passing it: the append fails.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// A log that cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
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
    /// The log holds something that was not written, or lacks something that was.
    #[error(
        "log segment `{path}` is damaged at byte {offset}: {what}; this node's data is lost, restore it from a backup or from its peers"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The log was written by a newer program.
    #[error("log `{path}`: {what}: install the program that wrote it, that of the farm's other coordinators")]
    Newer {
        /// Which log.
        path: PathBuf,
        /// What this program cannot read.
        what: String,
    },
    /// A file in the directory is none of the log's.
    #[error("`{path}` does not belong in a log directory")]
    Stranger {
        /// Which.
        path: PathBuf,
    },
}

fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WalError + use<> {
    let path = path.to_owned();
    move |err| WalError::Io { operation, path, err }
}

/// A record to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRecord {
    /// What it is about.
    pub kind: Kind,
    /// Log index of an entry, or of the last purged one; otherwise 0.
    pub index: u64,
    /// Version of the payload's encoding.
    pub version: u8,
    /// The payload.
    pub payload: Vec<u8>,
}

/// Told when a request is done.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

enum Request {
    Append { records: Vec<NewRecord>, done: Done },
    Note(NewRecord),
}

/// Figures of the log.
#[derive(Debug, Default)]
pub struct WalStats {
    /// Bytes of records in the segments on disk.
    pub bytes: AtomicU64,
    /// Segments on disk.
    pub segments: AtomicU64,
    /// Time of one write and fdatasync.
    pub sync: Recorder,
    /// Whether there is room for the next segment.
    pub room: tokio::sync::watch::Sender<Room>,
    /// The log is being closed: nobody waits for a full disk any more.
    ending: AtomicBool,
}

/// Whether there is room for the next segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// There is, for all that is known.
    #[default]
    Enough,
    /// There is not; the segment in use still takes some.
    Short,
    /// There is not, and the segment in use is full: whoever writes waits.
    None,
}

/// An open log. Requests are done in the order of the calls.
#[derive(Debug)]
pub struct Wal {
    dir: PathBuf,
    places: Arc<Places>,
    /// Dropped, it waits until everything asked for is written.
    server: Server<Request>,
    stats: Arc<WalStats>,
    log_id: u64,
}

impl Wal {
    /// Opens the log in `dir`, making it if the directory is empty, and hands each record to `replay` in order. New segments get
    /// `segment_bytes`, more where a record needs more.
    ///
    /// # Errors
    /// [`WalError`] if the disk refuses, if the log is damaged, or if `replay` says why a record cannot follow its predecessors.
    pub fn open(dir: &Path, segment_bytes: u64, mut replay: impl FnMut(Stored<'_>) -> Result<(), String>) -> Result<Self, WalError> {
        disk::create_dir_all(dir).map_err(at("create", dir))?;
        let recovered = recover::recover(dir, &mut replay)?;
        let stats = Arc::new(WalStats::default());
        let places = Arc::new(Places::default());
        let mut writer = writer::Writer::start(dir, segment_bytes, recovered, Arc::clone(&stats), Arc::clone(&places))?;
        let log_id = writer.log_id();
        let server = Server::start("wal", dir, move |requests| writer.serve(requests)).map_err(at("start a thread for", dir))?;
        Ok(Self { dir: dir.to_owned(), places, server, stats, log_id })
    }

    /// Writes `records` and calls `done` once they, and everything asked for before, are durable, or with the error.
    pub fn append(&self, records: Vec<NewRecord>, done: Done) {
        if let Err(Request::Append { done, .. }) = self.server.ask(Request::Append { records, done }) {
            done(Err(io::Error::other("the log's thread has ended")));
        }
    }

    /// Writes a record that need not be durable: it may be lost with the machine, not with the process.
    pub fn note(&self, record: NewRecord) {
        // A thread that has ended has told why to whoever waited for a sync.
        let _ = self.server.ask(Request::Note(record));
    }

    /// Reads an entry back that was written and not purged: the version of its payload, and the payload. `None`: it is not in a file.
    ///
    /// # Errors
    /// [`WalError::Io`] also if it was purged meanwhile, [`WalError::Damaged`] if it is not what was written.
    pub fn read(&self, index: u64) -> Result<Option<(u8, Vec<u8>)>, WalError> {
        self.places.read(&self.dir, index)
    }

    /// Returns what was drawn when the log was begun. No other log has it.
    pub fn log_id(&self) -> u64 {
        self.log_id
    }

    /// Returns the log's figures.
    pub fn stats(&self) -> &Arc<WalStats> {
        &self.stats
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.stats.ending.store(true, Ordering::Relaxed);
    }
}

/// Returns whether a disk refused for want of room.
pub fn is_full(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A segment that no longer grows.
#[derive(Clone, Copy, Debug)]
struct Closed {
    number: u64,
    index_max: Option<u64>,
    bytes: u64,
}

/// The newest record of each kind that must be at the head of every segment, so that older segments can be deleted.
#[derive(Clone, Debug, Default)]
struct Heads {
    vote: Option<NewRecord>,
    purge: Option<NewRecord>,
    committed: Option<NewRecord>,
}

impl Heads {
    fn note(&mut self, record: &NewRecord) {
        match record.kind {
            Kind::Vote => self.vote = Some(record.clone()),
            Kind::Purge => self.purge = Some(record.clone()),
            Kind::Committed => self.committed = Some(record.clone()),
            Kind::Entry | Kind::Truncate => {}
        }
    }

    fn iter(&self) -> impl Iterator<Item = &NewRecord> {
        [&self.vote, &self.purge, &self.committed].into_iter().flatten()
    }
}

impl WalStats {
    fn set(&self, bytes: u64, segments: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
        self.segments.store(segments, Ordering::Relaxed);
    }
}
