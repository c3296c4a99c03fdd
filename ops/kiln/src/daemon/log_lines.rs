//! A running attempt's log, line by line, as it is written.

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_wire::client::{Request, Response};
use kiln_wire::{AttemptId, DrvPath};
use tempfile::NamedTempFile;
use tokio::sync::{mpsc, watch};

use crate::client::{AskError, Client, Leading, unexpected};

/// Something about the log of an activity.
pub(crate) enum Told {
    /// A line of it, without its end.
    Line(u64, Vec<u8>),
    /// There is no more.
    End(u64),
}

/// Whose log is followed, and what is done with it.
pub(crate) struct Followed {
    pub(crate) derivation: DrvPath,
    pub(crate) attempt: AttemptId,
    /// Under which number its lines are told.
    pub(crate) activity: u64,
    /// Where it is kept once it is whole, if it is.
    pub(crate) keep: Option<PathBuf>,
}

/// Passes on each line of an attempt's log, until the attempt has ended and its log is told.
pub(crate) async fn follow(client: &Client, followed: Followed, mut ended: watch::Receiver<bool>, tell: mpsc::Sender<Told>) {
    let Followed { derivation, attempt, activity, keep } = followed;
    let mut reading = Reading { lines: Lines::default(), bytes: 0, activity, tell, keep: keep.map(Kept::new) };
    let mut tries = client.tries();
    let is_whole = loop {
        let is_last = *ended.borrow();
        let request = Request::Log { derivation: derivation.clone(), attempt: Some(attempt), follow: !is_last };
        let read = match tries.leader().await {
            Ok(leader) => reading.read(&leader, &request).await,
            Err(_) => break false,
        };
        match read {
            // A log that was whole when it was asked for, or a client that is gone.
            Ok(to_its_end) if is_last || reading.tell.is_closed() => break is_last && to_its_end,
            Ok(_) => {}
            Err(AskError::Passing(error)) => {
                if tries.failed(AskError::Passing(error)).await.is_err() {
                    break false;
                }
                continue;
            }
            // The builder has written nothing yet, or nothing at all.
            Err(AskError::Final(_)) if is_last => break false,
            Err(AskError::Final(_)) => {}
        }
        // Fails if nobody waits for the log any more.
        if let Ok(Err(_)) = tokio::time::timeout(LOOK_AGAIN, ended.wait_for(|ended| *ended)).await {
            break false;
        }
    };
    reading.finish(is_whole).await;
}

struct Reading {
    lines: Lines,
    /// Bytes of the log that were read. Another coordinator sends it from its start; what was told before is not told again.
    bytes: u64,
    activity: u64,
    tell: mpsc::Sender<Told>,
    keep: Option<Kept>,
}

impl Reading {
    /// Returns whether it came to the end of the answer; otherwise nobody waits for it any more.
    async fn read(&mut self, leader: &Leading, request: &Request) -> Result<bool, AskError> {
        let (_sender, mut answers) = leader.ask(request).await?;
        let mut skip = self.bytes;
        while let Some(answer) = answers.next().await? {
            let Response::Log(bytes) = answer else { return Err(unexpected("another kind")) };
            let known = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
            skip -= known as u64;
            let fresh = &bytes[known..];
            self.bytes += fresh.len() as u64;
            if let Some(kept) = &mut self.keep {
                kept.take(fresh);
            }
            for line in self.lines.push(fresh) {
                if self.tell.send(Told::Line(self.activity, line)).await.is_err() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    async fn finish(mut self, is_whole: bool) {
        if let Some(kept) = self.keep.take().filter(|_| is_whole) {
            kept.end();
        }
        let rest = self.lines.rest();
        // Fail if the client is gone, which is told elsewhere.
        if !rest.is_empty() {
            let _gone = self.tell.send(Told::Line(self.activity, rest)).await;
        }
        let _gone = self.tell.send(Told::End(self.activity)).await;
    }
}

/// A log on its way into a file. That a log is kept is a convenience: where it cannot be, a build is none the worse.
struct Kept {
    place: PathBuf,
    file: Option<NamedTempFile>,
}

impl Kept {
    fn new(place: PathBuf) -> Self {
        let opened = place.parent().map(|dir| std::fs::create_dir_all(dir).and_then(|()| NamedTempFile::new_in(dir)));
        let file = opened.and_then(|opened| opened.inspect_err(|error| cannot_keep(&place, error)).ok());
        Self { place, file }
    }

    fn take(&mut self, bytes: &[u8]) {
        if let Some(Err(error)) = self.file.as_mut().map(|file| file.write_all(bytes)) {
            cannot_keep(&self.place, &error);
            self.file = None;
        }
    }

    fn end(self) {
        let Some(file) = self.file else { return };
        let readable = file.as_file().set_permissions(Permissions::from_mode(0o444));
        if let Err(error) = readable.and_then(|()| file.persist(&self.place).map_err(|error| error.error)) {
            cannot_keep(&self.place, &error);
        }
    }
}

fn cannot_keep(place: &Path, error: &io::Error) {
    tracing::warn!(place = %place.display(), %error, "keep a log");
}

/// Divides a log that comes in pieces.
#[derive(Debug, Default)]
struct Lines {
    open: Vec<u8>,
}

impl Lines {
    /// Takes the next piece and returns the lines that ended in it. What is longer than a line may be is divided.
    fn push(&mut self, mut piece: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        while !piece.is_empty() {
            let room = LINE_BYTES_MAX - self.open.len();
            let end = piece.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(piece.len()).min(room);
            self.open.extend_from_slice(&piece[..taken]);
            piece = &piece[taken..];
            if piece.first() == Some(&b'\n') {
                piece = &piece[1..];
                lines.push(self.rest());
            } else if self.open.len() == LINE_BYTES_MAX {
                lines.push(self.rest());
            }
        }
        lines
    }

    fn rest(&mut self) -> Vec<u8> {
        let mut line = std::mem::take(&mut self.open);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        line
    }
}

/// How long after a look for a log that is not there the next one comes: most builders write in their first moments.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Bytes of one line: longer than any that people read.
const LINE_BYTES_MAX: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_divided_into_lines_wherever_its_pieces_end() {
        let log = b"one\ntwo\r\n\nfour";
        for size in 1..=log.len() {
            let mut lines = Lines::default();
            let mut found: Vec<Vec<u8>> = log.chunks(size).flat_map(|piece| lines.push(piece)).collect();
            found.push(lines.rest());
            assert_eq!(found, [&b"one"[..], b"two", b"", b"four"], "in pieces of {size}");
        }
    }

    #[test]
    fn a_line_without_end_is_cut_where_it_is_too_long() {
        let mut lines = Lines::default();
        let found = lines.push(&vec![b'x'; 2 * LINE_BYTES_MAX + 1]);
        assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [LINE_BYTES_MAX; 2]);
        assert_eq!(lines.rest(), b"x");
        let mut whole = vec![b'x'; LINE_BYTES_MAX];
        whole.push(b'\n');
        assert_eq!(lines.push(&whole).len(), 1, "a line of the full length ends once");
    }
}
