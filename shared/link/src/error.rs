//! What can go wrong on a link, in terms a session can act on. No quinn or rustls type leaves through here.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use kiln_wire::frame::FrameError;

use crate::{CertificateRefusal, IdentityError, Peer};

/// Why something on a link failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The socket cannot be had.
    #[error("bind UDP socket on {addr}")]
    Bind {
        /// Where.
        addr: SocketAddr,
        /// Why.
        #[source]
        err: io::Error,
    },
    /// The node's keys cannot be read or made.
    #[error("open the node's QUIC keys at {}", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        err: io::Error,
    },
    /// The own certificate does not work.
    #[error("use identity")]
    Identity(#[from] IdentityError),
    /// No connection came about.
    #[error("connect to {addr}: {closed}")]
    Connect {
        /// To whom.
        addr: SocketAddr,
        /// Why not.
        closed: Closed,
    },
    /// The peer's certificate is good for TLS, but does not say who it is.
    #[error("identify the peer at {addr}")]
    Peer {
        /// Where the peer is.
        addr: SocketAddr,
        /// What is wrong with its certificate.
        #[source]
        refusal: CertificateRefusal,
    },
    /// The dialer wants a coordinator of its farm, and reached something else.
    #[error("connect to {addr}: it is {found}, which is no coordinator of this farm")]
    NotCoordinator {
        /// Where.
        addr: SocketAddr,
        /// Who is there.
        found: Box<Peer>,
    },
    /// The connection is gone.
    #[error("connection lost: {0}")]
    Lost(Closed),
    /// The peer reads no further on this stream.
    #[error("the peer stopped reading the stream")]
    Stopped,
    /// The peer gave the stream up.
    #[error("the peer gave the stream up")]
    Aborted,
    /// The stream ended in the middle of a message, or without the mark that says it is whole.
    #[error("the stream ended before its end mark")]
    Truncated,
    /// Bytes follow the end mark of a stream.
    #[error("bytes follow the end of the stream")]
    Trailing,
    /// The stream was finished, or failed before.
    #[error("the stream is not open")]
    NotOpen,
    /// A message cannot be written or read.
    #[error("exchange message")]
    Frame(#[from] FrameError),
    /// A blob cannot be sent or received.
    #[error("transfer blob")]
    Blob(#[from] BlobError),
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// The peer closed it and said why.
    #[error("closed by the peer: {reason}")]
    ByPeer {
        /// In its words, cut at 200 characters.
        reason: String,
    },
    /// It was closed here.
    #[error("closed here")]
    Here,
    /// The peer has restarted and knows nothing of the connection.
    #[error("the peer restarted")]
    PeerRestarted,
    /// Nothing was heard for too long.
    #[error("timed out")]
    TimedOut,
    /// TLS or QUIC failed: a refused certificate, another ALPN, a broken peer.
    #[error("refused: {reason}")]
    Refused {
        /// In TLS's or QUIC's words.
        reason: String,
    },
}

/// Why a blob was not transferred. Offsets count from the blob's first byte.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The offset is no multiple of 16 KiB, or beyond the end, or the size is over the limit.
    #[error(
        "blob range {offset_bytes}..{size_bytes} is not allowed: the offset is a multiple of 16 KiB within the blob, whose size is at most {max_bytes}"
    )]
    Range {
        /// Where the transfer was to start.
        offset_bytes: u64,
        /// The blob's whole size.
        size_bytes: u64,
        /// The largest size allowed.
        max_bytes: u64,
    },
    /// What the peer sent is not the blob. Everything before the offset is verified and was given to the sink.
    #[error("blob differs from its hash at offset {offset_bytes}")]
    Corrupt {
        /// First byte that is not verified.
        offset_bytes: u64,
    },
    /// The peer ended the stream early. Everything before the offset is verified and was given to the sink.
    #[error("blob ends at offset {offset_bytes} of {size_bytes}")]
    Short {
        /// First byte that is missing.
        offset_bytes: u64,
        /// The blob's whole size.
        size_bytes: u64,
    },
    /// The peer sent more than the blob.
    #[error("bytes follow the blob's last, number {size_bytes}")]
    Long {
        /// The blob's whole size.
        size_bytes: u64,
    },
    /// The peer sent nothing, or took nothing, for too long.
    #[error("blob transfer made no progress for {seconds} s at offset {offset_bytes}")]
    Stalled {
        /// Where it stands.
        offset_bytes: u64,
        /// How long.
        seconds: u64,
    },
    /// The source is not as long as announced.
    #[error("blob source has {found_bytes} bytes, not {size_bytes}")]
    SourceSize {
        /// What was announced.
        size_bytes: u64,
        /// What it has.
        found_bytes: u64,
    },
    /// The source cannot be read.
    #[error("read blob source")]
    Source(#[source] io::Error),
    /// The sink refused verified bytes.
    #[error("write blob bytes at offset {offset_bytes}")]
    Sink {
        /// Offset of the first byte refused.
        offset_bytes: u64,
        /// In the sink's words.
        #[source]
        err: Box<dyn Error + Send + Sync>,
    },
}

impl From<quinn::ConnectionError> for Closed {
    fn from(err: quinn::ConnectionError) -> Self {
        match err {
            quinn::ConnectionError::ApplicationClosed(close) => {
                Self::ByPeer { reason: String::from_utf8_lossy(&close.reason).chars().take(200).flat_map(char::escape_debug).collect() }
            }
            quinn::ConnectionError::LocallyClosed => Self::Here,
            quinn::ConnectionError::Reset => Self::PeerRestarted,
            quinn::ConnectionError::TimedOut => Self::TimedOut,
            err @ (quinn::ConnectionError::VersionMismatch
            | quinn::ConnectionError::TransportError(_)
            | quinn::ConnectionError::ConnectionClosed(_)
            | quinn::ConnectionError::CidsExhausted) => {
                Self::Refused { reason: err.to_string().chars().take(400).flat_map(char::escape_debug).collect() }
            }
        }
    }
}

impl From<quinn::ConnectionError> for LinkError {
    fn from(err: quinn::ConnectionError) -> Self {
        Self::Lost(err.into())
    }
}

impl From<quinn::WriteError> for LinkError {
    fn from(err: quinn::WriteError) -> Self {
        match err {
            quinn::WriteError::Stopped(_) => Self::Stopped,
            quinn::WriteError::ConnectionLost(err) => err.into(),
            quinn::WriteError::ClosedStream | quinn::WriteError::ZeroRttRejected => Self::NotOpen,
        }
    }
}

impl From<quinn::ReadError> for LinkError {
    fn from(err: quinn::ReadError) -> Self {
        match err {
            quinn::ReadError::Reset(_) => Self::Aborted,
            quinn::ReadError::ConnectionLost(err) => err.into(),
            quinn::ReadError::ClosedStream | quinn::ReadError::IllegalOrderedRead | quinn::ReadError::ZeroRttRejected => Self::NotOpen,
        }
    }
}
