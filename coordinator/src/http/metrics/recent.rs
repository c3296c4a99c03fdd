//! What was seen a moment ago, for all who ask: one looks, and the others wait for what that one sees.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::heavy::heavy;

/// What was seen last, and until when it is new enough.
pub struct Recent<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Recent<T> {
    /// Returns what was seen within the last second, or looks.
    pub async fn get(&self, look: impl FnOnce() -> T) -> T {
        let mut seen = self.0.lock().await;
        if let Some((_, recent)) = seen.as_ref().filter(|(good_until, _)| Instant::now() < *good_until) {
            return recent.clone();
        }
        let fresh = heavy(look);
        *seen = Some((Instant::now() + AGE_MAX, fresh.clone()));
        fresh
    }
}

/// How old what is answered may be. Prometheus asks less often.
const AGE_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_within_a_second_has_what_was_seen() {
        let (recent, looks) = (Recent::default(), AtomicU64::new(0));
        let look = || looks.fetch_add(1, Ordering::Relaxed);
        assert_eq!([recent.get(look).await, recent.get(look).await], [0, 0]);
        tokio::time::advance(AGE_MAX).await;
        assert_eq!([recent.get(look).await, recent.get(look).await], [1, 1]);
    }
}
