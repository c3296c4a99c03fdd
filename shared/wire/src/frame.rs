//! Framing: a length, then a MessagePack body.
//!
//! Goals: bounded memory whatever a peer claims; fields by name, so that a newer peer may add some. Non-goals: compression,
//! checksums (TLS has both integrity and confidentiality).

use alloc::vec::Vec;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::FRAME_BYTES_MAX;

/// Bytes of the length before a body, little endian. A length of zero, which no message has, marks the end of a stream.
pub const HEADER_BYTES: usize = 4;

/// A frame that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The body is longer than [`FRAME_BYTES_MAX`].
    #[error("frame of {size_bytes} bytes is over the limit of {FRAME_BYTES_MAX}")]
    TooLong {
        /// The body's length, as claimed or as encoded.
        size_bytes: usize,
    },
    /// The message cannot be written as MessagePack.
    #[error("encode message")]
    Encode(#[source] rmp_serde::encode::Error),
    /// The body is not the MessagePack of the expected message.
    #[error("decode message")]
    Decode(#[source] rmp_serde::decode::Error),
}

/// Returns `message` as MessagePack with named fields.
///
/// # Errors
/// [`FrameError::Encode`] if serde refuses the message.
pub fn to_bytes<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    rmp_serde::to_vec_named(message).map_err(FrameError::Encode)
}

/// Reads the MessagePack of one message.
///
/// # Errors
/// [`FrameError::Decode`] if the bytes are not such a message.
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    rmp_serde::from_slice(bytes).map_err(FrameError::Decode)
}

/// Returns a whole frame: header and body.
///
/// # Errors
/// [`FrameError::TooLong`] if the body is over the limit, [`FrameError::Encode`] if serde refuses the message.
pub fn to_frame<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = Vec::new();
    append_frame(&mut frame, message)?;
    Ok(frame)
}

/// Appends a whole frame to others, without making it elsewhere first. After an error the buffer is as it was.
///
/// # Errors
/// As [`to_frame`].
pub fn append_frame<T: Serialize>(buffer: &mut Vec<u8>, message: &T) -> Result<(), FrameError> {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; HEADER_BYTES]);
    let written = rmp_serde::encode::write_named(buffer, message).map_err(FrameError::Encode);
    match written.and_then(|()| body_header(buffer.len() - start - HEADER_BYTES)) {
        Ok(header) => {
            buffer[start..start + HEADER_BYTES].copy_from_slice(&header);
            Ok(())
        }
        Err(err) => {
            buffer.truncate(start);
            Err(err)
        }
    }
}

/// Reads a header and returns the length of the body that follows.
///
/// # Errors
/// [`FrameError::TooLong`] if the peer claims more than the limit; nothing has been allocated by then.
pub fn body_size(header: [u8; HEADER_BYTES]) -> Result<usize, FrameError> {
    let size_bytes = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
    body_header(size_bytes).map(|_| size_bytes)
}

/// Frames out of bytes that arrive in pieces of any length. Memory grows with the bytes that arrive, never with the length that a
/// peer claims.
#[derive(Debug, Default)]
pub struct Assembler {
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    body: Vec<u8>,
}

/// What a piece led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The whole piece was taken, and no frame is complete.
    More,
    /// The end mark.
    End,
    /// A body that arrived in several pieces.
    Whole(Vec<u8>),
    /// So many bytes of the piece, after those that were taken, are a body: the caller need not copy it.
    Ahead(usize),
}

impl Assembler {
    /// Takes bytes up to the end of one frame at most; returns how many, and what they led to.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] if the peer claims more than the limit. The stream is then of no more use.
    pub fn take(&mut self, piece: &[u8]) -> Result<(usize, Step), FrameError> {
        let of_header = piece.len().min(HEADER_BYTES - self.header_bytes);
        let (of_header, rest) = piece.split_at(of_header);
        self.header[self.header_bytes..][..of_header.len()].copy_from_slice(of_header);
        self.header_bytes += of_header.len();
        if self.header_bytes < HEADER_BYTES {
            return Ok((of_header.len(), Step::More));
        }
        let size = body_size(self.header)?;
        if size == 0 {
            self.header_bytes = 0;
            return Ok((of_header.len(), Step::End));
        }
        if self.body.is_empty() && rest.len() >= size {
            self.header_bytes = 0;
            return Ok((of_header.len(), Step::Ahead(size)));
        }
        let of_body = &rest[..rest.len().min(size - self.body.len())];
        self.body.extend_from_slice(of_body);
        let taken = of_header.len() + of_body.len();
        if self.body.len() < size {
            return Ok((taken, Step::More));
        }
        self.header_bytes = 0;
        Ok((taken, Step::Whole(core::mem::take(&mut self.body))))
    }

    /// Says whether nothing of a frame has arrived since the last one.
    pub fn is_between(&self) -> bool {
        self.header_bytes == 0
    }
}

fn body_header(size_bytes: usize) -> Result<[u8; HEADER_BYTES], FrameError> {
    match u32::try_from(size_bytes) {
        Ok(size) if size_bytes <= FRAME_BYTES_MAX => Ok(size.to_le_bytes()),
        Ok(_) | Err(_) => Err(FrameError::TooLong { size_bytes }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Request;

    #[test]
    fn frames_follow_each_other_and_one_that_is_too_long_leaves_no_trace() {
        let mut buffer = to_frame(&Request::Status).expect("small");
        let status = buffer.clone();
        let long = append_frame(&mut buffer, &alloc::string::String::from_iter(core::iter::repeat_n('x', FRAME_BYTES_MAX)));
        assert!(matches!(long, Err(FrameError::TooLong { .. })), "{long:?}");
        append_frame(&mut buffer, &Request::Leader).expect("small");
        assert_eq!(buffer, [status, to_frame(&Request::Leader).expect("small")].concat());
    }

    #[test]
    fn a_frame_survives_its_bytes() {
        let frame = to_frame(&Request::Status).expect("small");
        let (header, body) = frame.split_at(HEADER_BYTES);
        assert_eq!(body_size(header.try_into().expect("four bytes")).expect("small"), body.len());
        assert_eq!(from_bytes::<Request>(body).expect("decodes"), Request::Status);
    }

    /// Takes a stream in pieces; returns the bodies, and whether the end mark came.
    fn bodies(stream: &[u8], piece_bytes: usize) -> Result<(Vec<Vec<u8>>, bool), FrameError> {
        let mut assembler = Assembler::default();
        let mut bodies = Vec::new();
        for mut piece in stream.chunks(piece_bytes) {
            while !piece.is_empty() {
                let (taken, step) = assembler.take(piece)?;
                piece = &piece[taken..];
                match step {
                    Step::More => assert!(piece.is_empty()),
                    Step::End => return Ok((bodies, true)),
                    Step::Whole(body) => bodies.push(body),
                    Step::Ahead(size) => {
                        bodies.push(Vec::from(&piece[..size]));
                        piece = &piece[size..];
                    }
                }
            }
        }
        Ok((bodies, false))
    }

    #[test]
    fn frames_are_assembled_from_pieces_of_any_length() {
        let mut stream = Vec::new();
        let want = [&b"a"[..], b"four", b"a longer body"].map(Vec::from);
        for body in &want {
            stream.extend_from_slice(&body_header(body.len()).expect("small"));
            stream.extend_from_slice(body);
        }
        for piece_bytes in 1..=stream.len() {
            assert_eq!(bodies(&stream, piece_bytes).expect("small"), (want.to_vec(), false), "in pieces of {piece_bytes}");
        }
        stream.extend_from_slice(&[0; HEADER_BYTES]);
        for piece_bytes in 1..=stream.len() {
            assert_eq!(bodies(&stream, piece_bytes).expect("small"), (want.to_vec(), true), "in pieces of {piece_bytes}");
        }
    }

    #[test]
    fn an_assembler_refuses_a_claimed_length_before_it_has_the_body() {
        let mut assembler = Assembler::default();
        assert_eq!(assembler.take(&[0xff; 3]).expect("no header yet"), (3, Step::More));
        assert!(!assembler.is_between());
        assert!(matches!(assembler.take(&[0xff; 3]), Err(FrameError::TooLong { .. })));
        assert_eq!(assembler.body.capacity(), 0);
    }

    #[test]
    fn a_claimed_length_over_the_limit_is_refused() {
        assert!(matches!(body_size(u32::MAX.to_le_bytes()), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn bytes_that_are_no_message_are_refused() {
        for bytes in [&b""[..], b"\xc1", b"\x81\xa6Status", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff"] {
            assert!(from_bytes::<Request>(bytes).is_err(), "{bytes:x?}");
        }
    }
}
