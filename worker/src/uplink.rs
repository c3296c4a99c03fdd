//! The way to the leading coordinator, as the parts that move bytes see it: a connection that comes and goes.
//!
//! The session (see [`crate::session`]) puts a connection here once a leader has welcomed the worker. Requests wait for one, and
//! try again on the next when it breaks, with pauses, for a bounded time.

use std::time::{Duration, Instant};

use kiln_link::{Connection, LinkError};
use kiln_wire::client::{Refusal, RefusalKind, Response};
use tokio::sync::watch;

/// Longest time without any progress before a transfer is given up: a farm without a leader for so long has other troubles, and
/// another worker may be luckier.
const PATIENCE: Duration = Duration::from_secs(600);
/// The first pause between tries; doubled each time.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Where requests find the connection. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Uplink(watch::Receiver<Option<Connection>>);

/// A request that failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The link failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The coordinator refuses.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// The coordinator does not lead.
    #[error("the coordinator does not lead")]
    NotLeader,
    /// The coordinator answers with something else.
    #[error("the coordinator's answer does not fit the request")]
    Answer,
    /// No try succeeded for too long.
    #[error("no coordinator could be reached for {} s", PATIENCE.as_secs())]
    Unreachable,
}

impl RequestError {
    /// Whether a later try may succeed.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Link(LinkError::Blob(_) | LinkError::Frame(_)) | Self::Answer | Self::Unreachable => false,
            Self::Link(_) | Self::NotLeader => true,
            Self::Refused(refusal) => refusal.kind == RefusalKind::Unavailable,
        }
    }
}

/// The tries of one transfer.
#[derive(Debug)]
pub struct Tries {
    uplink: Uplink,
    progress_at: Instant,
    pause: Duration,
}

impl Uplink {
    /// Makes the two ends.
    pub fn new() -> (watch::Sender<Option<Connection>>, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self(receiver))
    }

    /// Starts the tries of a transfer.
    pub fn tries(&self) -> Tries {
        Tries { uplink: self.clone(), progress_at: Instant::now(), pause: PAUSE_MIN }
    }

    async fn live(&mut self) -> Result<Connection, RequestError> {
        let usable = |connection: &Option<Connection>| connection.as_ref().is_some_and(|live| live.close_reason().is_none());
        let found = self.0.wait_for(usable).await.map_err(|_| RequestError::Unreachable)?;
        found.clone().ok_or(RequestError::Unreachable)
    }
}

impl Tries {
    /// Waits for a connection.
    ///
    /// # Errors
    /// [`RequestError::Unreachable`] if there has been no progress for too long, or the worker stops.
    pub async fn connection(&mut self) -> Result<Connection, RequestError> {
        let left = PATIENCE.saturating_sub(self.progress_at.elapsed());
        tokio::time::timeout(left, self.uplink.live()).await.map_err(|_| RequestError::Unreachable)?
    }

    /// Notes that bytes moved: patience and pauses start again.
    pub fn progress(&mut self) {
        self.progress_at = Instant::now();
        self.pause = PAUSE_MIN;
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// `error` itself, if another try cannot help or patience is over.
    pub async fn again(&mut self, error: RequestError) -> Result<(), RequestError> {
        if !error.is_passing() || self.progress_at.elapsed() >= PATIENCE {
            return Err(error);
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}

/// Returns the answer, unless there is none or it is a refusal.
///
/// # Errors
/// [`RequestError::Refused`]; [`RequestError::NotLeader`]; [`RequestError::Answer`] if the stream ended.
pub fn answer(response: Option<Response>) -> Result<Response, RequestError> {
    match response {
        Some(Response::Refused(refusal)) => Err(RequestError::Refused(refusal)),
        Some(Response::NotLeader(_)) => Err(RequestError::NotLeader),
        Some(response) => Ok(response),
        None => Err(RequestError::Answer),
    }
}
