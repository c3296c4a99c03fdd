//! Framing: a length, then a MessagePack body.
//!
//! Goals: bounded memory whatever a peer claims; fields by name, so that a newer peer may add some. Non-goals: compression,
//! checksums (TLS has both integrity and confidentiality).

use alloc::vec::Vec;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::FRAME_BYTES_MAX;

/// Bytes of the length before a body, little endian.
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
    let mut frame = Vec::from([0; HEADER_BYTES]);
    frame.append(&mut to_bytes(message)?);
    let size_bytes = frame.len() - HEADER_BYTES;
    let header = body_header(size_bytes)?;
    frame[..HEADER_BYTES].copy_from_slice(&header);
    Ok(frame)
}

/// Reads a header and returns the length of the body that follows.
///
/// # Errors
/// [`FrameError::TooLong`] if the peer claims more than the limit; nothing has been allocated by then.
pub fn body_size(header: [u8; HEADER_BYTES]) -> Result<usize, FrameError> {
    let size_bytes = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
    body_header(size_bytes).map(|_| size_bytes)
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
    fn a_frame_survives_its_bytes() {
        let frame = to_frame(&Request::Status).expect("small");
        let (header, body) = frame.split_at(HEADER_BYTES);
        assert_eq!(body_size(header.try_into().expect("four bytes")).expect("small"), body.len());
        assert_eq!(from_bytes::<Request>(body).expect("decodes"), Request::Status);
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
