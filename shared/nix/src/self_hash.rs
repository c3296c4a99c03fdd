//! The hash of content that names its own store path: the path's hash part is read as NULs, and where it stood is hashed at the end.
//!
//! Without the positions, content with NULs there from the start would collide. Source: Nix's `HashModuloSink`.

use std::io::{self, Write};

use kiln_wire::StorePath;

use crate::hash::{Algorithm, Hash, Hasher};

/// Hashes what is written, blind for one store path.
#[derive(Debug)]
pub struct SelfHasher {
    needle: Vec<u8>,
    hasher: Hasher,
    /// Bytes that are not hashed yet: the needle may go on in the next ones.
    tail: Vec<u8>,
    /// Bytes before `tail`.
    position: u64,
    found: Vec<u64>,
}

impl SelfHasher {
    /// Starts with no bytes.
    pub fn new(algorithm: Algorithm, itself: &StorePath) -> Self {
        let needle = itself.hash_part().as_bytes().to_vec();
        Self { needle, hasher: Hasher::new(algorithm), tail: Vec::new(), position: 0, found: Vec::new() }
    }

    /// Takes more bytes. The needle may lie across two pieces.
    pub fn update(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        let length = self.needle.len();
        let mut start = 0;
        while start + length <= self.tail.len() {
            if self.tail[start..start + length] == self.needle {
                self.found.push(self.position + start as u64);
                self.tail[start..start + length].fill(0);
                start += length;
            } else {
                start += 1;
            }
        }
        let ready = self.tail.len().saturating_sub(length - 1);
        self.hasher.update(&self.tail[..ready]);
        self.tail.drain(..ready);
        self.position += ready as u64;
    }

    /// Returns the hash.
    pub fn finish(mut self) -> Hash {
        self.hasher.update(&self.tail);
        for position in &self.found {
            self.hasher.update(format!("|{position}").as_bytes());
        }
        self.hasher.finish()
    }
}

impl Write for SelfHasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDLE: &str = "0hm2f1psjpcwg8fijsmr4wwxrx59s092";

    #[test]
    fn the_needle_is_hashed_as_nuls_with_its_positions_however_the_bytes_are_cut() {
        let itself = StorePath::parse(&format!("{NEEDLE}-x")).expect("a store path");
        let nuls = "\0".repeat(32);
        let table = [
            (String::new(), String::new()),
            ("none at all, and longer than one needle".to_owned(), "none at all, and longer than one needle".to_owned()),
            (NEEDLE.to_owned(), format!("{nuls}|0")),
            (format!("ab{NEEDLE}cd{NEEDLE}"), format!("ab{nuls}cd{nuls}|2|36")),
            (format!("{NEEDLE}{NEEDLE}"), format!("{nuls}{nuls}|0|32")),
            (format!("{}{NEEDLE}", &NEEDLE[..31]), format!("{}{nuls}|31", &NEEDLE[..31])),
        ];
        for (text, hashed) in table {
            let mut plain = Hasher::new(Algorithm::Sha256);
            plain.update(hashed.as_bytes());
            let want = plain.finish();
            for piece in [1, 7, 31, 32, 33, 1000] {
                let mut hasher = SelfHasher::new(Algorithm::Sha256, &itself);
                text.as_bytes().chunks(piece).for_each(|piece| hasher.update(piece));
                assert_eq!(hasher.finish(), want, "{text} in pieces of {piece}");
            }
        }
    }
}
