//! A log as server-sent events, until its attempt ends. The id of a line is where the next one begins, so that whoever goes on from it
//! loses none and hears none twice: the bytes of an attempt's log are the same at every coordinator.

use std::convert::Infallible;
use std::fmt::Write;
use std::time::Duration;

use axum::http::HeaderValue;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use kiln_api::{LogEnd, LogLine};
use kiln_wire::limits::{API_LINE_BYTES_MAX, API_STREAM_PIECE_BYTES};
use kiln_wire::{AttemptId, DrvPath};

use super::events::{HEARTBEAT, stream_of};
use super::turns::StreamTurn;
use super::{Api, Refused, log};
use crate::access::Caller;
use crate::leading;
use crate::logs::LogReader;

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
    let lines = Lines { attempt, offset_bytes, untold: Vec::new() };
    let mut following = Following { api: api.clone(), derivation, attempt, lines, reader: None, step: Step::Read, _turn: turn };
    if !following.is_live() {
        // Nothing will come of a log that is not there; of a running attempt it may come yet.
        following.reader = Some(following.open().await?);
    }
    let pieces = stream::unfold(following, |mut following| async move {
        let piece = following.next().await?;
        Some((Ok::<_, Infallible>(piece), following))
    });
    Ok(stream_of(pieces))
}

struct Following {
    api: Api,
    derivation: DrvPath,
    attempt: AttemptId,
    lines: Lines,
    /// None until there is one.
    reader: Option<LogReader>,
    step: Step,
    _turn: StreamTurn,
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Read on.
    Read,
    /// Read on: no more is written.
    ReadLast,
    /// Nothing.
    End,
}

impl Following {
    /// Returns the next events, or a sign of life; none at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.step == Step::End {
            return None;
        }
        loop {
            if let Some(told) = self.lines.tell(false) {
                return Some(told);
            }
            let Some(reader) = &mut self.reader else {
                if let Ok(reader) = self.open().await {
                    self.reader = Some(reader);
                    continue;
                }
                if !self.is_live() {
                    return self.end();
                }
                tokio::time::sleep(REOPEN).await;
                return Some(Bytes::from_static(HEARTBEAT));
            };
            match reader.next_chunk() {
                Ok(chunk) if !chunk.is_empty() => self.lines.untold.extend(chunk),
                Ok(_) if self.step == Step::ReadLast => match self.lines.tell(true) {
                    Some(told) => return Some(told),
                    None => return self.end(),
                },
                Ok(_) => match tokio::time::timeout(LIFE, reader.grown()).await {
                    Ok(true) => {}
                    // Another look after the end: bytes may have come between the last read and the end.
                    Ok(false) => self.closed(),
                    Err(_) => return Some(Bytes::from_static(HEARTBEAT)),
                },
                Err(error) => {
                    tracing::warn!(derivation = %self.derivation, %error, "read a log that is followed");
                    return None;
                }
            }
        }
    }

    /// Nothing more is written to the file that is read.
    fn closed(&mut self) {
        if self.is_live() && leading::own(self.api.parts()).is_some() {
            // The attempt goes on: its worker is about to send the rest, maybe to a new file.
            self.reader = None;
            self.lines.untold.clear();
        } else {
            self.step = Step::ReadLast;
        }
    }

    async fn open(&self) -> Result<LogReader, Refused> {
        let mut reader = log::open(&self.api, &self.derivation, self.attempt).await?;
        let size_bytes = reader.size_bytes().map_err(|error| Refused::failed("read log", &error))?;
        let offset_bytes = self.lines.offset_bytes;
        if size_bytes < offset_bytes {
            return Err(match self.is_live() {
                true => Refused::unavailable("the log is not as far as it was told elsewhere"),
                false => log::beyond(size_bytes),
            });
        }
        reader.skip_to(offset_bytes).map_err(|error| Refused::failed("read log", &error))?;
        Ok(reader)
    }

    fn is_live(&self) -> bool {
        let lease = self.api.parts().farm(|farm| farm.live_lease(&self.derivation));
        lease.is_some_and(|lease| lease.attempt == self.attempt)
    }

    /// Says that the log is at its end. A coordinator that was deposed does not know, unless what it reads is the store's: the stream ends
    /// without a word, and whoever comes back is told the rest by the leader.
    fn end(&mut self) -> Option<Bytes> {
        self.step = Step::End;
        let is_whole = self.reader.as_ref().is_some_and(LogReader::is_stored) || leading::own(self.api.parts()).is_some();
        if self.is_live() || !is_whole {
            return None;
        }
        let (mut told, log_bytes) = (String::new(), self.lines.offset_bytes);
        push(&mut told, "end", self.attempt, log_bytes, &LogEnd { attempt: self.attempt.0, log_bytes });
        Some(Bytes::from(told))
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

/// How long nothing may be said.
const LIFE: Duration = Duration::from_secs(15);
/// How soon a log is looked for again whose worker has not come to this coordinator yet.
const REOPEN: Duration = Duration::from_millis(300);

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
