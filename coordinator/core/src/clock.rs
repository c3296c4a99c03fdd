//! Time as a leader tells it. Pure: what the machine's clocks say comes in as values.
//!
//! Two kinds: stamps go into commands, and every coordinator compares them; [`Steady`] measures how long this process has waited for
//! somebody. A machine whose wall clock is set must neither stop the farm's timers nor end anybody's patience.

use kiln_wire::Timestamp;

/// Milliseconds of a clock that never jumps, since a moment of the process's own. Means nothing to another process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Steady(pub u64);

impl Steady {
    /// Returns this moment moved `ms` milliseconds into the future.
    pub fn after_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Returns the milliseconds from `earlier` to this moment, 0 if `earlier` is later.
    pub fn since_ms(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Makes the stamps of one coordinator. They grow at least as fast as the steady clock, follow the wall clock forwards, and are never
/// behind what the farm has seen: a leader whose wall clock is an hour late would let every back-off last an hour longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StampClock {
    last: Timestamp,
    at: Steady,
}

impl StampClock {
    /// Returns the stamp for this moment.
    pub fn now(&mut self, wall: Timestamp, steady: Steady) -> Timestamp {
        self.last = wall.max(self.last.after_ms(steady.since_ms(self.at)));
        self.at = self.at.max(steady);
        self.last
    }

    /// Makes no stamp before `seen` from here on.
    pub fn not_before(&mut self, seen: Timestamp) {
        self.last = self.last.max(seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_follow_the_wall_forwards_and_the_steady_clock_while_the_wall_is_behind() {
        let mut clock = StampClock::default();
        let table = [
            (1_000, 0, 1_000, "the wall's time"),
            (1_010, 10, 1_010, "both went on"),
            (9_000, 20, 9_000, "the wall was set forwards"),
            (1_030, 30, 9_010, "and back: the steady clock counts"),
            (1_040, 40, 9_020, "and goes on counting"),
            (9_500, 50, 9_500, "until the wall is ahead again"),
        ];
        for (wall, steady, expect, why) in table {
            assert_eq!(clock.now(Timestamp(wall), Steady(steady)), Timestamp(expect), "{why}");
        }
        clock.not_before(Timestamp(20_000));
        assert_eq!(clock.now(Timestamp(9_510), Steady(60)), Timestamp(20_010), "an earlier leader was ahead");
        clock.not_before(Timestamp(5));
        assert_eq!(clock.now(Timestamp(9_520), Steady(70)), Timestamp(20_020));
    }
}
