//! What was measured of one thing: how many times, and how large, on a logarithmic scale. Twenty bytes, however often it was measured.

use serde::{Deserialize, Serialize};

use super::scale::{DOUBLING, Log};

/// Measurements that count in full: each later one takes the place of an average one, so that what is old is forgotten.
const COUNT_MAX: u32 = 32;

/// Deviation within one package that is assumed before there is one to see: half a doubling.
const DEVIATION_PRIOR: u64 = DOUBLING as u64 / 2;

/// A log-normal distribution as it was sampled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u64, u64)", into = "(u32, u64, u64)")]
pub(crate) struct Spread {
    count: u32,
    sum: u64,
    squares: u64,
}

impl Spread {
    /// Adds what was measured `times` times.
    pub fn add(&mut self, log: Log, times: u32) {
        let log = u64::from(log);
        for _ in 0..times.min(COUNT_MAX) {
            if self.count >= COUNT_MAX {
                self.sum -= self.sum / u64::from(COUNT_MAX);
                self.squares -= self.squares / u64::from(COUNT_MAX);
            } else {
                self.count += 1;
            }
            self.sum += log;
            self.squares += log * log;
        }
    }

    /// Returns the measurements that it stands for, at most 32.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Returns the mean logarithm, drawn towards `prior` as if `quarters / 4` measurements had said that; `prior` if there is none.
    pub fn mean_from(&self, prior: Log, quarters: u32) -> Log {
        let (count, quarters) = (u64::from(self.count), u64::from(quarters));
        let weighed = 4 * self.sum + quarters * u64::from(prior);
        // Halves are rounded up: an estimate that is too low costs more than one that is too high.
        weighed.checked_div(4 * count + quarters).and_then(|mean| Log::try_from(mean).ok()).unwrap_or(prior)
    }

    /// Returns the standard deviation of the logarithm, drawn towards half a doubling as if three measurements had said that.
    pub fn deviation(&self) -> Log {
        let count = u64::from(self.count);
        let variance = (count * self.squares).saturating_sub(self.sum * self.sum) / (count * count).max(1);
        let deviation = (count * variance.isqrt() + 3 * DEVIATION_PRIOR) / (count + 3);
        Log::try_from(deviation).unwrap_or(Log::MAX)
    }
}

impl From<(u32, u64, u64)> for Spread {
    fn from((count, sum, squares): (u32, u64, u64)) -> Self {
        // Bounded, so that no sum of what a snapshot holds overflows.
        let (sum_max, squares_max) = (u64::from(COUNT_MAX) << 16, u64::from(COUNT_MAX) << 32);
        Self { count: count.min(COUNT_MAX), sum: sum.min(sum_max), squares: squares.min(squares_max) }
    }
}

impl From<Spread> for (u32, u64, u64) {
    fn from(spread: Spread) -> Self {
        (spread.count, spread.sum, spread.squares)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(logs: &[Log]) -> Spread {
        let mut spread = Spread::default();
        logs.iter().for_each(|log| spread.add(*log, 1));
        spread
    }

    #[test]
    fn a_mean_leaves_the_prior_as_measurements_come() {
        let table: [(&[Log], u32, Log); 5] =
            [(&[], 12, 5_000), (&[1_000], 12, 4_000), (&[1_000; 3], 12, 3_000), (&[1_000; 9], 12, 2_000), (&[1_000, 3_000], 0, 2_000)];
        for (logs, quarters, expect) in table {
            assert_eq!(of(logs).mean_from(5_000, quarters), expect, "{logs:?}");
        }
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let mut spread = of(&[1_000; 200]);
        assert_eq!((spread.count(), spread.mean_from(0, 0)), (32, 1_000));
        spread.add(9_000, 300);
        spread.add(9_000, 300);
        spread.add(9_000, 300);
        let mean = spread.mean_from(0, 0);
        assert!((8_500..=9_000).contains(&mean), "{mean}");
    }

    #[test]
    fn a_deviation_is_seen_once_there_are_measurements() {
        assert_eq!(of(&[]).deviation(), 512);
        assert!(of(&[5_000; 30]).deviation() < 60);
        let wide: [Log; 30] = core::array::from_fn(|at| if at % 2 == 0 { 3_000 } else { 7_000 });
        let deviation = of(&wide).deviation();
        assert!((1_800..=2_000).contains(&deviation), "{deviation}");
    }

    #[test]
    fn numbers_of_a_damaged_snapshot_do_not_overflow() {
        let mut spread = Spread::from((u32::MAX, u64::MAX, u64::MAX));
        spread.add(65_535, 40);
        assert!(spread.mean_from(0, 0) <= 65_536 && spread.deviation() < 1 << 20);
    }
}
