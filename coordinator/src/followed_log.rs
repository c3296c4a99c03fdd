//! A log that is followed until its attempt ends, byte by byte from an offset on. Where the rest of it will not be written here, because
//! another coordinator leads, whoever follows is told so and goes on there: the bytes of an attempt's log are the same everywhere.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kiln_wire::{AttemptId, DrvPath};

use crate::kept_logs::{self, KeptLogError};
use crate::leading;
use crate::logs::LogReader;
use crate::parts::Parts;

/// A log on its way to somebody.
pub(crate) struct FollowedLog {
    parts: Arc<Parts>,
    derivation: DrvPath,
    attempt: AttemptId,
    /// Bytes that were given out, and those before them.
    offset_bytes: u64,
    /// None until there is one.
    reader: Option<LogReader>,
    /// The last one gave nothing: the next is not opened at once.
    is_idle: bool,
    /// Nothing more is written to the file that is read.
    is_last: bool,
}

/// What comes next of a log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// The next bytes.
    Bytes(Vec<u8>),
    /// Nothing came for a while.
    Silence,
    /// There is no more: the attempt has ended, and all that it wrote was given out.
    End,
    /// The rest is not to be had here: another coordinator has it, or will.
    Elsewhere,
}

/// Why a log cannot be followed from an offset.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    /// It is not here.
    #[error(transparent)]
    Absent(#[from] KeptLogError),
    /// It has fewer bytes, and is complete.
    #[error("the log has {size_bytes} bytes")]
    Beyond { size_bytes: u64 },
    /// It has fewer bytes so far: its worker sends it again.
    #[error("the log is not as far as it was told elsewhere")]
    Behind,
    /// It cannot be read.
    #[error("read log")]
    Io(#[from] io::Error),
}

impl FollowedLog {
    /// Follows from an offset on. Of an attempt that runs, a log may come that is not here so far.
    ///
    /// # Errors
    /// [`FollowError`] if nothing will come of it.
    pub(crate) async fn open(parts: &Arc<Parts>, derivation: DrvPath, attempt: AttemptId, offset_bytes: u64) -> Result<Self, FollowError> {
        let parts = parts.clone();
        let mut followed = Self { parts, derivation, attempt, offset_bytes, reader: None, is_idle: false, is_last: false };
        if !followed.is_live() {
            followed.reader = Some(followed.reader().await?);
        }
        Ok(followed)
    }

    /// Waits for what comes next. After an end, or what is elsewhere, nothing does.
    ///
    /// # Errors
    /// What the file system or the store says.
    pub(crate) async fn next(&mut self) -> io::Result<Piece> {
        loop {
            let Some(reader) = &mut self.reader else {
                if self.is_idle {
                    tokio::time::sleep(REOPEN).await;
                }
                match self.reader().await {
                    Ok(reader) => self.reader = Some(reader),
                    Err(_) if self.is_awaited() => {
                        self.is_idle = true;
                        return Ok(Piece::Silence);
                    }
                    Err(FollowError::Absent(KeptLogError::Own(_))) => return Ok(self.end()),
                    Err(_) => return Ok(Piece::Elsewhere),
                }
                continue;
            };
            let chunk = reader.next_chunk()?;
            if !chunk.is_empty() {
                self.offset_bytes = self.offset_bytes.saturating_add(chunk.len() as u64);
                self.is_idle = false;
                return Ok(Piece::Bytes(chunk));
            }
            if self.is_last {
                return Ok(self.end());
            }
            match tokio::time::timeout(LIFE, reader.grown()).await {
                Ok(true) => {}
                Ok(false) if self.is_awaited() => {
                    // The attempt goes on: its worker is about to send the rest, maybe to a new file.
                    self.reader = None;
                    self.is_idle = true;
                }
                // Another look after the end: bytes may have come between the last read and the end.
                Ok(false) => self.is_last = true,
                Err(_) => return Ok(Piece::Silence),
            }
        }
    }

    async fn reader(&self) -> Result<LogReader, FollowError> {
        let mut reader = kept_logs::read(&self.parts, &self.derivation, self.attempt).await?;
        let size_bytes = reader.size_bytes()?;
        if size_bytes < self.offset_bytes {
            return Err(if self.is_live() { FollowError::Behind } else { FollowError::Beyond { size_bytes } });
        }
        reader.skip_to(self.offset_bytes)?;
        Ok(reader)
    }

    /// Returns whether the attempt runs and its log comes to this coordinator.
    fn is_awaited(&self) -> bool {
        self.is_live() && leading::own(&self.parts).is_some()
    }

    fn is_live(&self) -> bool {
        kept_logs::runs(&self.parts, &self.derivation, self.attempt)
    }

    /// Most small builds write none. A coordinator that was deposed does not know whether what it has is all, unless what it reads is the store's.
    fn end(&self) -> Piece {
        let is_whole = self.reader.as_ref().is_some_and(LogReader::is_stored) || leading::own(&self.parts).is_some();
        if is_whole && !self.is_live() { Piece::End } else { Piece::Elsewhere }
    }
}

/// How long nothing may be said.
const LIFE: Duration = Duration::from_secs(15);
/// How soon a log is looked for again whose worker has not come to this coordinator yet.
const REOPEN: Duration = Duration::from_millis(300);
