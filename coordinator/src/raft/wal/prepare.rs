//! The next segment, filled with zeros before it is needed.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use super::super::disk::{self, File};
use super::{Room, WalError, WalStats, at, is_full, segment};

/// Fills the next segment with zeros on a thread of its own: done in line it would hold up commits for up to a second.
pub struct Preparer {
    orders: Option<mpsc::Sender<()>>,
    files: mpsc::Receiver<Result<File, WalError>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Preparer {
    /// Starts the thread and orders the first segment.
    pub fn start(dir: &Path, segment_bytes: u64, stats: Arc<WalStats>) -> Result<Self, WalError> {
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

    /// Has another one filled.
    pub fn order(&self) {
        // A thread that has ended shows when its file is taken.
        let _ = self.orders.as_ref().map(|orders| orders.send(()));
    }

    /// Waits for the segment. On a full disk that is until there is room: nothing that was written is in danger meanwhile.
    pub fn take(&self, dir: &Path, stats: &WalStats) -> Result<File, WalError> {
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
                let _gone = disk::remove_file(dir.join(segment::PREPARED));
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

/// How often a full disk is looked at again.
const FULL_RETRY: std::time::Duration = std::time::Duration::from_millis(500);
