//! Reference scan: which of a set of store paths some bytes mention, found by the 32 characters of each path's hash.
//!
//! One pass, in pieces of any length; stacks with [`crate::nar::HashWriter`] and any other writer.

use std::collections::BTreeSet;
use std::io::{self, Write};

use kiln_wire::StorePath;
use nix_archive::nar::{ReferencePattern, ReferenceScanner};

/// The store paths that may be mentioned. Cheap to clone; one set serves any number of scans.
#[derive(Clone, Debug)]
pub struct Candidates {
    paths: Vec<StorePath>,
    pattern: ReferencePattern,
}

impl Candidates {
    /// Prepares to look for these paths.
    pub fn new(paths: impl IntoIterator<Item = StorePath>) -> Self {
        let paths: Vec<StorePath> = paths.into_iter().collect();
        let pattern = ReferencePattern::new(paths.iter().map(StorePath::hash_part)).expect("a store path's hash part is base 32");
        Self { paths, pattern }
    }

    /// Starts a scan.
    pub fn scanner(&self) -> Scanner {
        Scanner { paths: self.paths.clone(), scanner: self.pattern.scanner() }
    }

    /// Starts a scan of what passes to `inner`.
    pub fn writer<W>(&self, inner: W) -> ScanWriter<W> {
        ScanWriter { inner, scanner: self.scanner() }
    }
}

/// One scan.
#[derive(Debug)]
pub struct Scanner {
    paths: Vec<StorePath>,
    scanner: ReferenceScanner,
}

impl Scanner {
    /// Takes more bytes. A hash may lie across two pieces.
    pub fn update(&mut self, bytes: &[u8]) {
        self.scanner.scan(bytes);
    }

    /// Returns the candidates that were mentioned. Candidates of one hash are found together.
    pub fn finish(self) -> BTreeSet<StorePath> {
        self.scanner.matches().map(|position| self.paths[position].clone()).collect()
    }
}

/// Scans what passes to the writer within.
#[derive(Debug)]
pub struct ScanWriter<W> {
    inner: W,
    scanner: Scanner,
}

impl<W> ScanWriter<W> {
    /// Returns the candidates that were mentioned, and the writer within.
    pub fn finish(self) -> (BTreeSet<StorePath>, W) {
        (self.scanner.finish(), self.inner)
    }
}

impl<W: Write> Write for ScanWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.inner.write(bytes)?;
        self.scanner.update(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASHES: [&str; 3] = ["0hm2f1psjpcwg8fijsmr4wwxrx59s092", "1bxagw21mzw0pr7y9jcyjfyrlya5fnxz", "zc842j0rz61mjsp3h3wp5ly71ak6qgdn"];

    fn path(hash: &str, name: &str) -> StorePath {
        StorePath::parse(&format!("{hash}-{name}")).expect("a store path")
    }

    fn found(text: &[u8], piece: usize) -> BTreeSet<StorePath> {
        let candidates = Candidates::new(HASHES.map(|hash| path(hash, "a")));
        let mut scanner = candidates.scanner();
        text.chunks(piece).for_each(|piece| scanner.update(piece));
        scanner.finish()
    }

    #[test]
    fn a_hash_is_found_wherever_it_lies_and_however_the_bytes_are_cut() {
        let [first, second, _] = HASHES;
        let table = [
            (String::new(), vec![]),
            (first.to_owned(), vec![first]),
            (first[1..].to_owned(), vec![]),
            (format!("/nix/store/{first}-a"), vec![first]),
            (format!("\0{second}{first}\0"), vec![first, second]),
            (format!("{first}{first}0{second}"), vec![first, second]),
            (format!("0{}e{}", &first[..31], second), vec![second]),
        ];
        for (text, want) in table {
            let want: BTreeSet<StorePath> = want.into_iter().map(|hash| path(hash, "a")).collect();
            for piece in [1, 2, 7, 31, 32, 33, 1000] {
                assert_eq!(found(text.as_bytes(), piece), want, "{text} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn paths_of_one_hash_are_found_together() {
        let both = [path(HASHES[0], "a"), path(HASHES[0], "b")];
        let mut writer = Candidates::new(both.clone()).writer(Vec::new());
        writer.write_all(HASHES[0].as_bytes()).expect("a Vec takes any bytes");
        assert_eq!(writer.finish(), (BTreeSet::from(both), HASHES[0].as_bytes().to_vec()));
    }

    #[test]
    fn no_candidates_are_never_found() {
        let mut scanner = Candidates::new([]).scanner();
        scanner.update(HASHES[0].as_bytes());
        assert!(scanner.finish().is_empty());
    }
}
