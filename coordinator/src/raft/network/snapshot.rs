//! The lane of snapshots: a file as it lies, in chunks, to a file beside the one in use. The last 32 bytes are the hash of the rest,
//! which the receiver checks before the file gets its name; a crash at any time leaves the snapshot before.

use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use kiln_link::{LinkError, Receiver};

use super::lane::{Lane, LaneError};
use super::messages::{Call, Chunk, SnapshotHead, SnapshotReply};
use crate::raft::disk::{self, File};
use crate::raft::record::VoteRecord;
use crate::raft::snapshot::SnapshotDir;

/// A snapshot that could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The file cannot be read or written.
    #[error("copy snapshot file")]
    File(#[source] io::Error),
    /// There is no connection.
    #[error(transparent)]
    Lane(#[from] std::sync::Arc<LaneError>),
    /// The stream failed.
    #[error("send or receive snapshot")]
    Link(#[from] LinkError),
    /// The peer takes or sends nothing.
    #[error("the snapshot's transfer made no progress for {} s", STALL_MAX.as_secs())]
    Stalled,
    /// The peer could not use it.
    #[error("the peer refuses the snapshot: {0}")]
    Refused(String),
    /// The file has another size than was said.
    #[error("the snapshot has {found_bytes} bytes, not {size_bytes}")]
    Size {
        /// What was said.
        size_bytes: u64,
        /// What came.
        found_bytes: u64,
    },
}

/// Sends the file at `path` and returns for whom the follower votes.
pub async fn send(lane: &Lane, vote: VoteRecord, path: &Path) -> Result<VoteRecord, TransferError> {
    let mut file = File::open(path).map_err(TransferError::File)?;
    let size_bytes = file.metadata().map_err(TransferError::File)?.len();
    let (mut sender, mut receiver) = lane.open_stream().await?;
    sender.send(&Call::Snapshot(SnapshotHead { vote, size_bytes })).await?;
    let mut left = size_bytes;
    while left > 0 {
        let (chunk, back) = blocking(move || read_chunk(file, left)).await?;
        file = back;
        left -= chunk.len() as u64;
        within_stall(sender.send(&Chunk { more: left > 0, bytes: chunk })).await?;
    }
    // The follower reads the whole file, and its state machine waits for what it is doing.
    let reply = tokio::time::timeout(INSTALL_MAX, receiver.recv::<SnapshotReply>()).await.map_err(|_| TransferError::Stalled)??;
    match reply.ok_or(LinkError::Truncated)? {
        SnapshotReply::Taken(vote) => Ok(vote),
        SnapshotReply::Refused(why) => Err(TransferError::Refused(why)),
    }
}

/// Receives a file into `snapshots`, durably but under no name that counts.
pub async fn receive(snapshots: &SnapshotDir, head: SnapshotHead, receiver: &mut Receiver) -> Result<(), TransferError> {
    let size_bytes = head.size_bytes;
    let mut file = File::create(snapshots.received()).map_err(TransferError::File)?;
    let mut found_bytes = 0;
    let mut more = size_bytes > 0;
    while more {
        let chunk = within_stall(receiver.recv::<Chunk>()).await?.ok_or(LinkError::Truncated)?;
        found_bytes += chunk.bytes.len() as u64;
        more = chunk.more;
        if found_bytes > size_bytes {
            return Err(TransferError::Size { size_bytes, found_bytes });
        }
        file = blocking(move || file.write_all(&chunk.bytes).map(|()| file)).await?;
    }
    if found_bytes != size_bytes {
        return Err(TransferError::Size { size_bytes, found_bytes });
    }
    blocking(move || file.sync_all()).await
}

fn read_chunk(mut file: File, left: u64) -> io::Result<(Vec<u8>, File)> {
    let mut chunk = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES)];
    file.read_exact(&mut chunk)?;
    Ok((chunk, file))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, TransferError> {
    disk::blocking(work).await.flatten().map_err(TransferError::File)
}

async fn within_stall<T>(step: impl Future<Output = Result<T, LinkError>>) -> Result<T, TransferError> {
    Ok(tokio::time::timeout(STALL_MAX, step).await.map_err(|_| TransferError::Stalled)??)
}

/// Bytes read, sent and written at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// Longest wait for one chunk to be taken or to come: a disk may be slow.
const STALL_MAX: Duration = Duration::from_secs(10);
/// Longest wait until the follower has read and installed it: a million jobs take it half a second.
const INSTALL_MAX: Duration = Duration::from_secs(120);
