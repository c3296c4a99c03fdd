//! Reads a log back, cuts a torn tail, and refuses a damaged log.
//!
//! A crash can tear only the last batch that was being written, so only the newest segment may end badly, and only where nothing
//! that follows proves the bad record to have been durable.

use std::collections::VecDeque;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::super::disk::{self, File, FileExt, OpenOptions};
use super::back::Place;
use super::layout::{BLOCK_BYTES, Found, Header, Kind, RECORDS_AT, decode_record, decode_seal, find_proof};
use super::segment::{self, PREPARED};
use super::{Closed, Heads, NewRecord, WalError, at};

/// What the directory holds.
pub struct Recovered {
    /// Segments that no longer grow, oldest first.
    pub closed: VecDeque<Closed>,
    /// The segment that grows; none in a new log.
    pub newest: Option<Newest>,
    /// What the head of the next segment must repeat.
    pub heads: Heads,
    /// Where entries lie, in the order in which they were written.
    pub places: Vec<(u64, Place)>,
}

/// The segment that grows.
pub struct Newest {
    /// Its file.
    pub file: File,
    /// Its header.
    pub header: Header,
    /// Where the next record goes.
    pub offset: u64,
    /// Number of its last record.
    pub last_seq: u64,
    /// Highest log index of an entry in it.
    pub index_max: Option<u64>,
}

/// A record that was read back.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// What it is about.
    pub kind: Kind,
    /// Log index of an entry, or of the last purged one; otherwise 0.
    pub index: u64,
    /// Version of the payload's encoding.
    pub version: u8,
    /// The payload.
    pub payload: &'a [u8],
}

/// Reads the log in `dir` and hands each record to `replay`, in order.
pub fn recover(dir: &Path, replay: &mut dyn FnMut(Stored<'_>) -> Result<(), String>) -> Result<Recovered, WalError> {
    let leftover = dir.join(PREPARED);
    if leftover.exists() {
        disk::remove_file(&leftover).map_err(at("remove", &leftover))?;
    }
    let mut closed = VecDeque::new();
    let mut heads = Heads::default();
    let mut before: Option<Segment> = None;
    let mut places = Vec::new();
    for number in segment::list(dir)? {
        let mut segment = Segment::read(dir, number)?;
        if let Some(before) = before.take() {
            before.check_complete(&segment)?;
            closed.push_back(before.close(dir)?);
        }
        segment.scan(&mut heads, &mut places, replay)?;
        before = Some(segment);
    }
    let newest = before.map(Segment::cut).transpose()?;
    Ok(Recovered { closed, newest, heads, places })
}

/// One segment in memory, read up to `end`.
struct Segment {
    path: PathBuf,
    file: File,
    header: Header,
    sealed_at: Option<u64>,
    bytes: Vec<u8>,
    end: usize,
    last_seq: u64,
    index_max: Option<u64>,
    bad: Option<&'static str>,
}

impl Segment {
    fn read(dir: &Path, number: u64) -> Result<Self, WalError> {
        let path = segment::path(dir, number);
        let mut file = OpenOptions::new().read(true).write(true).open(&path).map_err(at("open", &path))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(at("read", &path))?;
        let damaged = |offset, what: String| WalError::Damaged { path: path.clone(), offset, what };
        if (bytes.len() as u64) < RECORDS_AT {
            return Err(damaged(bytes.len() as u64, "the file is too short for a segment's header".into()));
        }
        let (head, seal) = bytes[..2 * BLOCK_BYTES].split_at(BLOCK_BYTES);
        let header = Header::decode(head.try_into().expect("split there")).map_err(|what| damaged(0, what.into()))?;
        if header.number != number {
            return Err(damaged(0, format!("the header is that of segment {}", header.number)));
        }
        if header.size_bytes != bytes.len() as u64 {
            return Err(damaged(bytes.len() as u64, format!("the file should have {} bytes", header.size_bytes)));
        }
        let sealed_at =
            decode_seal(&header, seal.try_into().expect("split there")).map_err(|what| damaged(BLOCK_BYTES as u64, what.into()))?;
        let (end, last_seq) = (2 * BLOCK_BYTES, header.first_seq - 1);
        Ok(Self { path, file, header, sealed_at, bytes, end, last_seq, index_max: None, bad: None })
    }

    fn scan(
        &mut self,
        heads: &mut Heads,
        places: &mut Vec<(u64, Place)>,
        replay: &mut dyn FnMut(Stored<'_>) -> Result<(), String>,
    ) -> Result<(), WalError> {
        loop {
            let (head, payload, size) = match decode_record(&self.header, &self.bytes[self.end..]) {
                Found::Record(head, payload, size) => (head, payload, size),
                Found::Blank => return Ok(()),
                Found::Bad(what) => {
                    self.bad = Some(what);
                    return Ok(());
                }
            };
            if head.seq != self.last_seq + 1 {
                self.bad = Some("the record is not the successor of the one before it");
                return Ok(());
            }
            let stored = Stored { kind: head.kind, index: head.index, version: head.version, payload };
            replay(stored).map_err(|what| self.damaged(self.end, what))?;
            heads.note(&NewRecord { kind: head.kind, index: head.index, version: head.version, payload: payload.to_owned() });
            if head.kind == Kind::Entry {
                self.index_max = self.index_max.max(Some(head.index));
                places.push((head.index, Place { segment: self.header.number, offset: self.end as u64, bytes: size }));
            }
            self.last_seq = head.seq;
            self.end += size;
        }
    }

    /// Checks that `next` goes on where this segment ends: it was named only when all of this one was durable.
    fn check_complete(&self, next: &Self) -> Result<(), WalError> {
        if next.header.log_id != self.header.log_id {
            return Err(next.damaged(0, "the segment belongs to another log".into()));
        }
        if next.header.number != self.header.number + 1 {
            return Err(next.damaged(0, format!("segment {} is missing before it", self.header.number + 1)));
        }
        if let Some(what) = self.bad {
            return Err(self.damaged(self.end, what.into()));
        }
        if next.header.first_seq != self.last_seq + 1 || self.sealed_at.is_some_and(|last_seq| last_seq != self.last_seq) {
            return Err(self.damaged(self.end, format!("records {} to {} are missing", self.last_seq + 1, next.header.first_seq - 1)));
        }
        Ok(())
    }

    fn close(self, dir: &Path) -> Result<Closed, WalError> {
        if self.sealed_at.is_none() {
            segment::seal(dir, &self.file, &self.header, self.last_seq)?;
        }
        Ok(Closed { number: self.header.number, index_max: self.index_max, bytes: self.end as u64 - RECORDS_AT })
    }

    /// Takes this segment as the one that grows: whatever a crash left behind its last whole record becomes zeros.
    fn cut(self) -> Result<Newest, WalError> {
        if self.sealed_at.is_some() {
            let next = self.header.number + 1;
            return Err(self.damaged(BLOCK_BYTES, format!("the segment is complete, but its successor, segment {next}, is missing")));
        }
        let what = self.bad.unwrap_or("a record is missing");
        if self.last_seq < self.header.head_end {
            return Err(self.damaged(self.end, what.into()));
        }
        let tail = &self.bytes[self.end..];
        if let Some(proof) = find_proof(&self.header, tail, self.last_seq + 1) {
            let proof = self.end + proof;
            return Err(self.damaged(self.end, format!("{what}, but the record at byte {proof} says that it was durable")));
        }
        if let Some(last) = tail.iter().rposition(|byte| *byte != 0) {
            tracing::warn!(segment = %self.path.display(), offset = self.end, bytes = last + 1, what, "cut a torn tail off the log");
            let zeros = vec![0; last + 1];
            self.file.write_all_at(&zeros, self.end as u64).map_err(at("cut", &self.path))?;
            self.file.sync_data().map_err(at("cut", &self.path))?;
        }
        Ok(Newest { offset: self.end as u64, file: self.file, header: self.header, last_seq: self.last_seq, index_max: self.index_max })
    }

    fn damaged(&self, offset: usize, what: String) -> WalError {
        WalError::Damaged { path: self.path.clone(), offset: offset as u64, what }
    }
}
