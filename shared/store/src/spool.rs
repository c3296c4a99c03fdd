//! Bytes on their way: in memory while they are few, in an unnamed temporary file once they are many.
//!
//! A spool has no name, so nothing is left behind when its process dies. It is not durable and says nothing about its content.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::blob::{BlobBytes, copy_at};

/// Bytes that a spool keeps in memory before it moves to a file.
pub const SPOOL_MEMORY_BYTES: usize = 1 << 20;

/// Written from the front, read at any offset.
#[derive(Debug)]
pub struct Spool {
    body: Body,
    size_bytes: u64,
}

#[derive(Debug)]
enum Body {
    Memory { bytes: Vec<u8>, dir: PathBuf },
    File(File),
}

impl Spool {
    /// Starts an empty spool. A temporary file, if one is needed, is made in `dir`.
    pub fn new(dir: &Path) -> Self {
        Self { body: Body::Memory { bytes: Vec::new(), dir: dir.to_owned() }, size_bytes: 0 }
    }

    /// Returns the bytes written so far.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Returns the content if it is in memory.
    pub fn as_memory(&self) -> Option<&[u8]> {
        match &self.body {
            Body::Memory { bytes, .. } => Some(bytes),
            Body::File(_) => None,
        }
    }

    /// Returns the bytes themselves, to be sent.
    pub fn into_bytes(self) -> BlobBytes {
        match self.body {
            Body::Memory { bytes, .. } => BlobBytes::Memory(bytes.into()),
            Body::File(file) => BlobBytes::File(file),
        }
    }

    /// Reads up to `buffer.len()` bytes from `offset_bytes` on; 0 at the end.
    ///
    /// # Errors
    /// What reading the temporary file gives.
    pub fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        match &self.body {
            Body::Memory { bytes, .. } => Ok(copy_at(bytes, buffer, offset_bytes)),
            Body::File(file) => file.read_at(buffer, offset_bytes),
        }
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = match &mut self.body {
            Body::Memory { bytes: held, .. } if held.len() + bytes.len() <= SPOOL_MEMORY_BYTES => {
                held.extend_from_slice(bytes);
                bytes.len()
            }
            Body::Memory { bytes: held, dir } => {
                let mut file = tempfile::tempfile_in(dir)?;
                file.write_all(held)?;
                let count = file.write(bytes)?;
                self.body = Body::File(file);
                count
            }
            Body::File(file) => file.write(bytes)?,
        };
        self.size_bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a spool from its start.
pub(crate) struct SpoolReader<'a> {
    spool: &'a Spool,
    offset_bytes: u64,
}

impl<'a> SpoolReader<'a> {
    pub(crate) fn new(spool: &'a Spool) -> Self {
        Self { spool, offset_bytes: 0 }
    }
}

impl Read for SpoolReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.spool.read_at(buffer, self.offset_bytes)?;
        self.offset_bytes += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spool_reads_the_same_from_memory_and_from_a_file() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let content: Vec<u8> = (0..3 * SPOOL_MEMORY_BYTES).map(|i| (i % 251) as u8).collect();
        let mut spool = Spool::new(dir.path());
        for (piece, in_memory) in content.chunks(SPOOL_MEMORY_BYTES).zip([true, false, false]) {
            spool.write_all(piece).expect("writes");
            assert_eq!(spool.as_memory().is_some(), in_memory);
            let mut read = vec![0; 1000];
            let offset = spool.size_bytes() - 700;
            assert_eq!(spool.read_at(&mut read, offset).expect("reads"), 700);
            assert_eq!(read[..700], content[offset as usize..][..700]);
            assert_eq!(spool.read_at(&mut read, u64::MAX / 4).expect("reads"), 0);
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 0, "the file has no name");
    }
}
