//! Bytes that arrive from the network, for work that blocks: decompressing and hashing an archive while it comes.

use std::fmt::Display;
use std::io::{self, Read};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::{Stream, StreamExt};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinError;
use tokio::time::{Instant, timeout_at};

/// What a sender may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Bytes that it may send.
    pub(crate) bytes_max: u64,
    /// How long all of it may take.
    pub(crate) whole: Duration,
    /// How long it may send nothing.
    pub(crate) stall: Duration,
}

/// The bytes, read where blocking is allowed. What ends without having been complete is an error.
pub(crate) struct BodyReader {
    pieces: Receiver<Piece>,
    piece: Bytes,
    is_complete: bool,
}

enum Piece {
    Bytes(Bytes),
    Failed(io::Error),
    End,
}

/// Does blocking work on bytes while they arrive. If the caller goes away, the work reads an error.
///
/// # Errors
/// That the work panicked.
pub(crate) async fn read_blocking<T: Send + 'static, E: Display>(
    body: impl Stream<Item = Result<Bytes, E>>,
    bounds: Bounds,
    work: impl FnOnce(BodyReader) -> T + Send + 'static,
) -> Result<T, JoinError> {
    let (sender, pieces) = channel(PIECES_AHEAD);
    let working = tokio::task::spawn_blocking(move || work(BodyReader { pieces, piece: Bytes::new(), is_complete: false }));
    pump(body, bounds, &sender).await;
    drop(sender);
    working.await
}

async fn pump<E: Display>(body: impl Stream<Item = Result<Bytes, E>>, bounds: Bounds, sender: &Sender<Piece>) {
    let mut body = std::pin::pin!(body);
    let deadline = Instant::now() + bounds.whole;
    let mut left_bytes = bounds.bytes_max;
    loop {
        let piece = match timeout_at(deadline.min(Instant::now() + bounds.stall), body.next()).await {
            Ok(Some(Ok(bytes))) => match left_bytes.checked_sub(bytes.len() as u64) {
                Some(left) => {
                    left_bytes = left;
                    Piece::Bytes(bytes)
                }
                None => {
                    Piece::Failed(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {} bytes were sent", bounds.bytes_max)))
                }
            },
            Ok(Some(Err(error))) => Piece::Failed(io::Error::other(error.to_string())),
            Ok(None) => Piece::End,
            Err(_) => Piece::Failed(io::Error::new(io::ErrorKind::TimedOut, "it was sent too slowly")),
        };
        let is_last = !matches!(piece, Piece::Bytes(_));
        if sender.send(piece).await.is_err() || is_last {
            return;
        }
    }
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.is_complete {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.piece = bytes,
                Some(Piece::Failed(error)) => return Err(error),
                Some(Piece::End) => self.is_complete = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "whoever it was fetched for went away")),
            }
        }
        let count = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// Pieces that may wait for the work; each is what the network gave at once, some KiB.
const PIECES_AHEAD: usize = 16;

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    const BOUNDS: Bounds = Bounds { bytes_max: 10, whole: Duration::from_secs(60), stall: Duration::from_secs(60) };

    async fn read(pieces: Vec<Result<&'static str, &'static str>>, bounds: Bounds) -> Result<String, String> {
        let body = stream::iter(pieces.into_iter().map(|piece| piece.map(Bytes::from)));
        let work = |mut reader: BodyReader| {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text).map_err(|error| error.to_string())
        };
        read_blocking(body, bounds, work).await.expect("the work does not panic")
    }

    #[tokio::test]
    async fn bytes_arrive_whole_or_as_an_error() {
        assert_eq!(read(vec![Ok("abc"), Ok(""), Ok("defg")], BOUNDS).await, Ok("abcdefg".to_owned()));
        assert_eq!(read(vec![], BOUNDS).await, Ok(String::new()));
        assert_eq!(read(vec![Ok("abc"), Err("reset")], BOUNDS).await, Err("reset".to_owned()));
        assert_eq!(read(vec![Ok("abcdef"), Ok("ghijk")], BOUNDS).await, Err("more than 10 bytes were sent".to_owned()));
    }

    #[tokio::test]
    async fn a_body_that_does_not_end_is_left_and_one_whose_reader_has_gone_is_not_read_on() {
        let endless = || stream::iter([Ok::<_, String>(Bytes::from_static(b"a"))]).chain(stream::pending());
        let slow = Bounds { stall: Duration::ZERO, ..BOUNDS };
        let said = read_blocking(endless(), slow, |mut reader| reader.read_to_end(&mut Vec::new()).map_err(|error| error.kind()));
        assert_eq!(said.await.expect("no panic"), Err(io::ErrorKind::TimedOut));
        let body = stream::repeat_with(|| Ok::<_, String>(Bytes::from_static(b"a")));
        let unbounded = Bounds { bytes_max: u64::MAX, ..BOUNDS };
        read_blocking(body, unbounded, drop).await.expect("ends, for nobody reads");
    }

    #[test]
    fn whoever_goes_away_midway_leaves_an_error() {
        let (sender, pieces) = channel(1);
        drop(sender);
        let mut reader = BodyReader { pieces, piece: Bytes::from_static(b"ab"), is_complete: false };
        assert_eq!(reader.read_to_end(&mut Vec::new()).expect_err("not complete").kind(), io::ErrorKind::UnexpectedEof);
    }
}
