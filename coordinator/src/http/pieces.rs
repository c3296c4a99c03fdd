//! Bytes of a file or of memory as the body of an answer, a piece at a time.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, stream};
use kiln_store::BlobBytes;

/// Streams a span of `bytes`, which are called `name` in messages. A read that fails cuts the body short, which the client sees by
/// its length.
pub(super) fn pieces(name: String, bytes: BlobBytes, span: Range<u64>) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let source = Arc::new((name, bytes));
    stream::try_unfold(span.start, move |offset_bytes| {
        let (source, end_bytes) = (Arc::clone(&source), span.end);
        async move {
            if offset_bytes >= end_bytes {
                return Ok(None);
            }
            let read = tokio::task::spawn_blocking(move || read_piece(&source.0, &source.1, offset_bytes, end_bytes)).await;
            let piece = read.map_err(io::Error::other)??;
            let next_bytes = offset_bytes + piece.len() as u64;
            Ok(Some((piece, next_bytes)))
        }
    })
}

fn read_piece(name: &str, bytes: &BlobBytes, offset_bytes: u64, end_bytes: u64) -> io::Result<Bytes> {
    let wanted = usize::try_from((end_bytes - offset_bytes).min(PIECE_BYTES)).expect("a piece fits memory");
    let mut piece = vec![0; wanted];
    let count = bytes.read_at(&mut piece, offset_bytes).inspect_err(|error| {
        tracing::error!(name, %error, "what is being sent cannot be read");
    })?;
    if count == 0 {
        tracing::error!(name, offset_bytes, "what is being sent became shorter while it was read");
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    piece.truncate(count);
    Ok(piece.into())
}

/// Bytes that are read and sent at a time.
const PIECE_BYTES: u64 = 256 << 10;
