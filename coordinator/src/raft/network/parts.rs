//! Messages of any length on a stream of bounded frames: short ones in one chunk, long ones in several.
//!
//! One log entry may be longer than a frame (a build with very many roots), and several travel together.

use kiln_link::{LinkError, Receiver, Sender};
use kiln_wire::frame;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::messages::Chunk;

/// Queues a message without sending it, and returns how many bytes wait.
pub fn feed<T: Serialize>(sender: &mut Sender, message: &T) -> Result<usize, LinkError> {
    let bytes = frame::to_bytes(message)?;
    if bytes.len() <= CHUNK_BYTES {
        return sender.feed(&Chunk { more: false, bytes });
    }
    let mut waiting = 0;
    let mut left = bytes.chunks(CHUNK_BYTES).peekable();
    while let Some(piece) = left.next() {
        waiting = sender.feed(&Chunk { more: left.peek().is_some(), bytes: piece.to_vec() })?;
    }
    Ok(waiting)
}

/// Waits for the next message; `None` if the peer finished the stream. Cancel safe only between messages.
pub async fn recv<T: DeserializeOwned>(receiver: &mut Receiver) -> Result<Option<T>, LinkError> {
    let Some(first) = receiver.recv::<Chunk>().await? else { return Ok(None) };
    let mut bytes = first.bytes;
    let mut more = first.more;
    while more {
        let chunk = receiver.recv::<Chunk>().await?.ok_or(LinkError::Truncated)?;
        if bytes.len() + chunk.bytes.len() > MESSAGE_BYTES_MAX {
            return Err(frame::FrameError::TooLong { size_bytes: bytes.len() + chunk.bytes.len() }.into());
        }
        bytes.extend_from_slice(&chunk.bytes);
        more = chunk.more;
    }
    Ok(Some(frame::from_bytes(&bytes)?))
}

/// Bytes of one chunk: far below a frame's limit, and enough that their number does not matter.
const CHUNK_BYTES: usize = 4 << 20;
/// Bytes of one message: the longest entry that the log takes, and the others that travel with it.
const MESSAGE_BYTES_MAX: usize = crate::raft::wal::PAYLOAD_BYTES_MAX + (16 << 20);
