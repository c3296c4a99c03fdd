//! Build logs: one file per attempt, appended while the worker streams, read by clients, followed while the attempt runs.
//!
//! Logs are facts for people. They never decide anything, so a lost tail after a crash is harmless: the worker sends it again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use kiln_store::BlobBytes;
use kiln_wire::limits::LOG_BYTES_MAX;
use kiln_wire::{AttemptId, DrvPath, Lease, Timestamp};
use tokio::sync::watch;

/// A log that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file system refused.
    #[error("{action} log of `{derivation}`")]
    Io {
        /// What was being done.
        action: &'static str,
        /// Whose log.
        derivation: DrvPath,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
}

/// The logs of one coordinator, below one directory.
#[derive(Debug)]
pub struct Logs {
    dir: PathBuf,
    open: Mutex<BTreeMap<Key, Arc<OpenLog>>>,
    /// Bytes that were appended since the directory was opened.
    appended_bytes: AtomicU64,
}

/// A log that is being written.
#[derive(Debug)]
struct OpenLog {
    file: Mutex<File>,
    /// Bytes in the file; `None` once the attempt has ended.
    size_bytes: watch::Sender<Option<u64>>,
}

type Key = (DrvPath, AttemptId);

impl Logs {
    /// Opens the directory, making it if needed.
    ///
    /// # Errors
    /// What the file system says if it cannot be made.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        for entry in fs::read_dir(dir)?.flatten() {
            // What was being received when the last program died.
            if entry.file_name().as_encoded_bytes().starts_with(INCOMING.as_bytes()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { dir: dir.to_path_buf(), open: Mutex::default(), appended_bytes: AtomicU64::default() })
    }

    /// Appends bytes that a worker sent. What is known already is skipped, so a worker may send its log again from any point.
    ///
    /// # Errors
    /// [`LogError::Io`] if the file cannot be written.
    pub fn append(&self, derivation: &DrvPath, attempt: AttemptId, offset_bytes: u64, bytes: &[u8]) -> Result<(), LogError> {
        let error = |source| LogError::Io { action: "append to", derivation: derivation.clone(), source };
        let log = self.writer(derivation, attempt).map_err(error)?;
        let mut file = log.file.lock().unwrap_or_else(PoisonError::into_inner);
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(error)?;
        let fresh = fresh_part(size_bytes, offset_bytes, bytes);
        if !fresh.is_empty() {
            file.write_all(&fresh).map_err(error)?;
            self.appended_bytes.fetch_add(fresh.len() as u64, Ordering::Relaxed);
            log.size_bytes.send_replace(Some(size_bytes + fresh.len() as u64));
        }
        Ok(())
    }

    /// Returns how many bytes were appended to logs since the directory was opened.
    pub fn appended_bytes(&self) -> u64 {
        self.appended_bytes.load(Ordering::Relaxed)
    }

    /// Keeps a whole log. One that is there stays.
    ///
    /// # Errors
    /// [`LogError::Io`] if it cannot be read or written; then there is none.
    pub fn put(&self, derivation: &DrvPath, attempt: AttemptId, mut log: impl io::Read) -> Result<(), LogError> {
        let error = |source| LogError::Io { action: "receive", derivation: derivation.clone(), source };
        let path = self.path(derivation, attempt);
        if path.exists() {
            return io::copy(&mut log, &mut io::sink()).map(drop).map_err(error);
        }
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Beside the directories, of which each is a derivation's.
        let incoming = self.dir.join(format!("{INCOMING}{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let mut put = || {
            let mut file = OpenOptions::new().write(true).create_new(true).open(&incoming)?;
            io::copy(&mut log, &mut file)?;
            fs::create_dir_all(path.parent().unwrap_or(&self.dir))?;
            match fs::hard_link(&incoming, &path) {
                Err(taken) if taken.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                linked => linked,
            }
        };
        let put = put();
        let _never_made = fs::remove_file(&incoming);
        put.map_err(error)
    }

    /// Marks a log as complete: followers end after its last byte.
    pub fn close(&self, derivation: &DrvPath, attempt: AttemptId) {
        let closed = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&(derivation.clone(), attempt));
        if let Some(log) = closed {
            log.size_bytes.send_replace(None);
        }
    }

    /// Returns how many bytes there are of those leases' logs that are being written.
    pub fn open_bytes(&self, leases: &[Lease]) -> BTreeMap<AttemptId, u64> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = |lease: &Lease| *open.get(&(lease.derivation.clone(), lease.attempt))?.size_bytes.borrow();
        leases.iter().filter_map(|lease| Some((lease.attempt, bytes(lease)?))).collect()
    }

    /// Opens the file of a log that is complete; none if there is none.
    ///
    /// # Errors
    /// [`LogError::Io`] if it cannot be opened.
    pub fn file(&self, derivation: &DrvPath, attempt: AttemptId) -> Result<Option<File>, LogError> {
        match File::open(self.path(derivation, attempt)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LogError::Io { action: "open", derivation: derivation.clone(), source }),
        }
    }

    /// Removes the file of a log that is kept elsewhere. Who reads it reads on.
    ///
    /// # Errors
    /// [`LogError::Io`] if it cannot be removed.
    pub fn remove(&self, derivation: &DrvPath, attempt: AttemptId) -> Result<(), LogError> {
        let path = self.path(derivation, attempt);
        fs::remove_file(&path).map_err(|source| LogError::Io { action: "remove", derivation: derivation.clone(), source })?;
        // Fails if there are logs of other attempts, which is fine.
        let _not_empty = path.parent().map(fs::remove_dir);
        Ok(())
    }

    /// Ends every log that is being written: another coordinator takes the rest. Followers end too, and ask there.
    pub fn close_all(&self) {
        let closed = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        for log in closed.into_values() {
            log.size_bytes.send_replace(None);
        }
    }

    /// Returns whose logs have a file here.
    ///
    /// # Errors
    /// What the file system says.
    pub fn list(&self) -> io::Result<Vec<(DrvPath, AttemptId)>> {
        let mut found = Vec::new();
        for dir in fs::read_dir(&self.dir)? {
            let dir = dir?;
            let Some(derivation) = dir.file_name().to_str().and_then(|name| DrvPath::parse(name).ok()) else { continue };
            for file in fs::read_dir(dir.path())? {
                let attempt = file?.file_name().to_str().and_then(attempt_of);
                found.extend(attempt.map(|attempt| (derivation.clone(), attempt)));
            }
        }
        Ok(found)
    }

    /// Returns the logs here that nobody has written to since a moment. Those that are being written are none.
    ///
    /// # Errors
    /// What the file system says.
    pub fn untouched_since(&self, since: Timestamp) -> io::Result<Vec<(DrvPath, AttemptId)>> {
        let since = SystemTime::UNIX_EPOCH + Duration::from_millis(since.0);
        let mut found = self.list()?;
        let open: BTreeSet<_> = self.open.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
        found.retain(|log| {
            let written = fs::metadata(self.path(&log.0, log.1)).and_then(|file| file.modified());
            !open.contains(log) && written.is_ok_and(|written| written < since)
        });
        Ok(found)
    }

    /// Returns the latest attempt that has a log.
    pub fn latest_attempt(&self, derivation: &DrvPath) -> Option<AttemptId> {
        self.attempts(derivation).max()
    }

    /// Returns the attempts that have a log, in no order.
    pub fn attempts(&self, derivation: &DrvPath) -> impl Iterator<Item = AttemptId> {
        let entries = fs::read_dir(self.dir.join(derivation.as_str())).into_iter().flatten();
        entries.filter_map(|entry| attempt_of(entry.ok()?.file_name().to_str()?))
    }

    /// Opens a log for reading from its start.
    ///
    /// # Errors
    /// [`LogError::Io`] if there is no such log.
    pub fn read(&self, derivation: &DrvPath, attempt: AttemptId) -> Result<LogReader, LogError> {
        let error = |source| LogError::Io { action: "open", derivation: derivation.clone(), source };
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let size_bytes = open.get(&(derivation.clone(), attempt)).map(|log| log.size_bytes.subscribe());
        let file = File::open(self.path(derivation, attempt)).map_err(error)?;
        Ok(LogReader { source: Source::File(file), size_bytes })
    }

    fn writer(&self, derivation: &DrvPath, attempt: AttemptId) -> io::Result<Arc<OpenLog>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (derivation.clone(), attempt);
        if let Some(log) = open.get(&key) {
            return Ok(log.clone());
        }
        let path = self.path(derivation, attempt);
        fs::create_dir_all(path.parent().unwrap_or(&self.dir))?;
        let file = OpenOptions::new().append(true).read(true).create(true).open(&path)?;
        let size_bytes = file.metadata()?.len();
        let log = Arc::new(OpenLog { file: Mutex::new(file), size_bytes: watch::Sender::new(Some(size_bytes)) });
        open.insert(key, log.clone());
        Ok(log)
    }

    fn path(&self, derivation: &DrvPath, attempt: AttemptId) -> PathBuf {
        self.dir.join(derivation.as_str()).join(format!("{attempt}.log"))
    }
}

/// How the names of logs begin that are being received.
const INCOMING: &str = ".incoming-";

fn attempt_of(file_name: &str) -> Option<AttemptId> {
    file_name.strip_suffix(".log")?.parse().ok().map(AttemptId)
}

/// Returns what `bytes` at `offset_bytes` adds to a log of `size_bytes`: a gap becomes a marker line, an overlap is cut, and the
/// whole never grows over the cap.
fn fresh_part(size_bytes: u64, offset_bytes: u64, bytes: &[u8]) -> Vec<u8> {
    let known = size_bytes.saturating_sub(offset_bytes);
    let rest = usize::try_from(known).ok().and_then(|known| bytes.get(known..)).unwrap_or_default();
    let mut fresh = Vec::new();
    if offset_bytes > size_bytes {
        fresh.extend_from_slice(format!("\n[{} bytes of log were lost]\n", offset_bytes - size_bytes).as_bytes());
    }
    fresh.extend_from_slice(rest);
    fresh.truncate(usize::try_from(LOG_BYTES_MAX.saturating_sub(size_bytes)).unwrap_or(usize::MAX));
    fresh
}

/// Reads one log, and waits for more of it while it is being written.
#[derive(Debug)]
pub struct LogReader {
    source: Source,
    size_bytes: Option<watch::Receiver<Option<u64>>>,
}

/// Where a log is read.
#[derive(Debug)]
enum Source {
    /// Here, where it is or was written.
    File(File),
    /// In what the store gave, and how far.
    Stored(BlobBytes, u64),
}

impl LogReader {
    /// Reads a log that is complete.
    pub fn stored(bytes: BlobBytes) -> Self {
        Self { source: Source::Stored(bytes, 0), size_bytes: None }
    }

    /// Returns whether what is read is the store's, which has logs that are complete.
    pub fn is_stored(&self) -> bool {
        match self.source {
            Source::File(_) => false,
            Source::Stored(..) => true,
        }
    }

    /// Reads the next bytes that are there; empty at the present end.
    ///
    /// # Errors
    /// What the file system says.
    pub fn next_chunk(&mut self) -> io::Result<Vec<u8>> {
        match &mut self.source {
            Source::File(file) => {
                let mut chunk = Vec::new();
                file.take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
                Ok(chunk)
            }
            Source::Stored(bytes, offset_bytes) => {
                let mut chunk = vec![0; CHUNK_BYTES];
                let count = bytes.read_at(&mut chunk, *offset_bytes)?;
                chunk.truncate(count);
                *offset_bytes += count as u64;
                Ok(chunk)
            }
        }
    }

    /// Returns how many bytes are there.
    ///
    /// # Errors
    /// What the file system says.
    pub fn size_bytes(&self) -> io::Result<u64> {
        match &self.source {
            Source::File(file) => Ok(file.metadata()?.len()),
            Source::Stored(bytes, _) => bytes.size_bytes(),
        }
    }

    /// Goes to an offset, from which on it is read.
    ///
    /// # Errors
    /// What the file system says.
    pub fn skip_to(&mut self, offset_bytes: u64) -> io::Result<()> {
        match &mut self.source {
            Source::File(file) => file.seek(SeekFrom::Start(offset_bytes)).map(drop),
            Source::Stored(_, at_bytes) => {
                *at_bytes = offset_bytes;
                Ok(())
            }
        }
    }

    /// Waits until there may be more; returns false once the log is complete.
    pub async fn grown(&mut self) -> bool {
        match &mut self.size_bytes {
            Some(size_bytes) => size_bytes.changed().await.is_ok() && size_bytes.borrow_and_update().is_some(),
            None => false,
        }
    }
}

/// Bytes of log in one answer to a client.
const CHUNK_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_sent_again_or_with_a_gap_is_stored_once_and_says_so() {
        let table: [(u64, u64, &str, &str); 5] = [
            (0, 0, "one", "one"),
            (3, 0, "one two", " two"),
            (7, 0, "one", ""),
            (3, 3, " two", " two"),
            (3, 5, "wo", "\n[2 bytes of log were lost]\nwo"),
        ];
        for (size_bytes, offset_bytes, sent, stored) in table {
            assert_eq!(fresh_part(size_bytes, offset_bytes, sent.as_bytes()), stored.as_bytes(), "{size_bytes} {offset_bytes} {sent}");
        }
    }

    #[test]
    fn a_log_that_is_brought_comes_whole_or_not_at_all_and_stays() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let logs = Logs::open(dir.path()).expect("open");
        let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path");
        let broken = b"half".chain(Broken);
        assert!(logs.put(&derivation, AttemptId(0), broken).is_err());
        assert_eq!(logs.latest_attempt(&derivation), None);
        for text in ["first", "second"] {
            logs.put(&derivation, AttemptId(0), text.as_bytes()).expect("takes");
        }
        let text = logs.read(&derivation, AttemptId(0)).expect("read").next_chunk().expect("chunk");
        assert_eq!(text, b"first");
        logs.append(&derivation, AttemptId(7), 0, b"own").expect("append");
        assert_eq!(logs.latest_attempt(&derivation), Some(AttemptId(7)), "the farm's own goes before");
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 1, "nothing else is left");
    }

    #[test]
    fn a_log_is_old_once_nobody_has_written_to_it_for_long_enough() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let logs = Logs::open(dir.path()).expect("open");
        let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path");
        for attempt in [1, 2, 3].map(AttemptId) {
            logs.append(&derivation, attempt, 0, b"text").expect("append");
            let file = File::options().append(true).open(logs.path(&derivation, attempt)).expect("a file");
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(attempt.0)).expect("any time can be set");
        }
        logs.close(&derivation, AttemptId(1));
        logs.close(&derivation, AttemptId(3));
        let old = |ms| logs.untouched_since(Timestamp(ms)).expect("lists").into_iter().map(|(_, attempt)| attempt.0).collect::<Vec<_>>();
        assert_eq!(old(2_500), [1], "2 is being written, 3 is younger");
        assert_eq!(old(1_000), [0; 0]);
    }

    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
    }

    #[tokio::test]
    async fn a_follower_sees_every_byte_and_then_the_end() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let logs = Logs::open(dir.path()).expect("open");
        let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path");
        logs.append(&derivation, AttemptId(7), 0, b"one\n").expect("append");
        let mut reader = logs.read(&derivation, AttemptId(7)).expect("read");
        assert_eq!(reader.next_chunk().expect("chunk"), b"one\n");
        logs.append(&derivation, AttemptId(7), 4, b"two\n").expect("append");
        assert!(reader.grown().await);
        assert_eq!(reader.next_chunk().expect("chunk"), b"two\n");
        logs.close(&derivation, AttemptId(7));
        assert!(!reader.grown().await);
        assert_eq!(logs.latest_attempt(&derivation), Some(AttemptId(7)));
    }
}
