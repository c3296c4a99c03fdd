//! Rewriting: hash parts of store paths give way to others of the same length, in bytes as they flow by.
//!
//! Source: Nix's `RewritingSink`. What is replaced is not looked at again.

use std::collections::BTreeMap;
use std::io::{self, Read};

use kiln_wire::StorePath;

/// Characters of a hash part.
const PART: usize = 32;
/// Bytes that are read at a time.
const READ_BYTES: usize = 64 << 10;

/// Reads what another reader has, with hash parts replaced.
#[derive(Debug)]
pub struct Rewriter<R> {
    inner: R,
    parts: BTreeMap<[u8; PART], [u8; PART]>,
    /// Bytes that were read; the first `done` are as they are to be, and the first `given` of those were given.
    buffer: Vec<u8>,
    done: usize,
    given: usize,
    ended: bool,
}

impl<R: Read> Rewriter<R> {
    /// Reads `inner`, with the hash part of each first path replaced by that of the second.
    pub fn new<'a>(inner: R, paths: impl IntoIterator<Item = (&'a StorePath, &'a StorePath)>) -> Self {
        let part = |path: &StorePath| -> [u8; PART] { path.hash_part().as_bytes().try_into().expect("a hash part has 32 characters") };
        let parts = paths.into_iter().map(|(from, to)| (part(from), part(to))).collect();
        Self { inner, parts, buffer: Vec::new(), done: 0, given: 0, ended: false }
    }

    fn fill(&mut self) -> io::Result<()> {
        self.buffer.drain(..self.done);
        (self.done, self.given) = (0, 0);
        while !self.ended && self.buffer.len() < READ_BYTES {
            let start = self.buffer.len();
            self.buffer.resize(start + READ_BYTES, 0);
            let count = self.inner.read(&mut self.buffer[start..])?;
            self.buffer.truncate(start + count);
            self.ended = count == 0;
        }
        while self.done + PART <= self.buffer.len() {
            let window = &mut self.buffer[self.done..self.done + PART];
            match self.parts.get(&*window) {
                Some(to) => {
                    window.copy_from_slice(to);
                    self.done += PART;
                }
                None => self.done += 1,
            }
        }
        if self.ended {
            self.done = self.buffer.len();
        }
        Ok(())
    }
}

impl<R: Read> Read for Rewriter<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.given == self.done && !(self.ended && self.buffer.len() == self.done) {
            self.fill()?;
        }
        let count = into.len().min(self.done - self.given);
        into[..count].copy_from_slice(&self.buffer[self.given..self.given + count]);
        self.given += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(letter: &str) -> StorePath {
        StorePath::parse(&format!("{}-x", letter.repeat(32))).expect("a store path")
    }

    /// Gives its bytes a few at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = self.0.len().min(self.1).min(into.len());
            into[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    #[test]
    fn hash_parts_are_replaced_wherever_the_bytes_are_cut() {
        let (a, b, c) = ("a".repeat(32), "b".repeat(32), "c".repeat(32));
        let table = [
            (String::new(), String::new()),
            ("short".to_owned(), "short".to_owned()),
            (a.clone(), b.clone()),
            (format!("x{a}y{b}z{a}"), format!("x{b}y{c}z{b}")),
            (format!("{a}{a}{}", &a[..31]), format!("{b}{b}{}", &a[..31])),
            (format!("{}{a}", "-".repeat(READ_BYTES - 7)), format!("{}{b}", "-".repeat(READ_BYTES - 7))),
        ];
        let (from_a, from_b, to_c) = (path("a"), path("b"), path("c"));
        for (text, want) in table {
            for piece in [1, 31, 33, 1 << 20] {
                let mut read = Vec::new();
                let paths = [(&from_a, &from_b), (&from_b, &to_c)];
                Rewriter::new(Slow(text.as_bytes(), piece), paths).read_to_end(&mut read).expect("reads");
                assert_eq!(String::from_utf8_lossy(&read), want, "in pieces of {piece}");
            }
        }
    }
}
