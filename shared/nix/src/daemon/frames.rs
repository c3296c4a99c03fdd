//! What is streamed after a request: frames, each with its length before it, without padding, and one of length 0 at the end.
//! Where one ends says nothing about the content.

use super::fields::{WORD_BYTES, word};

/// Takes frames apart as their bytes arrive. Holds no content.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    header: [u8; WORD_BYTES],
    header_bytes: usize,
    /// Bytes of the present frame that have not come.
    left: u64,
    ended: bool,
}

/// What the next bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Nothing yet: more must come.
    More,
    /// Content.
    Data(&'a [u8]),
    /// The end.
    End,
}

impl Frames {
    /// Takes the first bytes of `input`; returns how many, and what they are. After [`Step::End`] it takes nothing.
    pub fn take<'a>(&mut self, input: &'a [u8]) -> (usize, Step<'a>) {
        let mut taken = 0;
        while self.left == 0 && !self.ended {
            let part = (WORD_BYTES - self.header_bytes).min(input.len() - taken);
            self.header[self.header_bytes..self.header_bytes + part].copy_from_slice(&input[taken..taken + part]);
            taken += part;
            self.header_bytes += part;
            if self.header_bytes < WORD_BYTES {
                return (taken, Step::More);
            }
            self.header_bytes = 0;
            self.left = word(&self.header);
            self.ended = self.left == 0;
        }
        if self.ended {
            return (taken, Step::End);
        }
        let part = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len() - taken);
        self.left -= part as u64;
        match part {
            0 => (taken, Step::More),
            part => (taken + part, Step::Data(&input[taken..taken + part])),
        }
    }
}
