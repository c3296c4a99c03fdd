//! A log as server-sent events, until its attempt ends. The id of a line is where the next one begins, so that whoever goes on from it
//! loses none and hears none twice: the bytes of an attempt's log are the same at every coordinator.

use std::fmt::Write;

use axum::http::HeaderValue;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use kiln_api::{LogEnd, LogLine};
use kiln_wire::limits::{API_LINE_BYTES_MAX, API_STREAM_PIECE_BYTES};
use kiln_wire::{AttemptId, DrvPath};

use super::events::HEARTBEAT;
use super::{Api, Refused, log, streamed};
use crate::access::Caller;
use crate::followed_log::{FollowError, FollowedLog, Piece};

/// Reads where a stream is to go on: `ATTEMPT:OFFSET`.
pub(super) fn place(id: &HeaderValue) -> Option<(AttemptId, u64)> {
    let (attempt, offset) = id.to_str().ok()?.split_once(':')?;
    Some((AttemptId(attempt.parse().ok()?), offset.parse().ok()?))
}

/// Follows a log from an offset on.
pub(super) async fn follow(
    api: &Api,
    caller: &Caller,
    derivation: DrvPath,
    attempt: AttemptId,
    offset_bytes: u64,
) -> Result<Response, Refused> {
    let turn = api.0.streams.open(caller)?;
    let log = FollowedLog::open(api.parts(), derivation.clone(), attempt, offset_bytes).await;
    let log = log.map_err(|error| refused(&derivation, error))?;
    let lines = Lines { attempt, offset_bytes, untold: Vec::new() };
    let following = Following { derivation, log, lines, is_ended: false };
    Ok(streamed::events(turn, stream::unfold(following, |mut following| async move { Some((following.next().await?, following)) })))
}

fn refused(derivation: &DrvPath, error: FollowError) -> Refused {
    match error {
        FollowError::Absent(error) => log::absent(derivation, &error),
        FollowError::Beyond { size_bytes } => log::beyond(size_bytes),
        FollowError::Behind => Refused::unavailable(error.to_string()),
        FollowError::Io(error) => Refused::failed("read log", &error),
    }
}

struct Following {
    derivation: DrvPath,
    log: FollowedLog,
    lines: Lines,
    is_ended: bool,
}

impl Following {
    /// Returns the next events, or a sign of life; none at the end. Where the rest is elsewhere the stream ends without a word, and whoever
    /// comes back is told it by the leader.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.is_ended {
            if let Some(told) = self.lines.tell(false) {
                return Some(told);
            }
            match self.log.next().await {
                Ok(Piece::Bytes(bytes)) => self.lines.untold.extend(bytes),
                Ok(Piece::Silence) => return Some(Bytes::from_static(HEARTBEAT)),
                Ok(Piece::End) => {
                    self.is_ended = true;
                    return Some(self.lines.end());
                }
                Ok(Piece::Elsewhere) => return None,
                Err(error) => {
                    tracing::warn!(job = %self.derivation, %error, "read a log that is followed");
                    return None;
                }
            }
        }
        None
    }
}

/// Bytes of a log on their way to becoming events.
struct Lines {
    attempt: AttemptId,
    /// Bytes that were told.
    offset_bytes: u64,
    /// Those that come after them.
    untold: Vec<u8>,
}

impl Lines {
    /// Returns the next lines as events, about as many as a stream takes at a time; one that is not at its end says so. None if there is
    /// nothing to tell: a character of which the end is missing waits for it, unless this is all there is.
    fn tell(&mut self, is_all: bool) -> Option<Bytes> {
        let (mut told, mut at) = (String::new(), 0);
        while told.len() < API_STREAM_PIECE_BYTES {
            let line = next_line(&self.untold[at..], is_all);
            if line.is_empty() {
                break;
            }
            let begin = self.offset_bytes;
            self.offset_bytes = begin.saturating_add(line.len() as u64);
            at += line.len();
            let ends = line.ends_with(b"\n");
            let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line)).into_owned();
            push(&mut told, "line", self.attempt, self.offset_bytes, &LogLine { offset_bytes: begin, text, ends });
        }
        self.untold.drain(..at);
        (!told.is_empty()).then(|| Bytes::from(told))
    }

    /// Returns what is left of the last line, and that there is no more.
    fn end(&mut self) -> Bytes {
        let mut told = self.tell(true).map_or_else(String::new, |told| String::from_utf8_lossy(&told).into_owned());
        let log_bytes = self.offset_bytes;
        push(&mut told, "end", self.attempt, log_bytes, &LogEnd { attempt: self.attempt.0, log_bytes });
        Bytes::from(told)
    }
}

/// Returns a line with its end, or as much of it as is there and is told at once. It ends between two characters.
fn next_line(bytes: &[u8], is_all: bool) -> &[u8] {
    let most = &bytes[..bytes.len().min(API_LINE_BYTES_MAX)];
    match most.iter().position(|byte| *byte == b'\n') {
        Some(end) => &most[..=end],
        None if is_all && most.len() == bytes.len() => most,
        None => &most[..most.len() - unfinished(most)],
    }
}

/// Returns how many bytes at the end are the beginning of a character in UTF-8.
fn unfinished(bytes: &[u8]) -> usize {
    for (back, byte) in bytes.iter().rev().take(3).enumerate() {
        let of_character = match byte {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0..=0x7f | 0xc0..=0xc1 | 0xf5..=0xff => return 0,
        };
        return if back + 1 < of_character { back + 1 } else { 0 };
    }
    0
}

fn push(told: &mut String, event: &str, attempt: AttemptId, offset_bytes: u64, data: &impl serde::Serialize) {
    let data = serde_json::to_string(data).expect("its maps have texts for keys");
    write!(told, "event: {event}\nid: {attempt}:{offset_bytes}\ndata: {data}\n\n").expect("a string takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tells chunks as they come, and what is left at the end; returns the pieces.
    fn told(chunks: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines { attempt: AttemptId(7), offset_bytes: 0, untold: Vec::new() };
        let mut pieces = Vec::new();
        for chunk in chunks {
            lines.untold.extend_from_slice(chunk);
            pieces.extend(std::iter::from_fn(|| lines.tell(false)));
        }
        pieces.extend(std::iter::from_fn(|| lines.tell(true)));
        pieces.into_iter().map(|piece| String::from_utf8(piece.to_vec()).expect("text")).collect()
    }

    fn texts(pieces: &[String]) -> Vec<String> {
        let data = pieces.iter().flat_map(|piece| piece.lines()).filter_map(|line| line.strip_prefix("data: "));
        data.map(|data| serde_json::from_str::<serde_json::Value>(data).expect("JSON")["text"].as_str().expect("a text").to_owned())
            .collect()
    }

    #[test]
    fn a_character_is_told_whole_wherever_the_log_was_cut() {
        let long = [vec![b'x'; API_LINE_BYTES_MAX - 1], "é".into()].concat();
        for (chunks, expected) in [
            (vec!["one\ntwo".as_bytes()], vec!["one", "two"]),
            (vec![b"a\xc3", b"\xa9\n"], vec!["a", "é"]),
            (vec![b"\xf0\x9f", b"\x94", b"\xa5"], vec!["🔥"]),
            (vec![b"\xe2\x82"], vec!["\u{fffd}"]),
            (vec![b"\xff\x80\n", b"\x80\x80\x80\x80"], vec!["\u{fffd}\u{fffd}", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}"]),
            (vec![&long], vec![std::str::from_utf8(&long[..API_LINE_BYTES_MAX - 1]).expect("text"), "é"]),
        ] {
            assert_eq!(texts(&told(&chunks)), expected, "{chunks:?}");
        }
    }

    #[test]
    fn many_short_lines_become_pieces_of_a_bounded_size() {
        let pieces = told(&[&[b'\n'; 64 << 10]]);
        assert_eq!(texts(&pieces).len(), 64 << 10);
        assert!(pieces.iter().all(|piece| piece.len() < API_STREAM_PIECE_BYTES + 200), "{:?}", pieces.iter().map(String::len).max());
    }
}
