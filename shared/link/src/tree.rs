//! The two ends of a blob's encoding as a BLAKE3 tree, without the network: bytes in, bytes out.

use std::io::{self, BufReader, Read, Write};

use bao_tree::io::EncodeError;
use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::io::sync::{CreateOutboard, encode_ranges};
use bao_tree::iter::{BaoChunk, ResponseIter};
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges};
use blake3::Hash;
use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use bytes::{Bytes, BytesMut};
use kiln_wire::Blake3Hash;
use tokio::sync::mpsc;

use crate::BlobError;
use crate::blob::{BlobSource, GROUP_BYTES};

/// Sixteen chunks of 1 KiB: [`GROUP_BYTES`].
const GROUP: BlockSize = BlockSize::from_chunk_log(4);
/// Bytes of a BLAKE3 chunk.
const CHUNK_BYTES: u64 = 1024;
/// Bytes of a hash pair.
const PAIR_BYTES: usize = 64;
/// Bytes handed on at a time: BLAKE3, and whatever a sink hashes with, want at least 128 KiB.
pub(crate) const PIECE_BYTES: usize = 256 << 10;

/// Verifies an encoded blob, item by item: ask [`TreeReader::wanted`], then [`TreeReader::accept`] that many bytes.
pub(crate) struct TreeReader {
    items: ResponseIter,
    next: Option<BaoChunk>,
    /// Hashes of the subtrees that are still to come, next one last.
    expected: Vec<Hash>,
    /// Offset of the first byte that is not verified.
    pub verified_bytes: u64,
}

impl TreeReader {
    /// Starts at `offset` of a blob of `size` bytes.
    pub fn new(root: Blake3Hash, size: u64, offset: u64) -> Self {
        let mut items = ResponseIter::new(BaoTree::new(size, GROUP), ranges(size, offset));
        let next = if nothing_left(size, offset) { None } else { items.next() };
        Self { items, next, expected: vec![Hash::from_bytes(root.0)], verified_bytes: offset }
    }

    /// Returns the size of the next item, at most [`GROUP_BYTES`]; `None` when all is verified. It is zero for an empty blob.
    pub fn wanted(&self) -> Option<usize> {
        self.next.as_ref().map(|item| match item {
            BaoChunk::Parent { .. } => PAIR_BYTES,
            BaoChunk::Leaf { size, .. } => *size,
        })
    }

    /// Verifies one item and returns whether it was data (and not hashes).
    ///
    /// # Errors
    /// [`BlobError::Corrupt`] if it is not what the root stands for.
    ///
    /// # Panics
    /// If `item` is not as long as wanted.
    pub fn accept(&mut self, item: &[u8]) -> Result<bool, BlobError> {
        let corrupt = BlobError::Corrupt { offset_bytes: self.verified_bytes };
        let next = self.next.take().expect("the caller asked what is wanted");
        let expected = self.expected.pop().expect("a parent pushed one hash for each item below it");
        match next {
            BaoChunk::Parent { is_root, left, right, .. } => {
                let (first, second) = item.split_first_chunk::<32>().expect("a pair is 64 bytes");
                let second = second.first_chunk::<32>().expect("a pair is 64 bytes");
                let found = if is_root {
                    merge_subtrees_root(first, second, Mode::Hash)
                } else {
                    Hash::from_bytes(merge_subtrees_non_root(first, second, Mode::Hash))
                };
                if found != expected {
                    return Err(corrupt);
                }
                self.expected.extend(right.then(|| Hash::from_bytes(*second)));
                self.expected.extend(left.then(|| Hash::from_bytes(*first)));
                self.next = self.items.next();
                Ok(false)
            }
            BaoChunk::Leaf { is_root, start_chunk, size, .. } => {
                assert_eq!(item.len(), size, "the caller gives what is wanted");
                if hash_group(start_chunk, item, is_root) != expected {
                    return Err(corrupt);
                }
                self.verified_bytes += item.len() as u64;
                self.next = self.items.next();
                Ok(true)
            }
        }
    }
}

/// Writes the encoding of the blob from `offset` on into `out`, and returns its root. Reads the source twice.
///
/// # Errors
/// [`BlobError::SourceSize`], [`BlobError::Source`] (also when `out` fails, whose reason the caller knows).
pub(crate) fn encode(source: &BlobSource, size: u64, offset: u64, mut out: impl Write) -> Result<Blake3Hash, BlobError> {
    let found_bytes = match source {
        BlobSource::File(file) => file.metadata().map_err(BlobError::Source)?.len(),
        BlobSource::Bytes(bytes) => bytes.len() as u64,
    };
    if found_bytes != size {
        return Err(BlobError::SourceSize { size_bytes: size, found_bytes });
    }
    let outboard = match source {
        BlobSource::File(file) => outboard(BufReader::with_capacity(PIECE_BYTES, FromStart { file, at: 0 }), size)?,
        BlobSource::Bytes(bytes) => outboard(bytes.as_ref(), size)?,
    };
    if !nothing_left(size, offset) {
        let ranges = ranges(size, offset);
        let encoded = match source {
            BlobSource::File(file) => encode_ranges(file, &outboard, &ranges, &mut out),
            BlobSource::Bytes(bytes) => encode_ranges(bytes.as_ref(), &outboard, &ranges, &mut out),
        };
        encoded.map_err(|err| match err {
            EncodeError::Io(err) => BlobError::Source(err),
            err => BlobError::Source(io::Error::other(err)),
        })?;
        out.flush().map_err(BlobError::Source)?;
    }
    Ok(Blake3Hash(*outboard.root.as_bytes()))
}

/// Gathers an encoding into pieces and sends them to the task that owns the stream, waiting while that is behind.
pub(crate) struct PieceWriter {
    piece: BytesMut,
    pieces: mpsc::Sender<Bytes>,
}

impl PieceWriter {
    /// Makes a writer that sends to `pieces`.
    pub fn new(pieces: mpsc::Sender<Bytes>) -> Self {
        Self { piece: BytesMut::new(), pieces }
    }
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, BytesMut::with_capacity(PIECE_BYTES + GROUP_BYTES as usize)).freeze();
        self.pieces.blocking_send(piece).map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the transfer was given up"))
    }
}

/// Reads a file from its start without moving the position that its other users see.
struct FromStart<'a> {
    file: &'a std::fs::File,
    at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = std::os::unix::fs::FileExt::read_at(self.file, buf, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

fn outboard(data: impl Read, size: u64) -> Result<PreOrderOutboard<Vec<u8>>, BlobError> {
    PreOrderOutboard::create_sized(data, size, GROUP).map_err(BlobError::Source)
}

fn hash_group(start: ChunkNum, group: &[u8], is_root: bool) -> Hash {
    if is_root {
        return blake3::hash(group);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(start.0 * CHUNK_BYTES);
    hasher.update(group);
    Hash::from_bytes(hasher.finalize_non_root())
}

/// An empty blob still has its one empty group, so that its root is checked; a blob that the receiver has whole has nothing.
fn nothing_left(size: u64, offset: u64) -> bool {
    size > 0 && offset == size
}

fn ranges(size: u64, offset: u64) -> ChunkRanges {
    if offset == 0 || nothing_left(size, offset) { ChunkRanges::all() } else { ChunkRanges::from(ChunkNum(offset / CHUNK_BYTES)..) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn noise(size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        blake3::Hasher::new_derive_key("kiln-link tests").finalize_xof().fill(&mut bytes);
        bytes
    }

    fn encoding(blob: &[u8], offset: u64) -> (Blake3Hash, Vec<u8>) {
        let mut out = Vec::new();
        let source = BlobSource::from(blob.to_vec());
        let root = encode(&source, blob.len() as u64, offset, &mut out).expect("memory reads");
        (root, out)
    }

    /// Returns what was verified before the end or the first error.
    fn decode(root: Blake3Hash, size: u64, offset: u64, mut encoded: &[u8]) -> (Vec<u8>, Result<(), BlobError>) {
        let mut tree = TreeReader::new(root, size, offset);
        let mut found = Vec::new();
        while let Some(wanted) = tree.wanted() {
            let Some((item, rest)) = encoded.split_at_checked(wanted) else {
                return (found, Err(BlobError::Short { offset_bytes: tree.verified_bytes, size_bytes: size }));
            };
            encoded = rest;
            match tree.accept(item) {
                Ok(true) => found.extend_from_slice(item),
                Ok(false) => {}
                Err(err) => return (found, Err(err)),
            }
        }
        assert!(encoded.is_empty(), "the encoding is as long as the tree says");
        (found, Ok(()))
    }

    #[test]
    fn every_size_and_offset_round_trips_with_the_plain_hash_as_root() {
        for size in [0usize, 1, 1024, 16_383, 16_384, 16_385, 32_768, 49_153, 300_000] {
            let blob = noise(size);
            for offset in (0..=size as u64).step_by(GROUP_BYTES as usize).chain([size as u64]) {
                let (root, encoded) = encoding(&blob, offset);
                assert_eq!(root, Blake3Hash(*blake3::hash(&blob).as_bytes()));
                let (found, outcome) = decode(root, size as u64, offset, &encoded);
                outcome.expect("verifies");
                assert!(found == blob[offset as usize..], "{size} from {offset}");
            }
        }
    }

    #[test]
    fn the_hash_of_an_empty_blob_is_checked() {
        let (_, outcome) = decode(Blake3Hash([0; 32]), 0, 0, &[]);
        assert!(matches!(outcome, Err(BlobError::Corrupt { offset_bytes: 0 })));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_anywhere_is_found_before_anything_wrong_is_let_through(
            size in 1usize..200_000, group in 0u64..12, at in any::<prop::sample::Index>(), bit in 0u8..8,
        ) {
            let blob = noise(size);
            let offset = (group * GROUP_BYTES).min(size as u64 / GROUP_BYTES * GROUP_BYTES);
            let (root, mut encoded) = encoding(&blob, offset);
            prop_assume!(!encoded.is_empty());
            let at = at.index(encoded.len());
            encoded[at] ^= 1 << bit;
            let (found, outcome) = decode(root, size as u64, offset, &encoded);
            let Err(BlobError::Corrupt { offset_bytes }) = outcome else { panic!("not found: {outcome:?}") };
            prop_assert_eq!(offset_bytes, offset + found.len() as u64);
            prop_assert!(blob[offset as usize..].starts_with(&found));
        }

        #[test]
        fn a_cut_anywhere_leaves_a_correct_prefix(size in 1usize..200_000, at in any::<prop::sample::Index>()) {
            let blob = noise(size);
            let (root, encoded) = encoding(&blob, 0);
            let (found, outcome) = decode(root, size as u64, 0, &encoded[..at.index(encoded.len())]);
            let Err(BlobError::Short { offset_bytes, .. }) = outcome else { panic!("not found: {outcome:?}") };
            prop_assert_eq!(offset_bytes, found.len() as u64);
            prop_assert!(blob.starts_with(&found));
        }

        #[test]
        fn arbitrary_bytes_never_pass_and_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40_000), size in any::<u64>()) {
            let size = size % (1 << 36) + 1;
            let (found, outcome) = decode(Blake3Hash([7; 32]), size, 0, &bytes);
            prop_assert!(outcome.is_err());
            prop_assert!(found.is_empty());
        }
    }
}
