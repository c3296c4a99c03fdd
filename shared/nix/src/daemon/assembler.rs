//! Gathers the arguments of one request as their bytes arrive. Knows how long they are, not what they mean.

use kiln_wire::limits::NIX_REQUEST_BYTES_MAX;

use super::fields::{ProtocolError, WORD_BYTES, padded, word};

/// One argument, as far as its length goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// A number, a truth value, or one of a few choices.
    Number,
    /// A string.
    Text,
    /// A count, and for each of as many records this many strings. A list has one, a map two.
    Records(u8),
}

/// The bytes of a few arguments, while they arrive. Each byte is looked at once, in whatever pieces they come.
#[derive(Clone, Debug)]
pub struct Assembler {
    /// Items that have not begun.
    items: &'static [Item],
    bytes: Vec<u8>,
    piece: Piece,
    /// Bytes of the piece that have not come.
    left: usize,
    /// Strings of the present item that have not begun.
    texts: usize,
}

/// What the bytes at hand are a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Number,
    Count { texts_each: u8 },
    Length,
    Body,
    Nothing,
}

impl Assembler {
    /// Starts with no bytes of `items`.
    pub fn new(items: &'static [Item]) -> Self {
        let mut new = Self { items, bytes: Vec::new(), piece: Piece::Nothing, left: 0, texts: 0 };
        new.begin();
        new
    }

    /// Takes what it needs of `input` and returns how many bytes that were; fewer than `input` has only if it is complete then.
    ///
    /// # Errors
    /// [`ProtocolError::TooLong`] if the arguments say that they are longer than a request may be.
    pub fn take(&mut self, input: &[u8]) -> Result<usize, ProtocolError> {
        let mut taken = 0;
        while self.piece != Piece::Nothing {
            let part = self.left.min(input.len() - taken);
            self.bytes.extend_from_slice(&input[taken..taken + part]);
            taken += part;
            self.left -= part;
            if self.left > 0 {
                break;
            }
            self.end_piece()?;
        }
        Ok(taken)
    }

    /// Returns whether all bytes have come.
    pub fn is_complete(&self) -> bool {
        self.piece == Piece::Nothing
    }

    /// Returns whether no byte has come yet.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns the bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn end_piece(&mut self) -> Result<(), ProtocolError> {
        match self.piece {
            Piece::Number | Piece::Body | Piece::Nothing => self.begin(),
            Piece::Count { texts_each } => {
                let texts = self.last_word().checked_mul(u64::from(texts_each)).and_then(|texts| usize::try_from(texts).ok());
                // Each string has at least its length.
                self.texts = texts.ok_or(ProtocolError::TooLong)?;
                self.check_room(self.texts.checked_mul(WORD_BYTES))?;
                self.begin();
            }
            Piece::Length => {
                let body = usize::try_from(self.last_word()).ok().and_then(padded);
                self.check_room(body)?;
                (self.piece, self.left) = (Piece::Body, body.ok_or(ProtocolError::TooLong)?);
            }
        }
        Ok(())
    }

    fn check_room(&self, more: Option<usize>) -> Result<(), ProtocolError> {
        let total = more.and_then(|more| self.bytes.len().checked_add(more));
        total.filter(|total| *total <= NIX_REQUEST_BYTES_MAX).map(|_| ()).ok_or(ProtocolError::TooLong)
    }

    fn last_word(&self) -> u64 {
        word(&self.bytes[self.bytes.len() - WORD_BYTES..])
    }

    /// Goes on with the next string or item.
    fn begin(&mut self) {
        self.left = WORD_BYTES;
        if self.texts > 0 {
            self.texts -= 1;
            self.piece = Piece::Length;
            return;
        }
        let Some((first, rest)) = self.items.split_first() else {
            (self.piece, self.left) = (Piece::Nothing, 0);
            return;
        };
        self.items = rest;
        self.piece = match first {
            Item::Number => Piece::Number,
            Item::Text => Piece::Length,
            Item::Records(texts_each) => Piece::Count { texts_each: *texts_each },
        };
    }
}
