//! A pipe from async code to a thread that reads: bytes arrive over the network, a blocking reader unpacks them.
//!
//! Bounded, so that a slow disk slows the sender. Invariant: the reader sees an end only where the writer said so; a writer that
//! is dropped early gives `UnexpectedEof`, never a short success.

use std::io::{self, Read};

use bytes::Bytes;
use tokio::sync::mpsc;

/// Pieces in flight: a few of the usual 16 to 64 KiB.
const PIECES: usize = 8;

/// The end that is written from async code.
#[derive(Debug)]
pub struct Writer(mpsc::Sender<Bytes>);

/// The end that a blocking thread reads.
#[derive(Debug)]
pub struct Reader {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
    ended: bool,
}

/// The reader is gone; its own result says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reader of a pipe ended early")]
pub struct ReaderGone;

/// Makes a pipe.
pub fn pipe() -> (Writer, Reader) {
    let (sender, pieces) = mpsc::channel(PIECES);
    (Writer(sender), Reader { pieces, piece: Bytes::new(), ended: false })
}

impl Writer {
    /// Hands over the next bytes; waits while the pipe is full.
    ///
    /// # Errors
    /// [`ReaderGone`] if nobody reads any more.
    pub async fn write(&self, bytes: Bytes) -> Result<(), ReaderGone> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.0.send(bytes).await.map_err(|_| ReaderGone)
    }

    /// Hands over the next bytes from a place that may block: a thread of its own, or a sink that the link calls.
    ///
    /// # Errors
    /// [`ReaderGone`] if nobody reads any more.
    pub fn write_blocking(&self, bytes: Bytes) -> Result<(), ReaderGone> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.0.blocking_send(bytes).map_err(|_| ReaderGone)
    }

    /// Says that everything was written. The reader's own result tells whether it was taken.
    pub async fn end(self) {
        // An empty piece is the end. If the reader is gone it needs none.
        let _ = self.0.send(Bytes::new()).await;
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() && !self.ended {
            self.piece =
                self.pieces.blocking_recv().ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the sender stopped early"))?;
            self.ended = self.piece.is_empty();
        }
        let count = buffer.len().min(self.piece.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(write_end: bool) -> io::Result<Vec<u8>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let (writer, mut reader) = pipe();
        let thread = std::thread::spawn(move || {
            let mut found = Vec::new();
            reader.read_to_end(&mut found).map(|_| found)
        });
        runtime.block_on(async {
            for piece in ["one ", "", "two ", "three"] {
                writer.write(Bytes::from_static(piece.as_bytes())).await.expect("the reader lives");
            }
            if write_end {
                writer.end().await;
            }
        });
        thread.join().expect("no panic")
    }

    #[test]
    fn the_reader_gets_what_was_written_and_no_early_end() {
        assert_eq!(read_all(true).expect("whole"), b"one two three");
        assert_eq!(read_all(false).expect_err("cut").kind(), io::ErrorKind::UnexpectedEof);
    }
}
