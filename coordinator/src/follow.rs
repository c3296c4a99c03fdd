//! Streams that stay: a build's events until it ends, a log until its attempt does.

use std::sync::Arc;
use std::time::Duration;

use kiln_link::{LinkError, Sender};
use kiln_wire::client::{BuildState, Refusal, Response};
use kiln_wire::{AttemptId, BuildId, DrvPath};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use crate::driver::Chain;
use crate::followed_log::{FollowError, FollowedLog, Piece};
use crate::kept_logs::{self, KeptLogError};
use crate::parts::Parts;
use crate::watch::Notice;
use crate::{refuse, views};

/// Sends what happened to a build's jobs since it was submitted, then the build as it stands, then what happens, then the build as it ended.
pub(crate) async fn build(parts: &Arc<Parts>, build: BuildId, sender: &mut Sender) -> Result<(), LinkError> {
    // Subscribed before the first look, so that nothing falls between.
    let (early, mut notices) = parts.watchers.subscribe(build);
    for event in early {
        sender.send(&Response::Event(event)).await?;
    }
    let mut view_due = true;
    let mut view_after = VIEW_AFTER;
    loop {
        if view_due {
            let begun = tokio::time::Instant::now();
            match views::build(parts, build).await {
                Ok(view) => {
                    let ended = view.state != BuildState::Active && archived(parts, build).await;
                    if ended {
                        send_rest(&mut notices, build, sender).await?;
                    }
                    sender.send(&Response::Build(view)).await?;
                    if ended {
                        return Ok(());
                    }
                    view_after = VIEW_AFTER.max(begun.elapsed() * VIEW_SHARE);
                }
                Err(refusal) => return sender.send(&Response::Refused(refusal)).await,
            }
        }
        view_due = next_change(&mut notices, view_after, build, sender).await?;
    }
}

/// Returns whether an ended build is in the archive. One that cannot be asked is waited for: its end is told.
async fn archived(parts: &Parts, build: BuildId) -> bool {
    parts.archive.holds(build).await.unwrap_or_else(|error| {
        tracing::warn!(%build, error = %Chain(&error), "look for an archived build");
        false
    })
}

/// Passes events on until a new view is due: a moment after events came, at once when the build has ended or notices were missed.
async fn next_change(
    notices: &mut tokio::sync::broadcast::Receiver<Notice>,
    view_after: Duration,
    build: BuildId,
    sender: &mut Sender,
) -> Result<bool, LinkError> {
    let mut fresh_view = None;
    let view_due = loop {
        if notices.is_empty() {
            sender.flush().await?;
        }
        let notice = match fresh_view {
            None => notices.recv().await,
            Some(at) => match tokio::time::timeout_at(at, notices.recv()).await {
                Ok(notice) => notice,
                Err(_) => break true,
            },
        };
        match notice {
            Ok(Notice::Event(told)) if told.0.contains(&build) => {
                // What is told at one time is handed to the transport together.
                if sender.feed(&Response::Event(told.1.clone()))? >= TOGETHER_BYTES_MAX {
                    sender.flush().await?;
                }
                fresh_view.get_or_insert_with(|| tokio::time::Instant::now() + view_after);
            }
            Ok(Notice::Event(_)) => {}
            Ok(Notice::Ended(ended)) if ended == build => break true,
            Ok(Notice::Ended(_)) => {}
            Err(RecvError::Lagged(_)) => break true,
            // The coordinator stops; the connection is about to end too.
            Err(RecvError::Closed) => break false,
        }
    };
    // The view may have to wait for the archive; what has happened does not.
    sender.flush().await?;
    Ok(view_due)
}

/// Sends the events that came while the last view was made: the view of an ended build is the last thing that is sent.
async fn send_rest(notices: &mut tokio::sync::broadcast::Receiver<Notice>, build: BuildId, sender: &mut Sender) -> Result<(), LinkError> {
    loop {
        match notices.try_recv() {
            Ok(Notice::Event(told)) if told.0.contains(&build) => sender.send(&Response::Event(told.1.clone())).await?,
            Ok(Notice::Event(_) | Notice::Ended(_)) | Err(TryRecvError::Lagged(_)) => {}
            Err(TryRecvError::Empty | TryRecvError::Closed) => return Ok(()),
        }
    }
}

/// Sends a log, and with `stay` what is added to it until its attempt ends. Where the rest is elsewhere the client is told so, and goes on
/// with what it has.
pub(crate) async fn log(
    parts: &Arc<Parts>,
    derivation: &DrvPath,
    attempt: Option<AttemptId>,
    stay: bool,
    sender: &mut Sender,
) -> Result<(), LinkError> {
    let found = match attempt {
        Some(attempt) => Ok(Some(attempt)),
        None if stay => kept_logs::current_attempt(parts, derivation).await,
        None => kept_logs::latest_attempt(parts, derivation).await,
    };
    let found = match found {
        Ok(found) => found,
        Err(error) => return sender.send(&Response::Refused(refuse::unavailable("look for logs", &error))).await,
    };
    let Some(attempt) = found else {
        let refusal = refuse::not_found(format!("there is no log of `{derivation}`: no attempt of it has written one here"));
        return sender.send(&Response::Refused(refusal)).await;
    };
    let refusal = match stay {
        true => stay_with(parts, derivation, attempt, sender).await?,
        false => send_present(parts, derivation, attempt, sender).await?,
    };
    match refusal {
        Some(refusal) => sender.send(&Response::Refused(refusal)).await,
        None => Ok(()),
    }
}

/// Sends what there is of a log; returns why that is not all.
async fn send_present(
    parts: &Arc<Parts>,
    derivation: &DrvPath,
    attempt: AttemptId,
    sender: &mut Sender,
) -> Result<Option<Refusal>, LinkError> {
    let mut reader = match kept_logs::read(parts, derivation, attempt).await {
        Ok(reader) => reader,
        Err(error) => return Ok(Some(no_log(&error))),
    };
    loop {
        match reader.next_chunk() {
            Ok(chunk) if chunk.is_empty() => return Ok(None),
            Ok(chunk) => sender.send(&Response::Log(chunk)).await?,
            Err(error) => return Ok(Some(refuse::unavailable("read log", &error))),
        }
    }
}

/// Sends a log until its attempt ends; returns why that is not all.
async fn stay_with(
    parts: &Arc<Parts>,
    derivation: &DrvPath,
    attempt: AttemptId,
    sender: &mut Sender,
) -> Result<Option<Refusal>, LinkError> {
    let mut followed = match FollowedLog::open(parts, derivation.clone(), attempt, 0).await {
        Ok(followed) => followed,
        Err(FollowError::Absent(error)) => return Ok(Some(no_log(&error))),
        Err(error @ (FollowError::Beyond { .. } | FollowError::Behind | FollowError::Io(_))) => {
            return Ok(Some(refuse::unavailable("follow log", &error)));
        }
    };
    loop {
        match followed.next().await {
            Ok(Piece::Bytes(chunk)) => sender.send(&Response::Log(chunk)).await?,
            Ok(Piece::Silence) => {}
            Ok(Piece::End) => return Ok(None),
            Ok(Piece::Elsewhere) => return Ok(Some(refuse::unavailable("follow log", &Elsewhere))),
            Err(error) => return Ok(Some(refuse::unavailable("read log", &error))),
        }
    }
}

fn no_log(error: &KeptLogError) -> Refusal {
    match error {
        KeptLogError::Store(store) if store.is_passing() => refuse::unavailable("read log", error),
        KeptLogError::Elsewhere => refuse::unavailable("read log", error),
        KeptLogError::Store(_) | KeptLogError::Own(_) => refuse::not_found(Chain(error).to_string()),
    }
}

/// Why the rest of a log is not sent.
#[derive(Debug, thiserror::Error)]
#[error("the rest comes to the coordinator that leads")]
struct Elsewhere;

/// Bytes of events that are handed to the transport at once.
const TOGETHER_BYTES_MAX: usize = 64 << 10;
/// How long after an event a watcher gets a fresh view of the whole build.
const VIEW_AFTER: Duration = Duration::from_millis(400);
/// A watcher gets views for one part in so many of its time, however large its build is.
const VIEW_SHARE: u32 = 50;
