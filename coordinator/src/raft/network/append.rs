//! The lane of appends: requests go out as raft makes them, answers come back in their order.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use kiln_link::{LinkError, Receiver, Sender};
use openraft::errors::RPCError;
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::lane::{Lane, send_with};
use super::messages::{Append, Appended, Call};
use super::{parts, unreachable};
use crate::raft::types::TypeConfig;

/// What raft expects of a stream of appends.
pub type Answers<'s> = BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>;

/// Sends requests as they come and returns the stream of their answers. `answer_max` bounds the wait for each.
pub async fn stream<S>(lane: Arc<Lane>, mut input: S, answer_max: Duration) -> Result<Answers<'static>, RPCError<TypeConfig>>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    // Raft waits out a back-off while its requests are asked for, not before: connecting first would try again without a pause.
    let Some(first) = input.next().await else { return Ok(futures::stream::empty().boxed()) };
    let (mut sender, receiver) = lane.open_stream().await.map_err(|err| unreachable(&err))?;
    send_with(&mut sender, &Call::Append, &Append::from(first)).await.map_err(|err| unreachable(&lane.failed(err)))?;
    // Bounded by the stream's window, which holds up the sending.
    let (sent, waiting) = mpsc::unbounded_channel();
    let first_is_sent = sent.send(());
    debug_assert!(first_is_sent.is_ok(), "the receiver is still here");
    let sending = AbortOnDrop(tokio::spawn(send_all(sender, input, sent)).abort_handle());
    let reading = Reading { lane, receiver, waiting, _sending: sending, answer_max };
    Ok(futures::stream::unfold(Some(reading), next_answer).boxed())
}

/// Asks one request on a stream of its own: a sign of life.
pub async fn once(lane: &Lane, request: AppendEntriesRequest<TypeConfig>) -> Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>> {
    let watch = lane.watch();
    let (mut sender, mut receiver) = lane.open_stream().await.map_err(|err| unreachable(&err))?;
    let answer: Result<Option<Appended>, LinkError> = async {
        send_with(&mut sender, &Call::Append, &Append::from(request)).await?;
        receiver.recv().await
    }
    .await;
    let answer = answer.and_then(|answer| answer.ok_or(LinkError::Truncated)).map_err(|err| unreachable(&lane.failed(err)))?;
    watch.answered();
    Ok(answer.into())
}

/// The answers of one stream. Each item of `waiting` is a request that was sent.
struct Reading {
    lane: Arc<Lane>,
    receiver: Receiver,
    waiting: mpsc::UnboundedReceiver<()>,
    _sending: AbortOnDrop,
    answer_max: Duration,
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn send_all<S>(mut sender: Sender, mut input: S, sent: mpsc::UnboundedSender<()>)
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    while let Some(request) = input.next().await {
        let fed = parts::feed(&mut sender, &Append::from(request));
        // The reading half sees what is wrong with the connection.
        if fed.is_err() || sent.send(()).is_err() || sender.flush().await.is_err() {
            return;
        }
    }
}

async fn next_answer(reading: Option<Reading>) -> Option<(Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>, Option<Reading>)> {
    let mut reading = reading?;
    reading.waiting.recv().await?;
    let answer = tokio::time::timeout(reading.answer_max, reading.receiver.recv::<Appended>()).await;
    let result = match answer {
        Ok(Ok(Some(appended))) => Ok(StreamAppendResult::from(appended)),
        Ok(Ok(None)) => Err(reading.lane.failed(LinkError::Truncated)),
        Ok(Err(err)) => Err(reading.lane.failed(err)),
        Err(_) => {
            reading.lane.give_up();
            Err(reading.lane.silent())
        }
    };
    let goes_on = matches!(result, Ok(Ok(_)));
    Some((result.map_err(|err| unreachable(&err)), goes_on.then_some(reading)))
}
