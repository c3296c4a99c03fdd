//! The journal: results that the farm has not acknowledged, and the highest leader obeyed, so that a worker which is restarted
//! sends again what it had finished.
//!
//! One file of records, appended; rewritten aside and renamed when most of it is history. Not synced: what a dying machine loses
//! is built again, which is correct. A record that was cut is the end of the file. Does not decide what is sent.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use kiln_wire::frame::{self, FrameError, HEADER_BYTES};
use kiln_wire::{AttemptId, Leader, Lease, Outcome};
use serde::{Deserialize, Serialize};

/// What a journal holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The highest leader obeyed.
    pub leader_seen: Leader,
    /// Results that are not acknowledged, oldest attempt first.
    pub results: BTreeMap<AttemptId, (Lease, Outcome)>,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
    memory: Memory,
}

/// A journal that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The kernel refuses.
    #[error("{operation} the journal `{path}`")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        err: std::io::Error,
    },
    /// A record is too large to be one.
    #[error("write a record of the journal `{path}`")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        err: FrameError,
    },
}

#[derive(Debug, Serialize, Deserialize)]
enum Record {
    Leader(Leader),
    Finished(Lease, Outcome),
    Forgotten(AttemptId),
}

/// Bytes of history after which the file is rewritten: a few thousand results.
const REWRITE_BYTES: u64 = 4 << 20;

impl Journal {
    /// Opens the journal, made if missing.
    ///
    /// # Errors
    /// [`JournalError`] if it cannot be read or rewritten.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let error = |operation, err| JournalError::Io { operation, path: path.into(), err };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(err) => return Err(error("read", err)),
        };
        let (file, bytes) = rewrite(path, &replay(&bytes))?;
        Ok(Self { path: path.into(), file, bytes: bytes.0, memory: bytes.1 })
    }

    /// Returns what it holds.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Remembers a result until it is forgotten.
    ///
    /// # Errors
    /// [`JournalError`] if it cannot be written.
    pub fn finished(&mut self, lease: &Lease, outcome: &Outcome) -> Result<(), JournalError> {
        self.append(Record::Finished(lease.clone(), outcome.clone()))
    }

    /// Forgets an attempt's result, if there is one.
    ///
    /// # Errors
    /// As [`Journal::finished`].
    pub fn forget(&mut self, attempt: AttemptId) -> Result<(), JournalError> {
        if self.memory.results.contains_key(&attempt) { self.append(Record::Forgotten(attempt)) } else { Ok(()) }
    }

    /// Remembers the highest leader obeyed.
    ///
    /// # Errors
    /// As [`Journal::finished`].
    pub fn leader(&mut self, leader: Leader) -> Result<(), JournalError> {
        if leader > self.memory.leader_seen { self.append(Record::Leader(leader)) } else { Ok(()) }
    }

    fn append(&mut self, record: Record) -> Result<(), JournalError> {
        let bytes = frame::to_frame(&record).map_err(|err| JournalError::Record { path: self.path.clone(), err })?;
        self.file.write_all(&bytes).map_err(|err| JournalError::Io { operation: "append to", path: self.path.clone(), err })?;
        self.bytes += bytes.len() as u64;
        self.memory.apply(record);
        if self.bytes > REWRITE_BYTES && self.memory.results.len() < 64 {
            let (file, (bytes, memory)) = rewrite(&self.path, &self.memory)?;
            (self.file, self.bytes, self.memory) = (file, bytes, memory);
        }
        Ok(())
    }
}

impl Memory {
    fn apply(&mut self, record: Record) {
        match record {
            Record::Leader(leader) => self.leader_seen = self.leader_seen.max(leader),
            Record::Finished(lease, outcome) => {
                self.results.insert(lease.attempt, (lease, outcome));
            }
            Record::Forgotten(attempt) => {
                self.results.remove(&attempt);
            }
        }
    }
}

/// Reads records up to the first that is cut or broken.
fn replay(mut bytes: &[u8]) -> Memory {
    let mut memory = Memory::default();
    while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() {
        let Ok(size) = frame::body_size(*header) else { break };
        let Some((body, rest)) = rest.split_at_checked(size) else { break };
        let Ok(record) = frame::from_bytes(body) else { break };
        memory.apply(record);
        bytes = rest;
    }
    memory
}

/// Writes what counts to a fresh file in the place of the old one.
fn rewrite(path: &Path, memory: &Memory) -> Result<(File, (u64, Memory)), JournalError> {
    let error = |operation, err| JournalError::Io { operation, path: path.into(), err };
    let results = memory.results.values().map(|(lease, outcome)| Record::Finished(lease.clone(), outcome.clone()));
    let mut bytes = Vec::new();
    for record in [Record::Leader(memory.leader_seen)].into_iter().chain(results) {
        let record = frame::to_frame(&record).map_err(|err| JournalError::Record { path: path.into(), err })?;
        bytes.extend_from_slice(&record);
    }
    let temp = path.with_extension("new");
    std::fs::write(&temp, &bytes).and_then(|()| std::fs::rename(&temp, path)).map_err(|err| error("rewrite", err))?;
    let file = File::options().append(true).open(path).map_err(|err| error("open", err))?;
    Ok((file, (bytes.len() as u64, memory.clone())))
}

#[cfg(test)]
mod tests {
    use kiln_wire::{DrvPath, Epoch, Failure, FailureClass, NodeId, Usage, WorkerId};

    use super::*;

    fn result(attempt: u64) -> (Lease, Outcome) {
        let lease = Lease {
            derivation: DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path"),
            attempt: AttemptId(attempt),
            worker: WorkerId::parse("w").expect("a name"),
            epoch: Epoch(1),
        };
        let failure = Failure { class: FailureClass::BuildFailure, message: "x".repeat(500) };
        (lease, Outcome::Failed { failure, usage: Usage::default() })
    }

    fn attempts(journal: &Journal) -> Vec<u64> {
        journal.memory().results.keys().map(|attempt| attempt.0).collect()
    }

    #[test]
    fn unacknowledged_results_and_the_leader_survive_a_restart_and_a_cut_record() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("journal");
        let leader = Leader { term: 3, node: NodeId(1) };
        {
            let mut journal = Journal::open(&path).expect("opens");
            for attempt in 1..=3 {
                let (lease, outcome) = result(attempt);
                journal.finished(&lease, &outcome).expect("appends");
            }
            journal.leader(leader).expect("appends");
            journal.leader(Leader { term: 2, node: NodeId(9) }).expect("lower: nothing to do");
            journal.forget(AttemptId(2)).expect("appends");
            journal.forget(AttemptId(77)).expect("unknown: nothing to do");
        }
        let journal = Journal::open(&path).expect("opens");
        assert_eq!((attempts(&journal), journal.memory().leader_seen), (vec![1, 3], leader));
        drop(journal);
        let bytes = std::fs::read(&path).expect("reads");
        std::fs::write(&path, &bytes[..bytes.len() - 1]).expect("cut");
        let journal = Journal::open(&path).expect("a cut record is the end");
        assert_eq!((attempts(&journal), journal.memory().leader_seen), (vec![1], leader));
    }

    #[test]
    fn history_is_dropped_once_it_is_long() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("journal");
        let mut journal = Journal::open(&path).expect("opens");
        for attempt in 0..9000 {
            let (lease, outcome) = result(attempt);
            journal.finished(&lease, &outcome).expect("appends");
            journal.forget(AttemptId(attempt)).expect("appends");
        }
        assert!(std::fs::metadata(&path).expect("stat").len() <= REWRITE_BYTES + 2000);
    }
}
