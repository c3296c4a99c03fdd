//! One session with the leading coordinator: a stream of messages in each direction, on a connection that requests share.
//!
//! Decides nothing about attempts: what comes in goes to the [`Shell`], what the shell wants said goes out in order, the rest of an
//! attempt's log before its result. A slow coordinator holds up log bytes on disk, not in memory.

use std::collections::VecDeque;
use std::time::Duration;

use kiln_link::{Connection, LinkError, Receiver, Sender};
use kiln_wire::client::Request;
use kiln_wire::limits::{HEARTBEAT_MS, LOG_CHUNK_BYTES_MAX};
use kiln_wire::worker::{FromWorker, ToWorker};
use kiln_wire::{Lease, NotLeader};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::shell::{AttemptEvent, Shell};

/// Bytes that wait for the transport before more log is read from disk: a few chunks.
const PENDING_BYTES_MAX: usize = 256 << 10;
/// Longest time to wait for the welcome: the coordinator has to commit the registration first.
const WELCOME: Duration = Duration::from_secs(10);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionEnd {
    /// The link failed, or the peer closed it.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The coordinator ended the stream.
    #[error("the coordinator ended the session")]
    ByPeer,
    /// No welcome came.
    #[error("no welcome came for {} s", WELCOME.as_secs())]
    NotWelcomed,
    /// The coordinator does not lead.
    #[error("the coordinator does not lead; the leader is {}", .0.leader.as_ref().map_or("unknown", |at| &at.link))]
    NotLeader(NotLeader),
    /// Another coordinator leads.
    #[error("another coordinator leads")]
    Superseded,
    /// The coordinator was deposed.
    #[error(transparent)]
    Stale(#[from] kiln_agent::StaleLeader),
}

/// What happens while a session is open.
#[derive(Debug)]
pub enum Happening {
    /// The coordinator says something.
    Message(ToWorker),
    /// Something became of an attempt.
    Event(AttemptEvent),
}

/// An open session.
pub struct Session {
    sender: Sender,
    receiver: Receiver,
    outgoing: VecDeque<FromWorker>,
    /// Bytes that the transport has not taken.
    pending_bytes: usize,
    heartbeat: Interval,
    welcome_until: Option<Instant>,
}

impl Session {
    /// Opens the session stream on `connection`.
    ///
    /// # Errors
    /// [`LinkError`] if the connection is lost.
    pub async fn open(connection: &Connection) -> Result<Self, LinkError> {
        let (mut sender, receiver) = connection.open().await?;
        sender.send(&Request::Session).await?;
        let period = Duration::from_millis(HEARTBEAT_MS);
        let mut heartbeat = tokio::time::interval_at(Instant::now() + period, period);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let welcome_until = Some(Instant::now() + WELCOME);
        Ok(Self { sender, receiver, outgoing: VecDeque::new(), pending_bytes: 0, heartbeat, welcome_until })
    }

    /// Queues a message.
    pub fn send(&mut self, message: FromWorker) {
        self.outgoing.push_back(message);
    }

    /// Notes that the welcome came.
    pub fn welcomed(&mut self) {
        self.welcome_until = None;
    }

    /// Waits for the next happening while sending what is queued. Cancel safe.
    ///
    /// # Errors
    /// [`SessionEnd`] if the session is over.
    pub async fn next(&mut self, shell: &mut Shell, events: &mut mpsc::UnboundedReceiver<AttemptEvent>) -> Result<Happening, SessionEnd> {
        loop {
            self.feed(shell)?;
            let overdue = tokio::time::sleep_until(self.welcome_until.unwrap_or_else(|| Instant::now() + WELCOME));
            tokio::select! {
                // The heartbeat first: nothing else may starve it.
                biased;
                _ = self.heartbeat.tick() => self.outgoing.push_front(FromWorker::Heartbeat),
                Some(event) = events.recv() => return Ok(Happening::Event(event)),
                message = self.receiver.recv::<ToWorker>() => return message?.map(Happening::Message).ok_or(SessionEnd::ByPeer),
                flushed = self.sender.flush(), if self.pending_bytes > 0 => {
                    flushed?;
                    self.pending_bytes = 0;
                }
                () = shell.log_changed(), if self.pending_bytes == 0 => {}
                () = overdue, if self.welcome_until.is_some() => return Err(SessionEnd::NotWelcomed),
            }
        }
    }

    /// Moves messages and log bytes to the transport's buffer while it has room.
    fn feed(&mut self, shell: &mut Shell) -> Result<(), SessionEnd> {
        while self.pending_bytes < PENDING_BYTES_MAX {
            let message = match self.outgoing.pop_front() {
                // Before the welcome there is only the hello: a coordinator that does not lead gets nothing else.
                Some(message @ FromWorker::Finished { .. }) => match shell.next_log(lease_of(&message)) {
                    Some(log) => {
                        self.outgoing.push_front(message);
                        log
                    }
                    None => message,
                },
                Some(message) => message,
                None if self.welcome_until.is_some() => return Ok(()),
                None => match shell.next_log(None) {
                    Some(log) => log,
                    None => return Ok(()),
                },
            };
            self.pending_bytes = self.sender.feed(&message)?;
        }
        Ok(())
    }
}

fn lease_of(message: &FromWorker) -> Option<&Lease> {
    match message {
        FromWorker::Started(lease) | FromWorker::Log { lease, .. } | FromWorker::Finished { lease, .. } => Some(lease),
        FromWorker::Hello(_) | FromWorker::Heartbeat | FromWorker::Admission(_) | FromWorker::Winding(_) => None,
    }
}

/// Bytes of log in one message.
pub const CHUNK_BYTES: usize = LOG_CHUNK_BYTES_MAX;
