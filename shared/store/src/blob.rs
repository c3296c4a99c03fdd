//! A stored blob, open for reading at any offset.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path as FilePath;

use bytes::Bytes;
use futures::StreamExt;
use object_store::path::Path;
use object_store::{GetResult, GetResultPayload};

use crate::spool::{SPOOL_MEMORY_BYTES, Spool};

/// Bytes that can be read at any offset.
#[derive(Debug)]
pub enum BlobBytes {
    /// In a file.
    File(File),
    /// In memory.
    Memory(Bytes),
}

/// Reads a stored blob. Reading a large one blocks.
#[derive(Debug)]
pub struct BlobReader {
    bytes: BlobBytes,
    key: Path,
    size_bytes: u64,
}

impl BlobReader {
    /// Opens an object. Where the store has no files, a large object is fetched to an unnamed file in `spool_dir`.
    pub(crate) async fn open(object: GetResult, spool_dir: &FilePath) -> Result<Self, object_store::Error> {
        let (key, size_bytes) = (object.meta.location.clone(), object.meta.size);
        let bytes = match object.payload {
            GetResultPayload::File(file, _) => BlobBytes::File(file),
            GetResultPayload::Stream(_) if size_bytes <= SPOOL_MEMORY_BYTES as u64 => BlobBytes::Memory(object.bytes().await?),
            GetResultPayload::Stream(mut stream) => {
                let mut spool = Spool::new(spool_dir);
                while let Some(piece) = stream.next().await {
                    spool.write_all(&piece?).map_err(|err| object_store::Error::Generic { store: "spool", source: err.into() })?;
                }
                spool.into_bytes()
            }
        };
        Ok(Self { bytes, key, size_bytes })
    }

    /// Returns the blob's size.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Returns the key of the object, for messages about its bytes.
    pub fn object_key(&self) -> &str {
        self.key.as_ref()
    }

    /// Returns the bytes themselves, to be sent.
    pub fn into_bytes(self) -> BlobBytes {
        self.bytes
    }

    /// Reads up to `buffer.len()` bytes from `offset_bytes` on; 0 at the end.
    ///
    /// # Errors
    /// What the disk says.
    pub fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        self.bytes.read_at(buffer, offset_bytes)
    }

    /// Returns a reader from the start to the end.
    pub fn reader(&self) -> impl Read + '_ {
        self.bytes.reader()
    }
}

impl BlobBytes {
    /// Reads up to `buffer.len()` bytes from `offset_bytes` on; 0 at the end.
    ///
    /// # Errors
    /// What the disk says.
    pub fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read_at(buffer, offset_bytes),
            Self::Memory(bytes) => Ok(copy_at(bytes, buffer, offset_bytes)),
        }
    }

    /// Returns how many they are.
    ///
    /// # Errors
    /// What the disk says.
    pub fn size_bytes(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => file.metadata().map(|meta| meta.len()),
            Self::Memory(bytes) => Ok(bytes.len() as u64),
        }
    }

    /// Returns another handle to the same bytes.
    ///
    /// # Errors
    /// The kernel's, if there are no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::File(file) => file.try_clone().map(Self::File),
            Self::Memory(bytes) => Ok(Self::Memory(bytes.clone())),
        }
    }

    /// Returns a reader from the start to the end.
    pub fn reader(&self) -> impl Read + '_ {
        Sequential { bytes: self, offset_bytes: 0 }
    }
}

/// Copies what `bytes` has from `offset_bytes` on.
pub(crate) fn copy_at(bytes: &[u8], buffer: &mut [u8], offset_bytes: u64) -> usize {
    let start = usize::try_from(offset_bytes).map_or(bytes.len(), |offset| offset.min(bytes.len()));
    let count = buffer.len().min(bytes.len() - start);
    buffer[..count].copy_from_slice(&bytes[start..start + count]);
    count
}

struct Sequential<'a> {
    bytes: &'a BlobBytes,
    offset_bytes: u64,
}

impl Read for Sequential<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.bytes.read_at(buffer, self.offset_bytes)?;
        self.offset_bytes += count as u64;
        Ok(count)
    }
}
