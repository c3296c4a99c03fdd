//! How slow a worker is: it may answer nothing for a while, or take long to build.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The pace of one worker, shared with whoever slows it down.
#[derive(Clone, Debug, Default)]
pub struct Pace(Arc<Mutex<State>>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    stalled_until: Duration,
    longer: Duration,
}

impl Pace {
    /// Has it say and do nothing in its session until then, heartbeats included; its connection lives.
    pub fn stall_until(&self, at: Duration) {
        self.change(|state| state.stalled_until = at);
    }

    /// Has builds that begin from here on take so much longer.
    pub fn take_longer(&self, longer: Duration) {
        self.change(|state| state.longer = longer);
    }

    /// Lets it work as it can.
    pub fn be_well(&self) {
        self.change(|state| *state = State::default());
    }

    /// Returns how much longer a build takes.
    pub fn longer(&self) -> Duration {
        self.look().longer
    }

    /// Waits while it is stalled.
    pub async fn wait(&self) {
        while turmoil::sim_elapsed().is_some_and(|now| now < self.look().stalled_until) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn look(&self) -> State {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

const LOOK_EVERY: Duration = Duration::from_millis(50);
