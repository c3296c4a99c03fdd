//! One zstd frame, decoded strictly and with bounded memory.
//!
//! A blob is exactly one frame: a second frame, a skippable frame or bytes after the end are refused, because a blob's facts must
//! describe its bytes and nothing else. Neither the output nor the window is taken on the frame's word. Does not look at the content.

use std::io::{self, Read};

use kiln_wire::limits::ZSTD_WINDOW_LOG_MAX;
use zstd::stream::raw::{DParameter, Decoder, Operation};

/// Bytes that one decoding step may produce.
const STEP_BYTES: usize = 128 << 10;

/// Level 19 uses a window of 8 MiB whatever the content's size, so this much is always allowed.
const WINDOW_LOG_MIN: u32 = 23;

/// Bytes that are not one zstd frame of at most the declared size.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// No decoder could be made.
    #[error("make a zstd decoder")]
    Open(#[source] io::Error),
    /// zstd refuses the bytes: damaged, not zstd at all, or a window over the limit.
    #[error("decompress blob near byte {offset_bytes}")]
    Decode {
        /// Compressed bytes that were taken before.
        offset_bytes: u64,
        /// What zstd says.
        #[source]
        err: io::Error,
    },
    /// More comes out than was declared. Decoding stops there.
    #[error("decompress blob: it holds more than the declared {declared_bytes} bytes")]
    TooLong {
        /// The declared size of the content.
        declared_bytes: u64,
    },
    /// Something follows the frame.
    #[error("decompress blob: {extra_bytes} or more bytes follow its zstd frame, which ends at byte {offset_bytes}")]
    Trailing {
        /// Where the frame ends.
        offset_bytes: u64,
        /// Bytes seen after it.
        extra_bytes: u64,
    },
    /// The frame is not complete.
    #[error("decompress blob: it ends after {offset_bytes} bytes, inside its zstd frame")]
    Truncated {
        /// Compressed bytes that were there.
        offset_bytes: u64,
    },
}

/// Decodes one frame.
pub(crate) struct Frame {
    decoder: Decoder<'static>,
    consumed_bytes: u64,
    produced_bytes: u64,
    declared_bytes: u64,
    done: bool,
}

impl Frame {
    /// Starts a frame whose content is declared to have `declared_bytes`.
    pub(crate) fn new(declared_bytes: u64) -> Result<Self, FrameError> {
        let mut decoder = Decoder::new().map_err(FrameError::Open)?;
        decoder.set_parameter(DParameter::WindowLogMax(window_log_max(declared_bytes))).map_err(FrameError::Open)?;
        Ok(Self { decoder, consumed_bytes: 0, produced_bytes: 0, declared_bytes, done: false })
    }

    /// Returns a buffer that one step cannot need more of.
    pub(crate) fn step_buffer(&self) -> Vec<u8> {
        let bytes = usize::try_from(self.declared_bytes).map_or(STEP_BYTES, |declared| STEP_BYTES.min(declared.saturating_add(1)));
        vec![0; bytes]
    }

    /// Takes some of `input` and fills some of `output`: returns both counts. Both are 0 only if the frame needs more input.
    pub(crate) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<(usize, usize), FrameError> {
        if self.done {
            let extra_bytes = u64::try_from(input.len()).unwrap_or(u64::MAX);
            return match extra_bytes {
                0 => Ok((0, 0)),
                _ => Err(FrameError::Trailing { offset_bytes: self.consumed_bytes, extra_bytes }),
            };
        }
        let status =
            self.decoder.run_on_buffers(input, output).map_err(|err| FrameError::Decode { offset_bytes: self.consumed_bytes, err })?;
        self.consumed_bytes += status.bytes_read as u64;
        self.produced_bytes += status.bytes_written as u64;
        if self.produced_bytes > self.declared_bytes {
            return Err(FrameError::TooLong { declared_bytes: self.declared_bytes });
        }
        self.done = status.remaining == 0;
        Ok((status.bytes_read, status.bytes_written))
    }

    /// Decodes all of `input`, handing each piece of content to `sink`.
    pub(crate) fn feed<E: From<FrameError>>(
        &mut self,
        mut input: &[u8],
        buffer: &mut [u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            let (taken, made) = self.step(input, buffer)?;
            input = &input[taken..];
            if made > 0 {
                sink(&buffer[..made])?;
            }
            if input.is_empty() && (made < buffer.len() || self.done) {
                return Ok(());
            }
        }
    }

    /// Says whether the frame is complete.
    pub(crate) fn finish(&self) -> Result<(), FrameError> {
        match self.done {
            true => Ok(()),
            false => Err(FrameError::Truncated { offset_bytes: self.consumed_bytes }),
        }
    }
}

/// A window larger than the content is of no use to an honest compressor, beyond what its level takes anyway.
fn window_log_max(declared_bytes: u64) -> u32 {
    let needed = u64::BITS - declared_bytes.leading_zeros();
    needed.clamp(WINDOW_LOG_MIN, ZSTD_WINDOW_LOG_MAX)
}

/// Reads the content of one frame from a reader of its bytes.
pub(crate) struct FrameReader<R> {
    inner: R,
    frame: Frame,
    input: Vec<u8>,
    start: usize,
    end: usize,
}

impl<R: Read> FrameReader<R> {
    pub(crate) fn new(inner: R, declared_bytes: u64) -> Result<Self, FrameError> {
        Ok(Self { inner, frame: Frame::new(declared_bytes)?, input: vec![0; INPUT_BYTES], start: 0, end: 0 })
    }

    /// Reads on to the end of the blob: nothing may be left, neither content nor bytes after the frame.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        match self.read(&mut [0])? {
            0 => self.frame.finish().map_err(io::Error::other),
            _ => Err(io::Error::other(FrameError::TooLong { declared_bytes: self.frame.produced_bytes - 1 })),
        }
    }
}

/// Compressed bytes that are read at a time.
const INPUT_BYTES: usize = 64 << 10;

impl<R: Read> Read for FrameReader<R> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        if output.is_empty() {
            return Ok(0);
        }
        loop {
            let exhausted = if self.start == self.end {
                self.start = 0;
                self.end = self.inner.read(&mut self.input)?;
                self.end == 0
            } else {
                false
            };
            let (taken, made) = self.frame.step(&self.input[self.start..self.end], output).map_err(io::Error::other)?;
            self.start += taken;
            if made > 0 {
                return Ok(made);
            }
            if exhausted {
                return self.frame.finish().map(|()| 0).map_err(io::Error::other);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(blob: &[u8], declared_bytes: u64, chunk: usize) -> Result<Vec<u8>, FrameError> {
        let mut frame = Frame::new(declared_bytes)?;
        let mut buffer = frame.step_buffer();
        let mut content = Vec::new();
        for piece in blob.chunks(chunk) {
            frame.feed(piece, &mut buffer, |made| {
                content.extend_from_slice(made);
                Ok::<(), FrameError>(())
            })?;
        }
        frame.finish().map(|()| content)
    }

    fn read(blob: &[u8], declared_bytes: u64) -> io::Result<Vec<u8>> {
        let mut reader = FrameReader::new(blob, declared_bytes).map_err(io::Error::other)?;
        let mut content = Vec::new();
        reader.read_to_end(&mut content)?;
        reader.finish().map(|()| content)
    }

    fn compress(content: &[u8]) -> Vec<u8> {
        zstd::encode_all(content, 1).expect("compresses in memory")
    }

    #[test]
    fn a_frame_gives_its_content_in_pieces_of_any_size() {
        let content: Vec<u8> = (0..400_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect();
        let blob = compress(&content);
        let size_bytes = content.len() as u64;
        for chunk in [1 << 20, 4096, 777, 1] {
            assert_eq!(decode(&blob, size_bytes, chunk).expect("decodes"), content, "chunk {chunk}");
        }
        assert_eq!(read(&blob, size_bytes).expect("decodes"), content);
        assert_eq!(decode(&compress(b""), 0, 1).expect("decodes"), b"");
    }

    #[test]
    fn a24_what_is_not_one_whole_frame_of_the_declared_size_is_refused() {
        let content = vec![7u8; 100_000];
        let blob = compress(&content);
        let two_frames = [blob.clone(), blob.clone()].concat();
        let trailing = [blob.as_slice(), b"x"].concat();
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0][..], &blob].concat();
        let bomb = compress(&vec![0u8; 50 << 20]);
        let table: [(&str, &[u8], &str); 7] = [
            ("two frames", &two_frames, "follow its zstd frame"),
            ("a byte after the frame", &trailing, "follow its zstd frame"),
            ("a skippable frame before it", &skippable, "follow its zstd frame"),
            ("cut off", &blob[..blob.len() - 1], "inside its zstd frame"),
            ("nothing", b"", "inside its zstd frame"),
            ("not zstd", b"not a zstd frame", "decompress blob near byte"),
            ("a bomb", &bomb, "more than the declared"),
        ];
        for (case, bytes, expected) in table {
            for error in [
                decode(bytes, 100_000, 999).map(drop).expect_err(case).to_string(),
                read(bytes, 100_000).map(drop).expect_err(case).to_string(),
            ] {
                assert!(error.contains(expected), "{case}: {error}");
            }
        }
    }

    #[test]
    fn a24_a_window_over_the_limit_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("encoder");
        encoder.set_parameter(zstd::zstd_safe::CParameter::WindowLog(27)).expect("parameter");
        io::Write::write_all(&mut encoder, &vec![3u8; 1000]).expect("in memory");
        let blob = encoder.finish().expect("in memory");
        let error = decode(&blob, 1000, 10_000).expect_err("window of 128 MiB for 1000 bytes");
        assert!(matches!(error, FrameError::Decode { .. }), "{error}");
    }
}
