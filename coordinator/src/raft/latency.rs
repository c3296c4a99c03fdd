//! Latency histograms that many threads write and one reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets in microseconds; what is longer counts in a last bucket. From a page-cache write to a dying disk.
pub const BOUNDS_US: [u64; 14] = [50, 100, 200, 400, 800, 1_500, 3_000, 6_000, 12_000, 25_000, 50_000, 100_000, 500_000, 2_000_000];

/// What was measured so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// How many.
    pub count: u64,
    /// Their sum in microseconds.
    pub sum_us: u64,
    /// How many in each bucket of [`BOUNDS_US`], and beyond the last.
    pub buckets: [u64; BOUNDS_US.len() + 1],
}

/// Counts durations.
#[derive(Debug, Default)]
pub struct Recorder {
    sum_us: AtomicU64,
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
}

impl Recorder {
    /// Counts one duration.
    pub fn record(&self, elapsed: Duration) {
        let us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
        self.buckets[BOUNDS_US.partition_point(|bound| *bound < us)].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns what was counted.
    pub fn read(&self) -> Latencies {
        let buckets = std::array::from_fn(|i| self.buckets[i].load(Ordering::Relaxed));
        Latencies { count: buckets.iter().sum(), sum_us: self.sum_us.load(Ordering::Relaxed), buckets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_in_the_first_bucket_that_holds_it() {
        let recorder = Recorder::default();
        for us in [50, 51, 3_000_000] {
            recorder.record(Duration::from_micros(us));
        }
        let seen = recorder.read();
        assert_eq!((seen.count, seen.sum_us), (3, 3_000_101));
        assert_eq!((seen.buckets[0], seen.buckets[1], seen.buckets[BOUNDS_US.len()]), (1, 1, 1));
    }
}
