//! Blobs as verified streams: the BLAKE3 tree in pre-order, hash pairs before the data they cover, in groups of 16 KiB.
//!
//! Goals: the receiver's sink sees verified bytes only, in order; a transfer resumes at any multiple of 16 KiB; memory is bounded
//! on both sides by flow control. Non-goals: partial or sparse blobs, telling the size (the messages before it do).
//! A blob is the last thing on its direction of a stream. Source: the Bao specification, with bao-tree's chunk groups.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read};

use bytes::Bytes;
use kiln_wire::Blake3Hash;
use kiln_wire::limits::NAR_BYTES_MAX;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::mpsc;

use crate::config::BLOB_STALL_MAX;
use crate::tree::{PIECE_BYTES, PieceWriter, TreeReader, encode};
use crate::{BlobError, LinkError, Receiver, Sender};

/// Bytes that are verified together, and the grain of resuming. Its hashes cost 0.4 % of the data; groups of 1 KiB would cost
/// 6 % and most of the speed.
pub const GROUP_BYTES: u64 = 16 << 10;
/// Pieces between the thread that reads and the task that sends.
const PIECES_AHEAD: usize = 2;
/// Work on this many bytes in memory takes a few microseconds, less than to find another thread for it.
const INLINE_BYTES_MAX: usize = 32 << 10;
/// Largest blob. zstd adds at most a 256th (and a few bytes) to what it cannot compress.
const BLOB_BYTES_MAX: u64 = NAR_BYTES_MAX + NAR_BYTES_MAX / 128;

/// Where a blob's bytes come from.
#[derive(Debug)]
pub enum BlobSource {
    /// A file, read by position. It must not change meanwhile.
    File(File),
    /// Memory.
    Bytes(Bytes),
}

impl From<File> for BlobSource {
    fn from(file: File) -> Self {
        Self::File(file)
    }
}

impl From<Bytes> for BlobSource {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<Vec<u8>> for BlobSource {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

/// Returns the root that a blob is verified against: its BLAKE3 hash. Reads `source` to its end, in large pieces.
///
/// # Errors
/// What reading gives.
pub fn blob_root(mut source: impl Read) -> io::Result<Blake3Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE_BYTES];
    let mut filled = 0;
    loop {
        match source.read(&mut piece[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
        if filled == piece.len() {
            hasher.update(&piece);
            filled = 0;
        }
    }
    hasher.update(&piece[..filled]);
    Ok(Blake3Hash(*hasher.finalize().as_bytes()))
}

impl Sender {
    /// Sends the blob's bytes from `offset` on, after the messages that wait, and ends this direction of the stream. Returns the
    /// root of what was sent, for the caller to compare. The source is read once to hash it and once to send it, on a thread of
    /// its own unless it is small and in memory; the tree's hashes (0.4 % of the blob) are held in memory, the data is not.
    ///
    /// Call [`Sender::finish`] to wait until the peer has it all. Not cancel safe: dropped early, the stream is given up.
    ///
    /// # Errors
    /// [`BlobError::Range`], [`BlobError::SourceSize`], [`BlobError::Source`], [`BlobError::Stalled`], [`LinkError::Stopped`],
    /// [`LinkError::Lost`], [`LinkError::NotOpen`]. The stream is given up.
    pub async fn send_blob(&mut self, source: impl Into<BlobSource>, size: u64, offset: u64) -> Result<Blake3Hash, LinkError> {
        check_range(size, offset)?;
        if !self.open {
            return Err(LinkError::NotOpen);
        }
        self.flush().await?;
        self.open = false;
        let sent = self.send_pieces(source.into(), size, offset).await;
        match sent {
            Ok(root) => {
                self.close();
                Ok(root)
            }
            Err(err) => {
                self.give_up();
                Err(err)
            }
        }
    }

    async fn send_pieces(&mut self, source: BlobSource, size: u64, offset: u64) -> Result<Blake3Hash, LinkError> {
        // Messages, which are short and often urgent, go before blobs on the same connection.
        let _closed = self.quinn.set_priority(-1);
        if matches!(&source, BlobSource::Bytes(bytes) if bytes.len() <= INLINE_BYTES_MAX) {
            let mut encoded = Vec::new();
            let root = encode(&source, size, offset, &mut encoded)?;
            let stalled = BlobError::Stalled { offset_bytes: offset, seconds: BLOB_STALL_MAX.as_secs() };
            progress(self.quinn.write_chunk(encoded.into()), stalled).await??;
            return Ok(root);
        }
        let (pieces, mut ready) = mpsc::channel(PIECES_AHEAD);
        let reader = tokio::task::spawn_blocking(move || encode(&source, size, offset, PieceWriter::new(pieces)));
        let mut sent_bytes = offset;
        while let Some(piece) = ready.recv().await {
            let length = piece.len() as u64;
            let stalled = BlobError::Stalled { offset_bytes: sent_bytes.min(size), seconds: BLOB_STALL_MAX.as_secs() };
            progress(self.quinn.write_chunk(piece), stalled).await??;
            sent_bytes += length;
        }
        Ok(reader.await.map_err(|err| BlobError::Source(io::Error::other(err)))??)
    }
}

impl Receiver {
    /// Receives a blob of `size` bytes from `offset` on and gives it to `sink`, in order, in pieces of up to 256 KiB, each verified
    /// against `root` before. The stream must end after it. On a multi-threaded runtime the sink may block.
    ///
    /// Whatever the outcome, all that was verified has been given to the sink (unless the sink itself failed). Not cancel safe:
    /// dropped early, up to one verified piece is not given to the sink and the stream is of no more use.
    ///
    /// # Errors
    /// [`BlobError::Corrupt`], [`BlobError::Short`], [`BlobError::Long`], [`BlobError::Sink`], [`BlobError::Range`],
    /// [`BlobError::Stalled`], [`LinkError::Aborted`], [`LinkError::Lost`], [`LinkError::NotOpen`].
    pub async fn recv_blob<F, E>(&mut self, root: Blake3Hash, size: u64, offset: u64, sink: F) -> Result<(), LinkError>
    where
        F: FnMut(&[u8]) -> Result<(), E> + Send,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        check_range(size, offset)?;
        if !self.is_open() {
            return Err(LinkError::NotOpen);
        }
        self.mark_busy(true);
        let mut pieces = Pieces { sink, verified: Vec::new(), offset_bytes: offset };
        let mut tree = TreeReader::new(root, size, offset);
        let received = self.recv_groups(&mut tree, &mut pieces, size).await;
        let given = if matches!(received, Err(LinkError::Blob(BlobError::Sink { .. }))) { Ok(()) } else { pieces.give() };
        match received.and(given) {
            Ok(()) => {
                self.mark_busy(false);
                Ok(())
            }
            Err(err) => Err(self.fail(err)),
        }
    }

    async fn recv_groups<F, E>(&mut self, tree: &mut TreeReader, pieces: &mut Pieces<F>, size: u64) -> Result<(), LinkError>
    where
        F: FnMut(&[u8]) -> Result<(), E> + Send,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let mut item = Vec::new();
        while let Some(wanted) = tree.wanted() {
            item.clear();
            while item.len() < wanted {
                let stalled = BlobError::Stalled { offset_bytes: tree.verified_bytes, seconds: BLOB_STALL_MAX.as_secs() };
                if !progress(self.fill(), stalled).await?? {
                    return Err(BlobError::Short { offset_bytes: tree.verified_bytes, size_bytes: size }.into());
                }
                item.extend_from_slice(&self.take(wanted - item.len()));
            }
            if tree.accept(&item)? {
                pieces.add(&item)?;
            }
        }
        let stalled = BlobError::Stalled { offset_bytes: size, seconds: BLOB_STALL_MAX.as_secs() };
        match progress(self.expect_end(), stalled).await? {
            Err(LinkError::Trailing) => Err(BlobError::Long { size_bytes: size }.into()),
            ended => ended,
        }
    }
}

fn check_range(size: u64, offset: u64) -> Result<(), BlobError> {
    let aligned = offset.is_multiple_of(GROUP_BYTES) || offset == size;
    if aligned && offset <= size && size <= BLOB_BYTES_MAX {
        Ok(())
    } else {
        Err(BlobError::Range { offset_bytes: offset, size_bytes: size, max_bytes: BLOB_BYTES_MAX })
    }
}

async fn progress<T>(step: impl Future<Output = T>, stalled: BlobError) -> Result<T, BlobError> {
    tokio::time::timeout(BLOB_STALL_MAX, step).await.map_err(|_| stalled)
}

/// Verified bytes on their way to the sink.
struct Pieces<F> {
    sink: F,
    verified: Vec<u8>,
    /// Offset of the first byte that the sink has not got.
    offset_bytes: u64,
}

impl<F, E> Pieces<F>
where
    F: FnMut(&[u8]) -> Result<(), E> + Send,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    fn add(&mut self, group: &[u8]) -> Result<(), LinkError> {
        self.verified.extend_from_slice(group);
        if self.verified.len() < PIECE_BYTES { Ok(()) } else { self.give() }
    }

    fn give(&mut self) -> Result<(), LinkError> {
        if self.verified.is_empty() {
            return Ok(());
        }
        let given = match Handle::current().runtime_flavor() {
            RuntimeFlavor::MultiThread => tokio::task::block_in_place(|| (self.sink)(&self.verified)),
            _ => (self.sink)(&self.verified),
        };
        given.map_err(|err| BlobError::Sink { offset_bytes: self.offset_bytes, err: err.into() })?;
        self.offset_bytes += self.verified.len() as u64;
        self.verified.clear();
        Ok(())
    }
}
