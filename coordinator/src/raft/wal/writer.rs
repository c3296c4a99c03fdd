//! The thread that writes: everything queued becomes one write and one fdatasync.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::super::disk::{self, File, FileExt};
use super::back::{Place, Places};
use super::layout::{Header, RECORDS_AT, RecordHead, encode_record, record_bytes};
use super::prepare::Preparer;
use super::recover::Recovered;
use super::segment;
use super::{Closed, Done, Heads, Kind, NewRecord, PAYLOAD_BYTES_MAX, Request, WalError, WalStats, at};

/// Writes a log. Lives on the thread that serves its requests.
pub struct Writer {
    dir: PathBuf,
    segment_bytes: u64,
    closed: VecDeque<Closed>,
    current: Current,
    heads: Heads,
    next_seq: u64,
    durable: u64,
    buffer: Vec<u8>,
    purged: Option<u64>,
    failed: Option<String>,
    preparer: Preparer,
    stats: Arc<WalStats>,
    /// Entries in the buffer, and where they will lie.
    placed: Vec<(u64, Place)>,
    places: Arc<Places>,
}

/// The segment that grows. `offset` is where the buffer will go.
struct Current {
    file: File,
    header: Header,
    offset: u64,
    index_max: Option<u64>,
}

impl Writer {
    /// Takes over a recovered log; begins a new one if nothing was there.
    pub fn start(
        dir: &Path,
        segment_bytes: u64,
        recovered: Recovered,
        stats: Arc<WalStats>,
        places: Arc<Places>,
    ) -> Result<Self, WalError> {
        places.note(recovered.places);
        let (current, last_seq) = match recovered.newest {
            Some(newest) => {
                let current = Current { file: newest.file, header: newest.header, offset: newest.offset, index_max: newest.index_max };
                (current, newest.last_seq)
            }
            None => (begin_log(dir, segment_bytes)?, 0),
        };
        let writer = Self {
            dir: dir.to_owned(),
            segment_bytes,
            closed: recovered.closed,
            current,
            heads: recovered.heads,
            next_seq: last_seq + 1,
            durable: last_seq,
            buffer: Vec::new(),
            purged: None,
            failed: None,
            preparer: Preparer::start(dir, segment_bytes, Arc::clone(&stats))?,
            stats,
            placed: Vec::new(),
            places,
        };
        writer.sync_recovered()?;
        writer.count();
        Ok(writer)
    }

    /// Returns what was drawn when the log was begun.
    pub fn log_id(&self) -> u64 {
        self.current.header.log_id
    }

    /// Serves all requests that wait: one write and one sync.
    pub fn serve(&mut self, requests: &mut dyn Iterator<Item = Request>) {
        let mut waiting = Vec::new();
        let mut outcome = self.failed.clone().map_or(Ok(()), Err);
        for request in requests {
            let records = match request {
                Request::Append { records, done } => {
                    waiting.push(done);
                    records
                }
                Request::Note(record) => vec![record],
            };
            outcome = outcome.and_then(|()| records.into_iter().try_for_each(|record| self.put(record)).map_err(chain));
        }
        outcome = outcome.and_then(|()| self.settle(!waiting.is_empty()).map_err(chain));
        if let Err(reason) = &outcome {
            if self.failed.is_none() {
                tracing::error!(reason, "the log failed: nothing more will be written");
            }
            self.failed = Some(reason.clone());
        }
        tell(waiting, &outcome);
    }

    fn put(&mut self, record: NewRecord) -> Result<(), WalError> {
        if record.payload.len() > PAYLOAD_BYTES_MAX {
            let what = format!("record of {} bytes is over the limit of {PAYLOAD_BYTES_MAX}", record.payload.len());
            return Err(at("append to", &self.path())(io::Error::new(io::ErrorKind::InvalidInput, what)));
        }
        let size = record_bytes(record.payload.len()) as u64;
        if self.current.offset + self.buffer.len() as u64 + size > self.current.header.size_bytes {
            self.rotate(size)?;
        }
        let offset = self.current.offset + self.buffer.len() as u64;
        self.encode(&record);
        self.heads.note(&record);
        match record.kind {
            Kind::Entry => {
                self.current.index_max = self.current.index_max.max(Some(record.index));
                let (segment, bytes) = (self.current.header.number, record_bytes(record.payload.len()));
                self.placed.push((record.index, Place { segment, offset, bytes }));
            }
            Kind::Purge => self.purged = self.purged.max(Some(record.index)),
            Kind::Vote | Kind::Truncate | Kind::Committed => {}
        }
        Ok(())
    }

    fn encode(&mut self, record: &NewRecord) {
        let head =
            RecordHead { seq: self.next_seq, durable: self.durable, index: record.index, kind: record.kind, version: record.version };
        encode_record(&self.current.header, &head, &record.payload, &mut self.buffer);
        self.next_seq += 1;
    }

    /// Writes the buffer; waits for the disk if somebody waits, and drops what was purged.
    fn settle(&mut self, must_sync: bool) -> Result<(), WalError> {
        if must_sync {
            self.sync()?;
            self.drop_purged()?;
        } else {
            self.flush()?;
        }
        self.count();
        Ok(())
    }

    fn flush(&mut self) -> Result<(), WalError> {
        self.current.file.write_all_at(&self.buffer, self.current.offset).map_err(at("write", &self.path()))?;
        self.current.offset += self.buffer.len() as u64;
        self.buffer.clear();
        self.places.note(self.placed.drain(..));
        Ok(())
    }

    fn sync(&mut self) -> Result<(), WalError> {
        let start = Instant::now();
        self.flush()?;
        self.current.file.sync_data().map_err(at("sync", &self.path()))?;
        self.durable = self.next_seq - 1;
        self.stats.sync.record(start.elapsed());
        Ok(())
    }

    /// Ends the segment and begins another that has room for `size` bytes of records beside its head.
    fn rotate(&mut self, size: u64) -> Result<(), WalError> {
        self.sync()?;
        let heads: Vec<NewRecord> = self.heads.iter().cloned().collect();
        let head_bytes: u64 = heads.iter().map(|record| record_bytes(record.payload.len()) as u64).sum();
        let size_bytes = self.segment_bytes.max(RECORDS_AT + head_bytes + size);
        let file = self.preparer.take(&self.dir, &self.stats)?;
        if size_bytes > self.segment_bytes {
            segment::fill(&file, self.segment_bytes, size_bytes).map_err(at("fill", &self.dir))?;
        }
        let old = &self.current.header;
        let header = Header {
            log_id: old.log_id,
            number: old.number + 1,
            first_seq: self.next_seq,
            head_end: self.next_seq - 1 + heads.len() as u64,
            size_bytes,
        };
        let current = Current { file, header, offset: RECORDS_AT, index_max: None };
        let ended = std::mem::replace(&mut self.current, current);
        heads.iter().for_each(|record| self.encode(record));
        self.current.file.write_all_at(&header.encode(), 0).map_err(at("write", &self.path()))?;
        self.flush()?;
        segment::publish(&self.dir, &mut self.current.file, header.number)?;
        segment::seal(&self.dir, &ended.file, &ended.header, header.first_seq - 1)?;
        self.durable = header.head_end;
        let bytes = ended.offset - RECORDS_AT;
        self.closed.push_back(Closed { number: ended.header.number, index_max: ended.index_max, bytes });
        self.preparer.order();
        Ok(())
    }

    /// Deletes the oldest segments that hold nothing but purged entries. Their votes are repeated at the head of later ones.
    fn drop_purged(&mut self) -> Result<(), WalError> {
        let Some(purged) = self.purged.take() else { return Ok(()) };
        self.places.forget(purged);
        let count = self.closed.len();
        while let Some(oldest) = self.closed.front().filter(|oldest| oldest.index_max.is_none_or(|index| index <= purged)) {
            let path = segment::path(&self.dir, oldest.number);
            disk::remove_file(&path).map_err(at("delete", &path))?;
            self.closed.pop_front();
        }
        if self.closed.len() < count { segment::sync_dir(&self.dir) } else { Ok(()) }
    }

    /// What was read back may have been in the page cache only: it must be durable before records claim that it is.
    fn sync_recovered(&self) -> Result<(), WalError> {
        self.current.file.sync_data().map_err(at("sync", &self.path()))
    }

    fn count(&self) {
        let closed: u64 = self.closed.iter().map(|segment| segment.bytes).sum();
        self.stats.set(closed + self.current.offset - RECORDS_AT, self.closed.len() as u64 + 1);
    }

    fn path(&self) -> PathBuf {
        segment::path(&self.dir, self.current.header.number)
    }
}

/// Makes the first segment of a new log.
fn begin_log(dir: &Path, segment_bytes: u64) -> Result<Current, WalError> {
    let log_id = std::hash::RandomState::new().build_hasher().finish();
    let header = Header { log_id, number: 1, first_seq: 1, head_end: 0, size_bytes: segment_bytes.max(RECORDS_AT) };
    let mut file = segment::prepare(dir, header.size_bytes)?;
    file.write_all_at(&header.encode(), 0).map_err(at("write", dir))?;
    segment::publish(dir, &mut file, header.number)?;
    Ok(Current { file, header, offset: RECORDS_AT, index_max: None })
}

fn tell(waiting: Vec<Done>, outcome: &Result<(), String>) {
    for done in waiting {
        done(outcome.clone().map_err(io::Error::other));
    }
}

fn chain(err: WalError) -> String {
    match std::error::Error::source(&err) {
        Some(source) => format!("{err}: {source}"),
        None => err.to_string(),
    }
}
