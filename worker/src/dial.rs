//! Finds a coordinator: tries those of the configuration in turn, with jittered pauses, for ever.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use kiln_link::{Connection, Dialer};

/// The first pause after a failed round: a coordinator that restarts is back in less.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause: a farm with a new leader is found this late at most.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Where a worker dials next.
#[derive(Debug)]
pub struct Route {
    coordinators: Vec<String>,
    next: usize,
    pause: Duration,
}

impl Route {
    /// Starts with the first of `coordinators`, `host:port` each.
    pub fn new(coordinators: Vec<String>) -> Self {
        Self { coordinators, next: 0, pause: Duration::ZERO }
    }

    /// Notes that the coordinator dialled last leads: it is tried first, soon, when its connection breaks.
    pub fn leads(&mut self) {
        self.pause = PAUSE_MIN;
    }

    /// Notes that the coordinator dialled last is of no use: the next one's turn.
    pub fn advance(&mut self) {
        self.next = (self.next + 1) % self.coordinators.len();
        self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
    }

    /// Dials until a coordinator answers. Cancel safe.
    pub async fn dial(&mut self, dialer: &Dialer) -> Connection {
        loop {
            tokio::time::sleep(jitter(self.pause)).await;
            let address = &self.coordinators[self.next];
            match dial(dialer, address).await {
                Ok(connection) => return connection,
                Err(error) => tracing::debug!(coordinator = %address, %error, "dial"),
            }
            self.advance();
        }
    }
}

async fn dial(dialer: &Dialer, address: &str) -> Result<Connection, String> {
    let mut last = "the name has no address".to_owned();
    for addr in tokio::net::lookup_host(address).await.map_err(|err| err.to_string())? {
        match dialer.connect(addr).await {
            Ok(connection) => return Ok(connection),
            Err(err) => last = crate::failure::chain(&err),
        }
    }
    Err(last)
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

    #[test]
    fn pauses_grow_to_their_bound_and_end_with_a_leader() {
        let mut route = Route::new(vec!["a:1".into(), "b:1".into()]);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            route.advance();
            pauses.push(route.pause.as_millis());
        }
        assert_eq!((pauses, route.next), (vec![50, 100, 200, 400, 800, 1600, 2000, 2000], 0));
        route.leads();
        assert_eq!(route.pause, PAUSE_MIN);
        for pause in [Duration::ZERO, PAUSE_MAX] {
            assert!((pause / 2..=pause).contains(&jitter(pause)));
        }
    }
}
