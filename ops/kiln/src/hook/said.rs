//! What a hook and the agent say to each other: frames of [`kiln_wire::frame`] on a Unix socket. Pure.
//!
//! Goals: each side knows when the other is gone or hangs; memory is bounded by a frame. Non-goals: hooks and agents of different
//! programs, which never meet: the name of the socket says which program it is.

use kiln_nix::hook::Settings;
use kiln_wire::frame::{self, FrameError, HEADER_BYTES};
use serde::{Deserialize, Serialize};

/// What is spoken. The name of an agent's socket holds it.
pub(super) const PROTOCOL: u32 = 1;

/// What a hook says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromHook {
    /// The first word: which protocol it speaks, and what Nix has set.
    Hello { protocol: u32, settings: Settings },
    /// A question of Nix, in its bytes.
    Question(#[serde(with = "serde_bytes")] Vec<u8>),
    /// What Nix says of the build that was taken, in its bytes.
    Inputs(#[serde(with = "serde_bytes")] Vec<u8>),
}

/// What a hook is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ToHook {
    /// The agent speaks this protocol, and is there.
    Welcome { protocol: u32 },
    /// For standard error: notes, and answers to Nix.
    Say(String),
    /// For the builder's log.
    Log(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The question is answered.
    Answered(Answered),
    /// The build is over, and the hook ends with this.
    Ended(u8),
    /// Nothing happened, and the agent is there.
    Alive,
}

/// What an answer was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answered {
    /// Nix may ask for something else.
    No,
    /// Nix asks no further.
    NoForGood,
    /// Nix says next what the build needs.
    Taken,
}

/// Divides what comes into messages.
#[derive(Debug, Default)]
pub(super) struct Frames {
    bytes: Vec<u8>,
    /// Bytes of these that were returned.
    taken: usize,
}

impl Frames {
    /// Takes what came.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.taken));
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns the next message, if it is whole.
    pub(super) fn next<T: serde::de::DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let rest = &self.bytes[self.taken..];
        let Some((header, rest)) = rest.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let size = frame::body_size(*header)?;
        let Some(body) = rest.get(..size) else { return Ok(None) };
        let message = frame::from_bytes(body)?;
        self.taken += HEADER_BYTES + size;
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_whole_in_whatever_pieces_they_come() {
        let said = [
            ToHook::Welcome { protocol: PROTOCOL },
            ToHook::Say("# accept\nkiln\n".to_owned()),
            ToHook::Log(vec![0, 255, 10]),
            ToHook::Answered(Answered::Taken),
            ToHook::Ended(100),
        ];
        let bytes: Vec<u8> = said.iter().flat_map(|message| frame::to_frame(message).expect("a frame")).collect();
        for size in [1, 3, 4, 7, bytes.len()] {
            let mut frames = Frames::default();
            let mut heard: Vec<ToHook> = Vec::new();
            for piece in bytes.chunks(size) {
                frames.push(piece);
                while let Some(message) = frames.next().expect("a message") {
                    heard.push(message);
                }
            }
            assert_eq!(heard, said, "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_message_is_refused_and_takes_no_memory() {
        for bytes in [&u32::MAX.to_le_bytes()[..], &[1, 0, 0, 0, 0xc1], &[0; 4]] {
            let mut frames = Frames::default();
            frames.push(bytes);
            assert!(frames.next::<ToHook>().is_err(), "{bytes:?}");
        }
    }
}
