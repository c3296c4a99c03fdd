//! Archives for clients that read no zstd, compressed anew while they are sent: any archive under another ending (`….nar.xz`, `….nar`), and
//! `/xz/`, a cache whose narinfos name the former. Also archives by the name under which a client uploaded them.
//!
//! Goals: memory and processors are bounded. Non-goals: ranges, entity tags and lengths, which need bytes that are kept.

use std::io::{self, Write};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State as Shared};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use kiln_store::{Compression, StoreError, recompress};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Sender, channel};

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
    let turn = state.transcoding.clone().acquire_owned().await.expect("never closed");
    let Some(blob) = state.store.open_nar_file(&kept).await? else { return Ok(absent()) };
    let (sender, pieces) = channel::<io::Result<Bytes>>(PIECES_AHEAD);
    let counting = state.store.clone();
    tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let out = io::BufWriter::with_capacity(PIECE_BYTES, Pieces { sender: sender.clone(), runtime: Handle::current() });
        match recompress(blob.reader(), compression, out) {
            Ok(()) => counting.count_served(blob.size_bytes()),
            // Whoever reads sees that the body is cut; if nobody reads any more, nobody is told.
            Err(error) => {
                tracing::debug!(object = blob.object_key(), %error, "an archive was not sent whole");
                let _nobody_listens = sender.try_send(Err(error));
            }
        }
    });
    let body = stream::unfold(pieces, |mut pieces| async move { pieces.recv().await.map(|piece| (piece, pieces)) });
    Ok((head, Body::from_stream(body)).into_response())
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
    sender: Sender<io::Result<Bytes>>,
    runtime: Handle,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sending = tokio::time::timeout(STALL, self.sender.send(Ok(Bytes::copy_from_slice(bytes))));
        match self.runtime.block_on(sending) {
            Ok(Ok(())) => Ok(bytes.len()),
            Ok(Err(_)) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narinfo_of_the_xz_cache_says_nothing_of_the_file_but_its_name() {
        let kept = "StorePath: /nix/store/x\nURL: nar/abc.nar.zst\nCompression: zstd\nFileHash: sha256:1\nFileSize: 1\nNarHash: sha256:2\n\
                    NarSize: 3\nReferences: \nSig: farm-1:x\nFileBlake3: 4\n";
        let expected =
            "StorePath: /nix/store/x\nURL: nar/abc.nar.xz\nCompression: xz\nNarHash: sha256:2\nNarSize: 3\nReferences: \nSig: farm-1:x\n";
        assert_eq!(in_xz(kept), expected);
    }
}
