//! Pauses between tries.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Pauses that double from one try to the next, up to a bound.
#[derive(Clone, Debug)]
pub struct Pause {
    next: Duration,
    min: Duration,
    max: Duration,
}

impl Pause {
    /// The first pause is about `min`, none is longer than `max`.
    pub const fn new(min: Duration, max: Duration) -> Self {
        Self { next: min, min, max }
    }

    /// Notes success: the next pause is short again.
    pub fn reset(&mut self) {
        self.next = self.min;
    }

    /// Waits. Cancel safe, but for the growth of the next pause.
    pub async fn wait(&mut self) {
        let pause = jitter(self.next);
        self.next = (self.next * 2).min(self.max);
        tokio::time::sleep(pause).await;
    }
}

/// Half to the whole of `pause`, so that a thousand workers do not come back in the same millisecond.
fn jitter(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(0u8);
    let share = f64::from(u32::try_from(random >> 32).unwrap_or(0)) / f64::from(u32::MAX);
    pause.mul_f64(0.5 + share / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_their_bound_and_start_again_after_success() {
        let (min, max) = (Duration::from_millis(50), Duration::from_millis(300));
        let mut pause = Pause::new(min, max);
        let mut planned = Vec::new();
        for _ in 0..5 {
            planned.push(pause.next.as_millis());
            let since = tokio::time::Instant::now();
            let expected = pause.next;
            pause.wait().await;
            // The runtime's clock counts in whole milliseconds.
            let waited = since.elapsed();
            assert!(waited >= expected / 2 && waited <= expected + Duration::from_millis(1), "{waited:?} of {expected:?}");
        }
        assert_eq!(planned, [50, 100, 200, 300, 300]);
        pause.reset();
        assert_eq!(pause.next, min);
    }
}
