//! What a worker and its launcher say to each other: a closed set of messages, and their framing on a stream socket.
//!
//! A conversation is about one build: [`Ask::Run`], then the log and [`Answer::Ended`], then maybe [`Ask::Claim`]; closing it throws
//! away what is left of the build. The launcher believes nothing of what it reads here: [`super::Policy`] says what may be asked.
//! Pure but for the reading and writing of frames.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use ipnet::Ipv4Net;
use kiln_wire::frame::{self, FrameError};
use kiln_wire::{Failure, OutputName, StoreDir, StorePath};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::cgroup;
use crate::sandbox::{Ended, Limits};

/// What a worker asks of its launcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Run this builder. Once, first of all.
    Run(Box<Task>),
    /// Stop the builder that runs. Closing the conversation does so too.
    Stop,
    /// Make the outputs canonical and hand them over, now that nothing of the build lives.
    Claim(Claim),
}

/// What a launcher answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The builder wrote this.
    Log(ByteBuf),
    /// The run is over.
    Ended(Ended),
    /// There was no run: the sandbox could not be set up, or the task is not one that this launcher may run.
    NotRun(String),
    /// The outputs lie in this directory, and are the worker's.
    Claimed(String),
    /// The outputs are not handed over.
    Refused(Failure),
}

/// One builder to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Names the build's control group and directory: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Which of the worker's build users runs it. No other running build may have it.
    pub slot: u32,
    /// The store directory that the builder sees.
    pub store_dir: StoreDir,
    /// The platform.
    pub system: String,
    /// The program, as an absolute path in the sandbox.
    pub builder: ByteBuf,
    /// Its arguments, without `argv[0]`.
    pub args: Vec<ByteBuf>,
    /// The whole environment, in order.
    pub env: Vec<(ByteBuf, ByteBuf)>,
    /// Files of the build directory: single path components, and their content.
    pub files: Vec<(ByteBuf, ByteBuf)>,
    /// The closure of the inputs. All lie in the worker's store cache.
    pub inputs: Vec<StorePath>,
    /// What the builder may reach.
    pub reach: Reach,
    /// Whether `/dev/kvm` is there.
    pub dev_kvm: bool,
    /// Whether it is root of a range of ids.
    pub uid_range: bool,
    /// What the build may use.
    pub resources: cgroup::Limits,
    /// When the run is stopped.
    pub limits: Limits,
}

/// What a builder may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reach {
    /// Itself.
    Itself,
    /// What the launcher's policy lets fixed-output builds reach, but these: addresses of coordinators, which only the worker knows.
    Outside {
        /// Not to be reached.
        denied: Vec<Ipv4Net>,
    },
}

/// Outputs to hand over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Where each output lies in the builder's store directory.
    pub outputs: BTreeMap<OutputName, StorePath>,
    /// Bytes that all may hold together.
    pub bytes_max: u64,
}

/// A message that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    /// The socket failed, or the other side is gone.
    #[error("talk between worker and launcher")]
    Io(#[from] io::Error),
    /// The message is over [`MESSAGE_BYTES_MAX`].
    #[error("talk between worker and launcher: a message of {size_bytes} bytes is over the limit of {MESSAGE_BYTES_MAX}")]
    TooLong {
        /// Its size, as claimed or as encoded.
        size_bytes: u64,
    },
    /// The bytes are no message.
    #[error("talk between worker and launcher: not a message")]
    Frame(#[from] FrameError),
}

/// Longest message. Files of a build directory hold graphs of references of up to 64 MiB; everything else together is smaller.
pub const MESSAGE_BYTES_MAX: u64 = 160 << 20;

/// Reads a message from bytes that may be anything.
///
/// # Errors
/// [`TalkError::Frame`] if they are no such message.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, TalkError> {
    Ok(frame::from_bytes(bytes)?)
}

/// Writes one message with its length before it.
///
/// # Errors
/// [`TalkError`] if it is too long, or the other side is gone.
pub fn write_message<T: Serialize>(mut stream: impl Write, message: &T) -> Result<(), TalkError> {
    let body = frame::to_bytes(message)?;
    let size_bytes = body.len() as u64;
    let header = u32::try_from(size_bytes).ok().filter(|_| size_bytes <= MESSAGE_BYTES_MAX).ok_or(TalkError::TooLong { size_bytes })?;
    let mut whole = Vec::with_capacity(body.len() + 4);
    whole.extend(header.to_le_bytes());
    whole.extend(body);
    Ok(stream.write_all(&whole)?)
}

/// Reads one message; nothing if the other side closed before its first byte. Takes memory as bytes come, not as they are announced.
///
/// # Errors
/// [`TalkError`] if it is too long, cut, or no message.
pub fn read_message<T: DeserializeOwned>(mut stream: impl Read) -> Result<Option<T>, TalkError> {
    let mut header = [0; 4];
    let mut got = 0;
    while got < header.len() {
        match stream.read(&mut header[got..]) {
            Ok(0) if got == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => got += count,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err.into()),
        }
    }
    let size_bytes = u64::from(u32::from_le_bytes(header));
    if size_bytes > MESSAGE_BYTES_MAX {
        return Err(TalkError::TooLong { size_bytes });
    }
    let mut body = Vec::new();
    stream.take(size_bytes).read_to_end(&mut body)?;
    if body.len() as u64 != size_bytes {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    decode(&body).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_stream_one_after_the_other() {
        let asks = [Ask::Stop, Ask::Claim(Claim { outputs: BTreeMap::new(), bytes_max: 7 }), Ask::Stop];
        let mut stream = Vec::new();
        asks.iter().for_each(|ask| write_message(&mut stream, ask).expect("small"));
        let mut read = stream.as_slice();
        for ask in &asks {
            assert_eq!(read_message::<Ask>(&mut read).expect("a message").as_ref(), Some(ask));
        }
        assert_eq!(read_message::<Ask>(&mut read).expect("the end"), None);
    }

    #[test]
    fn what_is_cut_too_long_or_no_message_is_refused() {
        let mut whole = Vec::new();
        write_message(&mut whole, &Ask::Stop).expect("small");
        let table: [(&[u8], &str); 5] = [
            (&whole[..2], "cut in its length"),
            (&whole[..whole.len() - 1], "cut in its body"),
            (&[0xff; 64], "four gigabytes announced"),
            (&[0, 0, 0, 9, 1, 2, 3], "150 MiB announced, three bytes there"),
            (&[1, 0, 0, 0, 0xc1], "no MessagePack"),
        ];
        for (bytes, what) in table {
            assert!(read_message::<Ask>(bytes).is_err(), "{what}");
        }
    }
}
