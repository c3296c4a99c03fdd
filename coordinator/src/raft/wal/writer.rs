//! The thread that writes: everything queued becomes one write and one fdatasync.

use std::collections::VecDeque;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Instant;

use super::layout::{Header, RECORDS_AT, RecordHead, encode_record, record_bytes};
use super::recover::Recovered;
use super::segment;
use super::{Closed, Done, Heads, Kind, NewRecord, PAYLOAD_BYTES_MAX, Request, Room, WalError, WalStats, at};

/// Writes a log. Lives on its own thread.
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
    pub fn start(dir: &Path, segment_bytes: u64, recovered: Recovered, stats: Arc<WalStats>) -> Result<Self, WalError> {
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
        };
        writer.sync_recovered()?;
        writer.count();
        Ok(writer)
    }

    /// Returns what was drawn when the log was begun.
    pub fn log_id(&self) -> u64 {
        self.current.header.log_id
    }

    /// Serves requests until no sender is left.
    pub fn run(mut self, inbox: &mpsc::Receiver<Request>) {
        while let Ok(first) = inbox.recv() {
            let mut waiting = Vec::new();
            let mut outcome = self.failed.clone().map_or(Ok(()), Err);
            for request in std::iter::once(first).chain(inbox.try_iter()) {
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
        self.encode(&record);
        self.heads.note(&record);
        match record.kind {
            Kind::Entry => self.current.index_max = self.current.index_max.max(Some(record.index)),
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
        segment::publish(&self.dir, &self.current.file, header.number)?;
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
        let count = self.closed.len();
        while let Some(oldest) = self.closed.front().filter(|oldest| oldest.index_max.is_none_or(|index| index <= purged)) {
            let path = segment::path(&self.dir, oldest.number);
            std::fs::remove_file(&path).map_err(at("delete", &path))?;
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
    let file = segment::prepare(dir, header.size_bytes)?;
    file.write_all_at(&header.encode(), 0).map_err(at("write", dir))?;
    segment::publish(dir, &file, header.number)?;
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

/// Fills the next segment; on a full disk tries again until there is room. None if nobody waits for it any more.
fn prepare_when_there_is_room(
    dir: &Path,
    segment_bytes: u64,
    inbox: &mpsc::Receiver<()>,
    told: &tokio::sync::watch::Sender<Room>,
) -> Option<Result<File, WalError>> {
    loop {
        match segment::prepare(dir, segment_bytes) {
            Err(WalError::Io { err, .. }) if is_full(&err) => {
                // What was filled so far would take the room that others need to make some.
                let _gone = std::fs::remove_file(dir.join(segment::PREPARED));
                if told.send_if_modified(|room| std::mem::replace(room, (*room).max(Room::Short)) == Room::Enough) {
                    tracing::error!(dir = %dir.display(), "the disk is full: there is no room for the log's next segment");
                }
                match inbox.recv_timeout(FULL_RETRY) {
                    Ok(()) | Err(mpsc::RecvTimeoutError::Timeout) => {}
                    Err(mpsc::RecvTimeoutError::Disconnected) => return None,
                }
            }
            prepared => {
                if told.send_if_modified(|room| std::mem::take(room) != Room::Enough) {
                    tracing::info!(dir = %dir.display(), "there is room for the log again");
                }
                return Some(prepared);
            }
        }
    }
}

/// Returns whether a disk refused for want of room.
pub fn is_full(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// How often a full disk is looked at again.
const FULL_RETRY: std::time::Duration = std::time::Duration::from_millis(500);

/// Fills the next segment with zeros on a thread of its own: done in line it would hold up commits for up to a second.
struct Preparer {
    orders: Option<mpsc::Sender<()>>,
    files: mpsc::Receiver<Result<File, WalError>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Preparer {
    fn start(dir: &Path, segment_bytes: u64, stats: Arc<WalStats>) -> Result<Self, WalError> {
        let (orders, inbox) = mpsc::channel();
        let (outbox, files) = mpsc::channel();
        let target = dir.to_owned();
        let work = move || {
            while inbox.recv().is_ok() {
                let Some(prepared) = prepare_when_there_is_room(&target, segment_bytes, &inbox, &stats.room) else { return };
                if outbox.send(prepared).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("wal-prepare".into()).spawn(work).map_err(at("start a thread for", dir))?;
        let preparer = Self { orders: Some(orders), files, thread: Some(thread) };
        preparer.order();
        Ok(preparer)
    }

    fn order(&self) {
        // A thread that has ended shows when its file is taken.
        let _ = self.orders.as_ref().map(|orders| orders.send(()));
    }

    /// Waits for the segment. On a full disk that is until there is room: nothing that was written is in danger meanwhile.
    fn take(&self, dir: &Path, stats: &WalStats) -> Result<File, WalError> {
        let failed = |why: &str| at("prepare a segment in", dir)(io::Error::other(why.to_owned()));
        loop {
            match self.files.recv_timeout(FULL_RETRY) {
                Ok(prepared) => return prepared,
                Err(mpsc::RecvTimeoutError::Timeout) if stats.ending.load(Ordering::Relaxed) => {
                    return Err(failed("the log was closed while the disk was full"));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    stats.room.send_if_modified(|room| {
                        let is_short = *room == Room::Short;
                        if is_short {
                            *room = Room::None;
                        }
                        is_short
                    });
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(failed("the thread that prepares segments has ended")),
            }
        }
    }
}

impl Drop for Preparer {
    /// Waits for the thread: its file has the same name as that of the directory's next user.
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by its hook.
            let _ = thread.join();
        }
    }
}
