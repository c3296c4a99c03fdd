//! The next segment of a simulated host, filled when it is needed: nothing runs beside the host's tasks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::disk::File;
use super::{WalError, WalStats, segment};

/// Fills segments.
pub struct Preparer {
    dir: PathBuf,
    segment_bytes: u64,
}

impl Preparer {
    /// Notes where.
    pub fn start(dir: &Path, segment_bytes: u64, _: Arc<WalStats>) -> Result<Self, WalError> {
        Ok(Self { dir: dir.to_owned(), segment_bytes })
    }

    /// Does nothing yet.
    pub fn order(&self) {}

    /// Fills one.
    pub fn take(&self, _: &Path, _: &WalStats) -> Result<File, WalError> {
        segment::prepare(&self.dir, self.segment_bytes)
    }
}
