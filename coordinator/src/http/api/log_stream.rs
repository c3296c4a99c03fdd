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
use kiln_wire::limits::API_LINE_BYTES_MAX;
use kiln_wire::{AttemptId, DrvPath};

use super::events::{HEARTBEAT, stream_of};
use super::turns::StreamTurn;
use super::{Api, Refused, log};
use crate::access::Caller;
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
    let mut following = Following { api: api.clone(), derivation, attempt, offset_bytes, reader: None, step: Step::Read, _turn: turn };
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
    /// Bytes that were told.
    offset_bytes: u64,
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
                Ok(chunk) if !chunk.is_empty() => return Some(self.tell(&chunk)),
                Ok(_) if self.step == Step::ReadLast => return self.end(),
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
        if self.is_live() && crate::leading::own(self.api.parts()).is_some() {
            // The attempt goes on: its worker is about to send the rest, maybe to a new file.
            self.reader = None;
        } else {
            self.step = Step::ReadLast;
        }
    }

    async fn open(&self) -> Result<LogReader, Refused> {
        let mut reader = log::open(&self.api, &self.derivation, self.attempt).await?;
        let size_bytes = reader.size_bytes().map_err(|error| Refused::failed("read log", &error))?;
        if size_bytes < self.offset_bytes && self.is_live() {
            return Err(Refused::unavailable("the log is not as far as it was told elsewhere"));
        }
        reader.skip_to(self.offset_bytes.min(size_bytes)).map_err(|error| Refused::failed("read log", &error))?;
        Ok(reader)
    }

    fn is_live(&self) -> bool {
        let lease = self.api.parts().farm(|farm| farm.live_lease(&self.derivation));
        lease.is_some_and(|lease| lease.attempt == self.attempt)
    }

    /// Returns the lines of a chunk as events; one that is not at its end says so.
    fn tell(&mut self, chunk: &[u8]) -> Bytes {
        let mut told = String::new();
        for line in chunk.split_inclusive(|byte| *byte == b'\n').flat_map(|line| line.chunks(API_LINE_BYTES_MAX)) {
            let begin = self.offset_bytes;
            self.offset_bytes += line.len() as u64;
            let ends = line.ends_with(b"\n");
            let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line)).into_owned();
            let line = LogLine { offset_bytes: begin, text, ends };
            push(&mut told, "line", self.attempt, self.offset_bytes, &line);
        }
        Bytes::from(told)
    }

    /// Says that the log is at its end; a coordinator that was deposed does not know.
    fn end(&mut self) -> Option<Bytes> {
        self.step = Step::End;
        if self.is_live() {
            return None;
        }
        let mut told = String::new();
        let end = LogEnd { attempt: self.attempt.0, log_bytes: self.offset_bytes };
        push(&mut told, "end", self.attempt, self.offset_bytes, &end);
        Some(Bytes::from(told))
    }
}

fn push(told: &mut String, event: &str, attempt: AttemptId, offset_bytes: u64, data: &impl serde::Serialize) {
    let data = serde_json::to_string(data).expect("its maps have texts for keys");
    write!(told, "event: {event}\nid: {attempt}:{offset_bytes}\ndata: {data}\n\n").expect("a string takes everything");
}

/// How long nothing may be said.
const LIFE: Duration = Duration::from_secs(15);
/// How soon a log is looked for again whose worker has not come to this coordinator yet.
const REOPEN: Duration = Duration::from_millis(300);
