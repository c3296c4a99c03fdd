//! openraft's log storage over the write-ahead log.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use openraft::storage::RaftLogStorage;
use openraft::{LogState as RaftLogState, OptionalSend, RaftLogReader};
use tokio::sync::{Notify, oneshot};

use super::disk;
use super::log_state::{Found, LogState};
use super::member::DirectoryId;
use super::record::{Record, VERSION};
use super::types::{Entry, IoFlushed, LogId, TypeConfig, Vote};
use super::wal::{Kind, NewRecord, Stored, Wal, WalError, WalStats};

/// The log. Clones share it.
#[derive(Clone, Debug)]
pub struct LogStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Apart: what tells of writes must not keep the log itself open.
    state: Arc<Mutex<LogState>>,
    wal: Wal,
    growth: Growth,
}

/// Tells when the log has grown enough for a snapshot.
#[derive(Debug)]
struct Growth {
    bytes: AtomicU64,
    bytes_max: u64,
    full: Notify,
}

impl LogStore {
    /// Opens the log in `dir`; `snapshot_log_bytes` of appended entries wake [`LogStore::full`].
    ///
    /// # Errors
    /// [`WalError`] if the disk refuses or the log is damaged.
    pub fn open(dir: &Path, segment_bytes: u64, snapshot_log_bytes: u64) -> Result<Self, WalError> {
        let mut state = LogState::default();
        let mut newer = None;
        let opened = Wal::open(dir, segment_bytes, |stored| {
            if stored.version > VERSION {
                let what = format!("a record has version {}, this program reads up to {VERSION}", stored.version);
                newer = Some(WalError::Newer { path: dir.to_owned(), what: what.clone() });
                return Err(what);
            }
            let record = Record::decode(stored)?;
            let entry = entry_id(&record);
            state.take(record, stored.payload.len() as u64)?;
            entry.into_iter().for_each(|id| state.written(id));
            Ok(())
        });
        let wal = opened.map_err(|err| newer.unwrap_or(err))?;
        state.check_whole().map_err(|what| WalError::Damaged { path: dir.to_owned(), offset: 0, what })?;
        let growth = Growth { bytes: AtomicU64::new(0), bytes_max: snapshot_log_bytes, full: Notify::new() };
        Ok(Self { shared: Arc::new(Shared { state: Arc::new(Mutex::new(state)), wal, growth }) })
    }

    /// Returns what the log holds. Held briefly: nothing else can use the log meanwhile.
    pub fn state(&self) -> MutexGuard<'_, LogState> {
        lock(&self.shared.state)
    }

    /// Returns entries, those that were let go from their files. What was purged meanwhile is left out with all before it; where the log was cut
    /// off meanwhile, what comes before that.
    ///
    /// # Errors
    /// What the disk says, or that an entry there is damaged.
    pub fn read_back(&self, found: Vec<Found>) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::with_capacity(found.len());
        for found in found {
            match found {
                Found::Here(entry) => entries.push(entry),
                Found::There(id) => match self.read_entry(id) {
                    Ok(entry) => entries.push(entry),
                    Err(_) if self.state().purged().is_some_and(|purged| id.index <= purged.index) => entries.clear(),
                    Err(_) if !self.state().holds(id) => return Ok(entries),
                    Err(err) => return Err(err),
                },
            }
        }
        Ok(entries)
    }

    fn read_entry(&self, id: LogId) -> io::Result<Entry> {
        let wrong = |what: String| io::Error::other(format!("read log entry {} back: {what}", id.index));
        let read = self.shared.wal.read(id.index).map_err(io::Error::other)?;
        let (version, payload) = read.ok_or_else(|| wrong("it is in no file".to_owned()))?;
        match Record::decode(Stored { kind: Kind::Entry, index: id.index, version, payload: &payload }).map_err(wrong)? {
            Record::Entry(entry) if entry.log_id == id => Ok(entry),
            other => Err(wrong(format!("the file has {other:?}"))),
        }
    }

    /// Reads where that holds nobody up; most of what is asked for is in memory.
    async fn fetch(&self, found: Vec<Found>) -> io::Result<Vec<Entry>> {
        if found.iter().all(|found| matches!(found, Found::Here(_))) {
            return self.read_back(found);
        }
        let log = self.clone();
        disk::blocking(move || log.read_back(found)).await?
    }

    /// Returns the directory's identity: that of its log.
    pub fn directory(&self) -> DirectoryId {
        DirectoryId(self.shared.wal.log_id())
    }

    /// Returns the log's figures.
    pub fn stats(&self) -> &Arc<WalStats> {
        self.shared.wal.stats()
    }

    /// Waits until the log has grown by the bytes after which a snapshot is due.
    pub async fn full(&self) {
        self.shared.growth.full.notified().await;
        self.shared.growth.bytes.store(0, Ordering::Relaxed);
    }

    /// Takes in records and asks for them to be written; the caller says what happens then.
    fn take(&self, records: Vec<Record>) -> io::Result<Vec<NewRecord>> {
        let encoded = records.iter().map(Record::encode).collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
        let mut state = self.state();
        for (record, bytes) in records.into_iter().zip(encoded.iter().map(|new| new.payload.len() as u64)) {
            state.take(record, bytes).map_err(io::Error::other)?;
        }
        Ok(encoded)
    }

    async fn write_durably(&self, record: Record) -> io::Result<()> {
        let (done, outcome) = oneshot::channel();
        let tell = move |result| {
            // Whoever waited may be gone.
            let _ = done.send(result);
        };
        self.shared.wal.append(self.take(vec![record])?, Box::new(tell));
        outcome.await.unwrap_or_else(|_| Err(io::Error::other("the log's thread has ended")))
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(&mut self, range: RB) -> io::Result<Vec<Entry>> {
        let found = self.state().entries(range);
        self.fetch(found).await
    }

    /// As many as travel well in one message, but at least one.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let found = self.state().entries_within(start..end, APPEND_BYTES_MAX);
        self.fetch(found).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.state().vote())
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<RaftLogState<TypeConfig>> {
        let state = self.state();
        Ok(RaftLogState { last_purged_log_id: state.purged(), last_log_id: state.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.write_durably(Record::Vote(*vote)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        for record in self.take(vec![Record::Committed(committed)])? {
            self.shared.wal.note(record);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.state().committed())
    }

    async fn append<I>(&mut self, entries: I, callback: IoFlushed) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records: Vec<Record> = entries.into_iter().map(Record::Entry).collect();
        let last = records.last().and_then(entry_id);
        let records = self.take(records)?;
        self.shared.growth.add(records.iter().map(|record| record.payload.len() as u64).sum());
        let state = Arc::clone(&self.shared.state);
        let done = move |result: io::Result<()>| {
            if let (Ok(()), Some(last)) = (&result, last) {
                lock(&state).written(last);
            }
            callback.io_completed(result);
        };
        self.shared.wal.append(records, Box::new(done));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.write_durably(Record::Truncate(last)).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.write_durably(Record::Purge(upto)).await
    }
}

fn lock(state: &Mutex<LogState>) -> MutexGuard<'_, LogState> {
    state.lock().expect("no user of the log panics")
}

fn entry_id(record: &Record) -> Option<LogId> {
    match record {
        Record::Entry(entry) => Some(entry.log_id),
        Record::Vote(_) | Record::Truncate(_) | Record::Purge(_) | Record::Committed(_) => None,
    }
}

/// Bytes of entries in one message to a follower: enough to fill a fast link, and soon over on a slow one.
const APPEND_BYTES_MAX: u64 = 1 << 20;

impl Growth {
    fn add(&self, bytes: u64) {
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes >= self.bytes_max {
            self.full.notify_one();
        }
    }
}
