//! A blob becomes a file tree: bytes of the blob in, verified NAR restored on disk.
//!
//! The tree lies at its destination before its hash is known, so the caller unpacks to a temporary name in a private directory and
//! renames on success; after a failure the remains are the caller's to delete. Restoring never leaves the destination (kiln-nix).

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use kiln_nix::nar::{self, NarError};
use kiln_wire::{PathInfo, Sha256Hash, StorePath};
use sha2::{Digest, Sha256};

use crate::frame::{FrameError, FrameReader};
use crate::lie::Lie;

/// A blob that was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The bytes are not what was said of them.
    #[error("unpack `{path}`")]
    Refused {
        /// The path.
        path: StorePath,
        /// What differs.
        #[source]
        lie: Box<Lie>,
    },
    /// The NAR is broken, or the destination cannot be written.
    #[error("unpack `{path}` to `{}`", destination.display())]
    Restore {
        /// The path.
        path: StorePath,
        /// Where it should lie.
        destination: PathBuf,
        /// What happened.
        #[source]
        err: NarError,
    },
}

/// Reads the NAR inside a blob, counting and hashing it.
pub struct NarReader<R> {
    frame: FrameReader<R>,
    sha256: Sha256,
    size_bytes: u64,
}

impl<R: Read> NarReader<R> {
    /// Starts at the first byte of a blob that is said to hold a NAR of `nar_size_bytes`.
    ///
    /// # Errors
    /// [`FrameError::Open`] if no decoder can be made.
    pub fn new(blob: R, nar_size_bytes: u64) -> Result<Self, FrameError> {
        Ok(Self { frame: FrameReader::new(blob, nar_size_bytes)?, sha256: Sha256::new(), size_bytes: 0 })
    }

    /// Ends the reading: everything must have been read. Returns the NAR's SHA-256 and size.
    ///
    /// # Errors
    /// What reading on to the end of the blob gives; [`io::ErrorKind::InvalidData`] if there is more.
    pub fn finish(self) -> io::Result<(Sha256Hash, u64)> {
        self.frame.finish()?;
        Ok((Sha256Hash(self.sha256.finalize().into()), self.size_bytes))
    }
}

impl<R: Read> Read for NarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.frame.read(buffer)?;
        self.sha256.update(&buffer[..count]);
        self.size_bytes += count as u64;
        Ok(count)
    }
}

/// Unpacks the blob of `info`, read from `blob`, to `destination`, which must not exist. Blocks.
///
/// # Errors
/// [`UnpackError::Refused`] if the bytes are not those of `info`; [`UnpackError::Restore`] if the NAR breaks a rule or the disk
/// refuses. Something may then lie at `destination`.
pub fn unpack(info: &PathInfo, blob: impl Read, destination: &Path) -> Result<(), UnpackError> {
    let refuse = |lie: Lie| UnpackError::Refused { path: info.path.clone(), lie: Box::new(lie) };
    let restore = |err| UnpackError::Restore { path: info.path.clone(), destination: destination.to_owned(), err };
    let nar = NarReader::new(blob, info.nar_size_bytes).map_err(|err| refuse(err.into()))?;
    let mut nar = io::BufReader::with_capacity(READ_BYTES, nar);
    nar::restore(&mut nar, destination).map_err(restore)?;
    let (found, found_bytes) = nar.into_inner().finish().map_err(|err| restore(NarError::Read(err)))?;
    if found_bytes != info.nar_size_bytes {
        return Err(refuse(Lie::NarSize { stated_bytes: info.nar_size_bytes, found_bytes }));
    }
    if found != info.nar_hash {
        return Err(refuse(Lie::NarHash { stated: info.nar_hash, found }));
    }
    Ok(())
}

/// NAR bytes decoded at a time.
const READ_BYTES: usize = 128 << 10;
