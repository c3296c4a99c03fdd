//! Answers that go on: what is told is made by a task of its own, so that a stream ends with the coordinator, and soon after its reader takes
//! nothing, and not when somebody happens to write to it.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use tokio::sync::mpsc;

use super::turns::StreamTurn;

/// Returns an answer of server-sent events.
pub(super) fn events(turn: StreamTurn, pieces: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let (tell, told) = mpsc::channel(1);
    tokio::spawn(feed(turn, pieces, tell));
    let body = stream::unfold(told, |mut told| async move {
        let piece = told.recv().await?;
        Some((Ok::<_, Infallible>(piece), told))
    });
    let mut answer = Response::new(Body::from_stream(body));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    // A proxy that collects what it passes on would hold events back.
    answer.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    answer
}

/// Hands pieces on until there are no more, nobody is there, nobody takes them, or the coordinator stops.
async fn feed(mut turn: StreamTurn, pieces: impl Stream<Item = Bytes>, tell: mpsc::Sender<Bytes>) {
    let mut pieces = pin!(pieces);
    loop {
        let piece = tokio::select! {
            piece = pieces.next() => piece,
            () = tell.closed() => None,
            () = turn.ended() => None,
        };
        let Some(piece) = piece else { return };
        let taken = tokio::select! {
            taken = tell.send_timeout(piece, STALLED) => taken,
            () = turn.ended() => return,
        };
        if taken.is_err() {
            return;
        }
    }
}

/// How long a reader may take nothing of what is there for it.
const STALLED: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use kiln_core::Sight;

    use super::super::turns::Streams;
    use super::*;
    use crate::access::{Caller, Standing};

    fn turn(streams: &Streams) -> StreamTurn {
        let caller = Caller { token: None, standing: Standing::Reader, sight: Sight::All, role: None };
        streams.open(&caller).unwrap_or_else(|_| panic!("there is room"))
    }

    fn endless() -> impl Stream<Item = Bytes> {
        stream::repeat_with(|| Bytes::from_static(b":\n\n"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_reader_takes_nothing_gives_its_turn_back() {
        let streams = Streams::default();
        let (tell, mut told) = mpsc::channel(1);
        let fed = tokio::spawn(feed(turn(&streams), endless(), tell));
        assert!(told.recv().await.is_some());
        assert_eq!(streams.count(), 1);
        // Time stands still but for who waits for it: the reader is there, and takes nothing.
        fed.await.expect("it ends");
        assert_eq!(streams.count(), 0);
    }

    #[tokio::test]
    async fn streams_end_with_their_reader_and_with_the_coordinator() {
        let streams = Streams::default();
        let (tell, told) = mpsc::channel(1);
        let fed = tokio::spawn(feed(turn(&streams), stream::pending(), tell));
        drop(told);
        fed.await.expect("it ends with its reader");
        let (tell, mut told) = mpsc::channel(1);
        let fed = tokio::spawn(feed(turn(&streams), stream::pending(), tell));
        streams.end();
        fed.await.expect("it ends with the coordinator");
        assert!(told.recv().await.is_none());
        assert_eq!(streams.count(), 0);
    }
}
