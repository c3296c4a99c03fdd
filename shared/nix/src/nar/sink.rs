//! Adapters that let one pass over an archive's bytes do several things.

use std::io::{self, Read, Write};

use kiln_wire::Sha256Hash;
use sha2::{Digest, Sha256};

/// Hash and size of an archive, uncompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NarDigest {
    /// SHA-256 of its bytes, `NarHash`.
    pub hash: Sha256Hash,
    /// How many bytes, `NarSize`.
    pub size_bytes: u64,
}

/// Hashes and counts what passes to the writer within.
#[derive(Debug)]
pub struct HashWriter<W> {
    inner: W,
    hasher: Sha256,
    size_bytes: u64,
}

impl<W> HashWriter<W> {
    /// Starts with no bytes.
    pub fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), size_bytes: 0 }
    }

    /// Returns how many bytes have passed.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Returns the digest of all that passed, and the writer within.
    pub fn finish(self) -> (NarDigest, W) {
        (NarDigest { hash: Sha256Hash(self.hasher.finalize().into()), size_bytes: self.size_bytes }, self.inner)
    }
}

impl<W: Write> Write for HashWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..taken]);
        self.size_bytes += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Copies everything that is read from the reader to the writer: unpack an archive and hash or scan it in the same pass.
#[derive(Debug)]
pub struct Tee<R, W> {
    reader: R,
    writer: W,
}

impl<R, W> Tee<R, W> {
    /// Joins the two.
    pub fn new(reader: R, writer: W) -> Self {
        Self { reader, writer }
    }

    /// Returns the two.
    pub fn into_parts(self) -> (R, W) {
        (self.reader, self.writer)
    }
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let taken = self.reader.read(buffer)?;
        self.writer.write_all(&buffer[..taken])?;
        Ok(taken)
    }
}
