//! What a client streams after a request, as a reader for code that blocks.

use std::io::{self, BufRead, Read};

use tokio::sync::mpsc;

/// Pieces between the task that hears the client and the thread that reads.
pub(super) const PIECES_AHEAD: usize = 8;

/// What arrives.
pub(super) enum Piece {
    /// Some bytes, never none.
    Bytes(Vec<u8>),
    /// The end, which a client that disappears does not reach.
    End,
}

/// Reads what a client streams, to the end that the client says.
pub(super) struct Content {
    pieces: mpsc::Receiver<Piece>,
    piece: Vec<u8>,
    read: usize,
    ended: bool,
}

impl Content {
    pub(super) fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self { pieces, piece: Vec::new(), read: 0, ended: false }
    }
}

impl BufRead for Content {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.read == self.piece.len() && !self.ended {
            self.read = 0;
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.piece = bytes,
                Some(Piece::End) => {
                    self.piece.clear();
                    self.ended = true;
                }
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the client is gone")),
            }
        }
        Ok(&self.piece[self.read..])
    }

    fn consume(&mut self, count: usize) {
        self.read = (self.read + count).min(self.piece.len());
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut bytes = self.fill_buf()?;
        let count = bytes.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}
