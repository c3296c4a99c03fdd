//! Archives for clients that read no zstd, compressed anew while they are sent: any archive under another ending (`….nar.xz`, `….nar`), and
//! `/xz/`, a cache whose narinfos name the former. Also archives by the name under which a client uploaded them.
//!
//! Goals: memory and processors are bounded, and who reads slowly keeps no processor from others. Non-goals: ranges, entity tags and lengths, which need bytes that are kept.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State as Shared};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::{self, Stream};
use kiln_store::{Compression, StoreError, recompress};
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::State;
use super::cache::{self, failed};
use super::kept::{Keep, absent, answer};

/// Answers a request for an archive that is not kept under this name.
pub(super) async fn archive(state: &State, method: &Method, file: &str) -> Result<Response, StoreError> {
    let Some((hash, compression)) = Compression::of_file(file) else { return Ok(absent()) };
    let Some(kept) = state.store.blob_file(hash).await? else { return Ok(absent()) };
    if compression == Compression::Zstd {
        let head = [(LOCATION, kept), (CACHE_CONTROL, "no-store".to_owned())];
        return Ok((StatusCode::TEMPORARY_REDIRECT, head).into_response());
    }
    let head = [(CONTENT_TYPE, "application/x-nix-nar".parse().expect("plain text")), (CACHE_CONTROL, Keep::Minutes.header())];
    if *method == Method::HEAD {
        return Ok((head, Body::empty()).into_response());
    }
    let Ok(waits) = state.transcoding_waits.clone().try_acquire_owned() else { return Ok(busy()) };
    let turns = state.transcoding.clone();
    let places = async { (state.transcoding_open.clone().acquire_owned().await, turns.clone().acquire_owned().await) };
    let Ok((open, turn)) = tokio::time::timeout(TURN_MAX, places).await else { return Ok(busy()) };
    drop(waits);
    let (open, turn) = (open.expect("never closed"), turn.ok());
    let Some(blob) = state.store.open_nar_file(&kept).await? else { return Ok(absent()) };
    let (sender, pieces) = channel(PIECES_AHEAD);
    let mut out = Pieces { sender, runtime: Handle::current(), until: Instant::now() + whole_max(blob.size_bytes()), turns, turn };
    let counting = state.store.clone();
    tokio::task::spawn_blocking(move || {
        let _open = open;
        let sent = recompress(blob.reader(), compression, io::BufWriter::with_capacity(PIECE_BYTES, &mut out));
        match sent.and_then(|()| out.send(Piece::End)) {
            Ok(()) => counting.count_served(blob.size_bytes()),
            // Whoever reads sees that the body is cut, for it lacks its end.
            Err(error) => tracing::debug!(object = blob.object_key(), %error, "an archive was not sent whole"),
        }
    });
    Ok((head, Body::from_stream(body(pieces))).into_response())
}

/// Returns the bytes that come up to the end mark. Without one, an error ends them.
fn body(pieces: Receiver<Piece>) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold(pieces, |mut pieces| async move {
        match pieces.recv().await {
            Some(Piece::Bytes(bytes)) => Ok(Some((bytes, pieces))),
            Some(Piece::End) => Ok(None),
            None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive could not be sent whole")),
        }
    })
}

/// Tells a client to come again: others have their archives compressed.
fn busy() -> Response {
    let head = [(RETRY_AFTER, HeaderValue::from(TURN_MAX.as_secs())), (CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    (StatusCode::SERVICE_UNAVAILABLE, head, "too many archives are compressed at this moment; try again, or ask for zstd\n").into_response()
}

/// Returns how long a client may take for an archive whose blob has this size.
fn whole_max(blob_bytes: u64) -> Duration {
    STALL + Duration::from_secs(blob_bytes / PACE_BYTES_PER_SECOND_MIN)
}

/// A file of `/xz/`: narinfos name archives in xz.
pub(super) async fn described(shared: Shared<State>, method: Method, Path(file): Path<String>, headers: HeaderMap) -> Response {
    let Some(hash_part) = file.strip_suffix(".narinfo") else {
        return cache::described(shared, method, Path(file), headers).await;
    };
    match shared.0.store.narinfo(hash_part, &shared.0.keys).await {
        Ok(Some(text)) => answer(&headers, Keep::Minutes, "text/x-nix-narinfo", in_xz(&String::from_utf8_lossy(&text))),
        Ok(None) => absent(),
        Err(error) => failed(&file, &error),
    }
}

/// Returns a narinfo of the farm's that names the archive in xz. Hash and size of that file are not known before it is made; the
/// signature covers neither.
fn in_xz(narinfo: &str) -> String {
    let mut text = String::with_capacity(narinfo.len());
    for line in narinfo.lines().filter(|line| !line.starts_with("File")) {
        match (line.strip_prefix("URL: "), line.starts_with("Compression: ")) {
            (Some(url), _) => text.push_str(&format!("URL: {}.nar.xz", url.strip_suffix(".nar.zst").unwrap_or(url))),
            (None, true) => text.push_str("Compression: xz"),
            (None, false) => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// Takes compressed bytes and hands them to whoever sends them, at the client's pace.
struct Pieces {
    sender: Sender<Piece>,
    runtime: Handle,
    /// When the whole must be sent.
    until: Instant,
    turns: Arc<Semaphore>,
    /// The right to use a processor. A client that is slower than the processor holds up nobody: it is given up while the client is waited for.
    turn: Option<OwnedSemaphorePermit>,
}

/// A part of a body.
enum Piece {
    Bytes(Bytes),
    /// Nothing follows, and nothing is lacking.
    End,
}

impl Pieces {
    fn send(&mut self, piece: Piece) -> io::Result<()> {
        let piece = match self.sender.try_send(piece) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Closed(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
            Err(TrySendError::Full(piece)) => piece,
        };
        self.turn = None;
        let sending = async { tokio::time::timeout_at(self.until.min(Instant::now() + STALL), self.sender.send(piece)).await };
        match self.runtime.block_on(sending) {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
        let waiting = async { tokio::time::timeout_at(self.until, self.turns.clone().acquire_owned()).await };
        self.turn = self.runtime.block_on(waiting).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.ok();
        Ok(())
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(Piece::Bytes(Bytes::copy_from_slice(bytes))).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes of a piece.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces that may wait to be sent.
const PIECES_AHEAD: usize = 4;
/// How long a client may take nothing: it holds up others.
const STALL: Duration = Duration::from_secs(60);
/// How fast a client must be, counted in bytes of what is kept.
const PACE_BYTES_PER_SECOND_MIN: u64 = 256 << 10;
/// How long a request waits until others are done.
const TURN_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;

    #[tokio::test]
    async fn a_body_without_its_end_is_no_whole_one() {
        for (is_whole, last) in [(true, Some(Piece::End)), (false, None)] {
            let (sender, pieces) = channel(PIECES_AHEAD);
            for piece in [Some(Piece::Bytes(Bytes::from_static(b"x"))), last].into_iter().flatten() {
                sender.send(piece).await.expect("there is room");
            }
            drop(sender);
            let read: io::Result<Vec<Bytes>> = body(pieces).try_collect().await;
            assert_eq!(read.ok(), is_whole.then(|| vec![Bytes::from_static(b"x")]));
        }
    }

    fn pieces(sender: Sender<Piece>, until: Instant, turns: &Arc<Semaphore>) -> Pieces {
        let turn = turns.clone().try_acquire_owned().ok();
        Pieces { sender, runtime: Handle::current(), until, turns: turns.clone(), turn }
    }

    #[tokio::test]
    async fn a_client_that_is_waited_for_holds_no_turn_and_has_one_again_before_it_gets_more() {
        let turns = Arc::new(Semaphore::new(1));
        let (sender, mut taken) = channel(1);
        let mut slow = pieces(sender, Instant::now() + STALL, &turns);
        let sending = tokio::task::spawn_blocking(move || {
            slow.send(Piece::Bytes(Bytes::from_static(b"a"))).and_then(|()| slow.send(Piece::Bytes(Bytes::from_static(b"b"))))?;
            slow.send(Piece::End)
        });
        let others = tokio::time::timeout(STALL / 2, turns.acquire()).await.expect("nobody holds it").expect("never closed");
        for _ in ["a", "b"] {
            assert!(matches!(taken.recv().await, Some(Piece::Bytes(_))));
        }
        assert!(taken.try_recv().is_err(), "the rest waits for its turn");
        drop(others);
        assert!(matches!(taken.recv().await, Some(Piece::End)));
        sending.await.expect("runs").expect("sends");
        assert_eq!(turns.available_permits(), 1);
    }

    #[tokio::test]
    async fn who_takes_longer_than_the_whole_may_take_gets_no_further_piece() {
        let (sender, _unread) = channel(PIECES_AHEAD);
        let mut late = pieces(sender, Instant::now(), &Arc::new(Semaphore::new(1)));
        let sent = tokio::task::spawn_blocking(move || (0..=PIECES_AHEAD).map(|_| late.send(Piece::End)).find_map(Result::err));
        assert_eq!(sent.await.expect("runs").expect("refused").kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_narinfo_of_the_xz_cache_says_nothing_of_the_file_but_its_name() {
        let kept = "StorePath: /nix/store/x\nURL: nar/abc.nar.zst\nCompression: zstd\nFileHash: sha256:1\nFileSize: 1\nNarHash: sha256:2\n\
                    NarSize: 3\nReferences: \nSig: farm-1:x\nFileBlake3: 4\n";
        let expected =
            "StorePath: /nix/store/x\nURL: nar/abc.nar.xz\nCompression: xz\nNarHash: sha256:2\nNarSize: 3\nReferences: \nSig: farm-1:x\n";
        assert_eq!(in_xz(kept), expected);
    }
}
