//! From a file to the bytes of a tar archive: compression, and bounds on what comes out of it.

use std::io::{self, BufReader, Read};

use super::super::{Bounds, Ended, xz};
use super::{UnpackError, members};

/// Finds out how a file is compressed by how it starts.
///
/// # Errors
/// [`UnpackError::Format`] if it cannot be decoded here, [`UnpackError::Read`] if the disk fails.
pub fn decoder(mut file: std::fs::File, src: &str) -> Result<Box<dyn Read>, UnpackError> {
    let failed = |err| UnpackError::Read { src: src.into(), err };
    let mut start = Vec::new();
    (&mut file).take(START_BYTES).read_to_end(&mut start).map_err(failed)?;
    let kind = COMPRESSIONS.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, kind)| *kind);
    let bytes = BufReader::with_capacity(64 << 10, io::Cursor::new(start).chain(file));
    match kind {
        None => Ok(Box::new(bytes)),
        Some(Compression::Gzip) => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(bytes))),
        Some(Compression::Xz) => Ok(Box::new(xz::Decoder::new(bytes))),
        Some(Compression::Zstd) => Ok(Box::new(zstd::Decoder::with_buffer(bytes).map_err(failed)?)),
        Some(Compression::Unknown(format)) => Err(UnpackError::Format { src: src.into(), format }),
    }
}

/// Bytes that tell compressions apart.
const START_BYTES: u64 = 8;

#[derive(Clone, Copy)]
enum Compression {
    Gzip,
    Xz,
    Zstd,
    /// Known by name only.
    Unknown(&'static str),
}

/// How files start. A tar archive starts with a name and is what is left.
const COMPRESSIONS: [(&[u8], Compression); 10] = [
    (b"\x1f\x8b", Compression::Gzip),
    (b"\xfd7zXZ\0", Compression::Xz),
    (b"\x28\xb5\x2f\xfd", Compression::Zstd),
    (b"BZh", Compression::Unknown("bzip2")),
    (b"\x1f\x9d", Compression::Unknown("compress (.Z)")),
    (b"LZIP", Compression::Unknown("lzip")),
    (b"\x04\x22\x4d\x18", Compression::Unknown("lz4")),
    (b"\x5d\0\0", Compression::Unknown("lzma")),
    (b"PK\x03\x04", Compression::Unknown("zip")),
    (b"7z\xbc\xaf\x27\x1c", Compression::Unknown("7-Zip")),
];

/// Reads a decoder's output, as long as the attempt may go on and not for ever: headers and padding of a tarball count in no output.
pub struct Metered<'a> {
    inner: Box<dyn Read>,
    bounds: &'a Bounds,
    left_bytes: u64,
    limit_bytes: u64,
}

/// The archive is longer than the largest output could be packed.
#[derive(Debug, thiserror::Error)]
#[error("more than {0} bytes")]
struct TooLong(u64);

impl<'a> Metered<'a> {
    /// Starts at the first byte.
    pub fn new(inner: Box<dyn Read>, bounds: &'a Bounds) -> Self {
        let limit_bytes = bounds.output_bytes_max().saturating_add(members::MEMBERS_MAX * OVERHEAD_BYTES);
        Self { inner, bounds, left_bytes: limit_bytes, limit_bytes }
    }
}

/// A member's header, an extended one before it and padding.
const OVERHEAD_BYTES: u64 = 2048;

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.bounds.check().map_err(io::Error::other)?;
        let count = self.inner.read(buffer)?;
        self.left_bytes = self.left_bytes.checked_sub(count as u64).ok_or_else(|| io::Error::other(TooLong(self.limit_bytes)))?;
        Ok(count)
    }
}

/// Tells a bound that was hit from a damaged archive.
pub fn stopped_by(src: &str, err: io::Error) -> UnpackError {
    let inner = err.get_ref();
    if let Some(ended) = inner.and_then(|inner| inner.downcast_ref::<Ended>()) {
        return UnpackError::Ended(*ended);
    }
    if let Some(TooLong(limit)) = inner.and_then(|inner| inner.downcast_ref::<TooLong>()) {
        return UnpackError::TooLarge { src: src.into(), limit: *limit, unit: "bytes, headers included" };
    }
    UnpackError::Read { src: src.into(), err }
}
