//! Who is answered how many at a time: whoever fills one kind of turns leaves the others to the rest.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_wire::limits::{API_OPEN_REQUESTS_MAX, API_REQUESTS_MAX, API_STEERS_MAX, API_STREAMS_MAX, API_STREAMS_PER_TOKEN_MAX};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::Refused;
use super::routes::{Route, Verb};
use crate::access::{Caller, Standing};

/// Requests that are answered.
pub(super) struct Turns {
    /// What wants no token.
    open: Semaphore,
    looks: Arc<Semaphore>,
    steers: Semaphore,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            open: Semaphore::new(API_OPEN_REQUESTS_MAX),
            looks: Arc::new(Semaphore::new(API_REQUESTS_MAX)),
            steers: Semaphore::new(API_STEERS_MAX),
        }
    }
}

impl Turns {
    /// Takes a turn for a look; none if there are as many as may be.
    pub(super) fn look(&self) -> Option<OwnedSemaphorePermit> {
        self.looks.clone().try_acquire_owned().ok()
    }

    /// Returns where a request of a route takes its turn.
    pub(super) fn of(&self, route: &Route) -> &Semaphore {
        match (route.needs, route.verb) {
            (Standing::Nobody, Verb::Get | Verb::Post) => &self.open,
            (Standing::Anonymous | Standing::Reader | Standing::Submitter | Standing::Admin, Verb::Get) => &self.looks,
            (Standing::Anonymous | Standing::Reader | Standing::Submitter | Standing::Admin, Verb::Post) => &self.steers,
        }
    }
}

/// Streams that are open, and whose.
pub(super) struct Streams {
    all: Arc<Semaphore>,
    /// True once all are to end.
    stopped: watch::Sender<bool>,
    by_token: Arc<Mutex<BTreeMap<Option<String>, usize>>>,
}

impl Default for Streams {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(API_STREAMS_MAX)), stopped: watch::Sender::new(false), by_token: Arc::default() }
    }
}

/// A stream that is open.
pub(super) struct StreamTurn {
    token: Option<String>,
    by_token: Arc<Mutex<BTreeMap<Option<String>, usize>>>,
    stopped: watch::Receiver<bool>,
    _turn: OwnedSemaphorePermit,
}

impl Streams {
    /// Opens a stream for somebody.
    ///
    /// # Errors
    /// [`Refused`] if there are too many, or too many of this one.
    pub(super) fn open(&self, caller: &Caller) -> Result<StreamTurn, Refused> {
        let turn = self.all.clone().try_acquire_owned().map_err(|_| Refused::busy("streams"))?;
        let mut by_token = self.by_token.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_token.entry(caller.token.clone()).or_default();
        if *count >= API_STREAMS_PER_TOKEN_MAX {
            return Err(Refused::busy("streams of this token, or without one,"));
        }
        *count += 1;
        let stopped = self.stopped.subscribe();
        Ok(StreamTurn { token: caller.token.clone(), by_token: self.by_token.clone(), stopped, _turn: turn })
    }

    /// Has all streams end.
    pub(super) fn end(&self) {
        self.stopped.send_replace(true);
    }

    /// Returns how many are open.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.by_token.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }
}

impl StreamTurn {
    /// Waits until the stream is to end.
    pub(super) async fn ended(&mut self) {
        // An error says that there is nobody left who could say it.
        let _told = self.stopped.wait_for(|stopped| *stopped).await;
    }
}

impl Drop for StreamTurn {
    fn drop(&mut self) {
        let mut by_token = self.by_token.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_token.get_mut(&self.token) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                by_token.remove(&self.token);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kiln_core::Sight;

    use super::*;

    #[test]
    fn who_has_many_streams_leaves_some_to_others() {
        let caller =
            |token: Option<&str>| Caller { token: token.map(str::to_owned), standing: Standing::Reader, sight: Sight::All, role: None };
        let streams = Streams::default();
        let mut open: Vec<StreamTurn> = (0..API_STREAMS_PER_TOKEN_MAX).filter_map(|_| streams.open(&caller(Some("a"))).ok()).collect();
        assert_eq!(open.len(), API_STREAMS_PER_TOKEN_MAX);
        assert!(
            streams.open(&caller(Some("a"))).is_err() && streams.open(&caller(Some("b"))).is_ok() && streams.open(&caller(None)).is_ok()
        );
        open.pop();
        assert!(streams.open(&caller(Some("a"))).is_ok(), "one has ended");
        open.clear();
        assert!(streams.by_token.lock().expect("whole").is_empty(), "nobody is remembered");
    }
}
