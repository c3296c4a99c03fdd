//! Pauses between tries of what cannot be done at the moment, mostly because a store is away.

use std::time::Duration;

use crate::driver::Chain;

/// Grows with each try, within limits.
#[derive(Debug)]
pub(crate) struct Pauses(Duration);

impl Pauses {
    /// Says that it failed, and waits before the next try.
    pub(crate) async fn after(&mut self, error: &(dyn std::error::Error + Send + Sync)) {
        tracing::warn!(error = %Chain(error), "tried again in {:?}", self.0);
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(LONGEST);
    }
}

impl Default for Pauses {
    fn default() -> Self {
        Self(FIRST)
    }
}

/// The first pause; the store's own tries come before it.
const FIRST: Duration = Duration::from_millis(250);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(10);
