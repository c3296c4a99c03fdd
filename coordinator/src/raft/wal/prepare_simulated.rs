//! The next segment of a simulated host, filled before it is needed by a task of the host.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::super::disk::{self, File, ill};
use super::{Room, WalError, WalStats, is_full, segment};

/// Fills segments.
pub struct Preparer {
    dir: PathBuf,
    segment_bytes: u64,
    spare: Arc<Mutex<Spare>>,
    orders: mpsc::UnboundedSender<()>,
}

#[derive(Default)]
struct Spare {
    is_wanted: bool,
    file: Option<File>,
}

impl Preparer {
    /// Starts the task and orders the first segment.
    pub fn start(dir: &Path, segment_bytes: u64, stats: Arc<WalStats>) -> Result<Self, WalError> {
        let spare = Arc::<Mutex<Spare>>::default();
        let (orders, mut inbox) = mpsc::unbounded_channel();
        let preparer = Self { dir: dir.to_owned(), segment_bytes, spare: spare.clone(), orders };
        let dir = dir.to_owned();
        ill::has_spare(&dir, false);
        tokio::spawn(async move {
            while inbox.recv().await.is_some() {
                while !prepare(&dir, segment_bytes, &spare, &stats) && !inbox.is_closed() {
                    tokio::time::sleep(FULL_RETRY).await;
                }
            }
        });
        preparer.order();
        Ok(preparer)
    }

    /// Has another one filled.
    pub fn order(&self) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).is_wanted = true;
        // The task ends with the host.
        let _ = self.orders.send(());
    }

    /// Takes the segment. Whoever writes waited while there was no room for it; what needs more than was foreseen gets some.
    pub fn take(&self, _: &Path, _: &WalStats) -> Result<File, WalError> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.is_wanted = false;
        ill::has_spare(&self.dir, false);
        match spare.file.take() {
            Some(file) => Ok(file),
            None => ill::despite(|| segment::prepare(&self.dir, self.segment_bytes)),
        }
    }
}

/// Fills the next segment, if it is wanted; returns false if the disk is full.
fn prepare(dir: &Path, segment_bytes: u64, spare: &Mutex<Spare>, stats: &WalStats) -> bool {
    let mut spare = spare.lock().unwrap_or_else(PoisonError::into_inner);
    if !spare.is_wanted || spare.file.is_some() {
        return true;
    }
    match segment::prepare(dir, segment_bytes) {
        Err(WalError::Io { err, .. }) if is_full(&err) => {
            let _gone = disk::remove_file(dir.join(segment::PREPARED));
            let room = if ill::is_stuck(dir) { Room::None } else { Room::Short };
            let before = *stats.room.borrow();
            stats.room.send_if_modified(|known| std::mem::replace(known, room) != room);
            if before == Room::Enough {
                tracing::error!(dir = %dir.display(), "the disk is full: there is no room for the log's next segment");
            }
            false
        }
        prepared => {
            if stats.room.send_if_modified(|room| std::mem::take(room) != Room::Enough) {
                tracing::info!(dir = %dir.display(), "there is room for the log again");
            }
            // A disk that fails shows when the segment is taken.
            spare.file = prepared.ok();
            ill::has_spare(dir, spare.file.is_some());
            true
        }
    }
}

/// How often a full disk is looked at again.
const FULL_RETRY: Duration = Duration::from_millis(500);
