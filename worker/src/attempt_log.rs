//! The log of one attempt: a file on disk that the builder's output is appended to and that senders read from.
//!
//! The file is the truth, so that a slow or absent coordinator costs no memory and slows no build. Made at the first byte: most
//! small builds write none. Does not send (see [`crate::session`]).

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

/// The log of one attempt.
#[derive(Debug)]
pub struct AttemptLog {
    path: PathBuf,
    file: OnceLock<File>,
    bytes: AtomicU64,
    broken: AtomicBool,
    changed: Arc<Notify>,
}

impl AttemptLog {
    /// A log that will lie at `path`; `changed` is woken when there is more.
    pub fn new(path: PathBuf, changed: Arc<Notify>) -> Self {
        Self { path, file: OnceLock::new(), bytes: AtomicU64::new(0), broken: AtomicBool::new(false), changed }
    }

    /// Opens what an earlier process of this worker wrote; a log that is not there is empty.
    pub fn reopen(path: PathBuf, changed: Arc<Notify>) -> Self {
        let log = Self::new(path, changed);
        if let Ok(file) = File::options().read(true).append(true).open(&log.path) {
            log.bytes.store(file.metadata().map_or(0, |meta| meta.len()), Ordering::Release);
            let _ = log.file.set(file);
        }
        log
    }

    /// Removes the file. Who still reads keeps reading.
    pub fn remove(&self) {
        if self.file.get().is_some()
            && let Err(err) = std::fs::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %err, "remove the log of an attempt");
        }
    }

    /// Adds what the builder wrote. Only one thread may append. A full disk ends the log, not the build.
    pub fn append(&self, bytes: &[u8]) {
        if bytes.is_empty() || self.broken.load(Ordering::Relaxed) {
            return;
        }
        if let Err(err) = self.open().and_then(|mut file| file.write_all(bytes)) {
            self.broken.store(true, Ordering::Relaxed);
            tracing::warn!(path = %self.path.display(), %err, "write the log of an attempt; the rest of it is lost");
            return;
        }
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Release);
        self.changed.notify_one();
    }

    /// Returns the bytes written so far.
    pub fn len(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Returns up to `bytes_max` bytes from `offset_bytes` on; nothing at the end.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(&self, offset_bytes: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
        let left = self.len().saturating_sub(offset_bytes);
        let Some(file) = self.file.get().filter(|_| left > 0) else { return Ok(Vec::new()) };
        let mut bytes = vec![0; usize::try_from(left).map_or(bytes_max, |left| left.min(bytes_max))];
        file.read_exact_at(&mut bytes, offset_bytes)?;
        Ok(bytes)
    }

    fn open(&self) -> io::Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = File::options().read(true).append(true).create_new(true).open(&self.path)?;
        Ok(self.file.get_or_init(|| file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_reader_gets_the_whole_log_in_bounded_pieces() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("1.log");
        let log = AttemptLog::new(path.clone(), Arc::new(Notify::new()));
        assert_eq!(log.read(0, 10).expect("empty"), b"");
        assert!(!path.exists(), "a silent build makes no file");
        log.append(b"hello ");
        log.append(b"world");
        let mut found = Vec::new();
        loop {
            let piece = log.read(found.len() as u64, 4).expect("reads");
            if piece.is_empty() {
                break;
            }
            assert!(piece.len() <= 4);
            found.extend(piece);
        }
        assert_eq!(found, b"hello world");
        drop(log);
        let log = AttemptLog::reopen(path.clone(), Arc::new(Notify::new()));
        assert_eq!(log.read(6, 100).expect("reads"), b"world", "a restarted worker has it still");
        log.remove();
        assert!(!path.exists());
    }
}
