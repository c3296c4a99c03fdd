//! xz files that others chose, decoded within a bound of memory whatever they claim to need.
//!
//! A block's header names the size of its dictionary, up to 4 GiB. Absences: other compressions; zstd's decoder has its own bound
//! (128 MiB), deflate needs 32 KiB.

use std::io::{self, Read};

use lzma_rust2::XzReader;

/// Memory that a decoder may use, in KiB: 128 MiB. The strongest preset (`xz -9`) asks for a dictionary of 64 MiB.
const MEMORY_KIB_MAX: u32 = 128 << 10;

/// It needs more than that.
#[derive(Debug, thiserror::Error)]
#[error("decompress xz: it asks for more than {} MiB of memory; compress it with a dictionary of 96 MiB or less", MEMORY_KIB_MAX >> 10)]
struct TooHungry;

/// Decodes what `compressed` holds: any number of streams one after another, as `xz` does.
pub struct Decoder<R: Read>(XzReader<R>);

impl<R: Read> Decoder<R> {
    /// Starts at the first byte of an xz file.
    pub fn new(compressed: R) -> Self {
        Self(XzReader::new_mem_limit(compressed, true, MEMORY_KIB_MAX))
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|err| match err.kind() {
            io::ErrorKind::OutOfMemory => io::Error::new(io::ErrorKind::OutOfMemory, TooHungry),
            _ => err,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An xz file of one block.
    const SMALL: &str = include_str!("fetchurl/hi.nar.xz.hex");
    /// The block's header follows the stream's.
    const BLOCK_AT: usize = 12;

    fn small() -> Vec<u8> {
        let hex: String = SMALL.split_whitespace().collect();
        (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex")).collect()
    }

    /// The same file, said to need a dictionary of `2 | size & 1` times two to the power of `size / 2 + 11` bytes.
    pub fn claiming(size: u8) -> Vec<u8> {
        let mut file = small();
        let header_bytes = (usize::from(file[BLOCK_AT]) + 1) * 4;
        let header = &mut file[BLOCK_AT..BLOCK_AT + header_bytes];
        // Flags, then the filter: LZMA2, one byte of properties.
        let filter = header.windows(2).position(|pair| pair == [0x21, 0x01]).expect("LZMA2 is the filter");
        header[filter + 2] = size;
        let (body, checksum) = header.split_at_mut(header_bytes - 4);
        let mut crc = flate2::Crc::new();
        crc.update(body);
        checksum.copy_from_slice(&crc.sum().to_le_bytes());
        file
    }

    fn decoded(file: &[u8]) -> Result<usize, String> {
        let mut found = Vec::new();
        Decoder::new(file).read_to_end(&mut found).map_err(|err| err.to_string())
    }

    #[test]
    fn a_dictionary_is_taken_up_to_the_bound_and_refused_above_it() {
        let hungry = Err(TooHungry.to_string());
        let whole = decoded(&small());
        assert!(whole.as_ref().is_ok_and(|bytes| *bytes > 0), "{whole:?}");
        // 64, 96 and 128 MiB; 4 GiB.
        for (size, expect) in [(28, &whole), (29, &whole), (30, &hungry), (40, &hungry)] {
            assert_eq!(decoded(&claiming(size)), *expect, "{size}");
        }
    }

    #[test]
    fn a_second_stream_is_bounded_as_the_first() {
        let file = [small(), claiming(40)].concat();
        assert_eq!(decoded(&file), Err(TooHungry.to_string()));
    }

    #[test]
    fn hundreds_of_thousands_of_empty_streams_need_no_stack() {
        // Header and footer of a stream without blocks, as `xz` makes it of an empty file.
        let mut empty = small()[..12].to_vec();
        let index = [0u8, 0, 0, 0];
        let mut crc = flate2::Crc::new();
        crc.update(&index);
        empty.extend(index);
        empty.extend(crc.sum().to_le_bytes());
        // The size of the index in fours, less one; the flags again.
        let footer = [&[1, 0, 0, 0], &empty[6..8]].concat();
        let mut crc = flate2::Crc::new();
        crc.update(&footer);
        empty.extend(crc.sum().to_le_bytes());
        empty.extend(footer);
        empty.extend(b"YZ");
        assert_eq!(decoded(&empty.repeat(300_000)), Ok(0));
    }
}
