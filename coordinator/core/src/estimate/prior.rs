//! What a job is expected to take of which nothing like it was measured: by the kind of its builder.
//!
//! Of an unknown job an upper quantile is expected, never the mean or the median: an unknown giant that starts last costs more than many
//! small jobs that start early. Sources of the guesses: Debian's rebuild of 2006 (10,052 packages: three quarters took less than 57 s);
//! packages marked `big-parallel` take 40 minutes on few cores, three quarters less than 64; the rest are guesses.

use alloc::collections::BTreeMap;

use kiln_wire::JobKind;
use serde::{Deserialize, Serialize};

use super::scale::{self, DOUBLING, Log};
use crate::job::Job;

/// The feature that marks long builds with many cores.
const FEATURE_BIG_PARALLEL: &str = "big-parallel";

/// Measurements of a kind before they count instead of the guess.
const COUNT_MIN: u64 = 16;

/// Kinds of builders, as far as a job tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Class {
    /// `builtin:fetchurl` and the like.
    Builtin,
    /// A fetch by a program.
    FixedOutput,
    /// A short build that is not worth a transfer: texts, symlinks.
    Local,
    /// A build that asks for a large machine.
    BigParallel,
    /// Any other build.
    Ordinary,
}

impl Class {
    pub fn of(job: &Job) -> Self {
        match job.kind {
            JobKind::Builtin => Self::Builtin,
            JobKind::FixedOutput => Self::FixedOutput,
            JobKind::Ordinary if job.prefer_local => Self::Local,
            JobKind::Ordinary if job.needs.features.contains(FEATURE_BIG_PARALLEL) => Self::BigParallel,
            JobKind::Ordinary => Self::Ordinary,
        }
    }

    /// Returns whether it fetches what its hash names.
    pub fn is_fetch(self) -> bool {
        matches!(self, Self::Builtin | Self::FixedOutput)
    }

    /// Returns the guess.
    fn wall_ms(self) -> u64 {
        match self {
            Self::Builtin | Self::FixedOutput => 4_000,
            Self::Local => 700,
            Self::BigParallel => 64 * 60_000,
            Self::Ordinary => 57_000,
        }
    }
}

/// How long jobs of one kind took: a histogram, and what is expected of the next one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kind {
    count: u64,
    /// By half doublings.
    buckets: BTreeMap<u32, u64>,
    /// The upper quartile when it was looked at last.
    quote: Option<Log>,
}

impl Kind {
    /// Adds a measurement. Returns whether what is expected of the kind changed: that costs a look at every unknown job, so it is looked at
    /// after 16, 64, 256, … measurements, and half a doubling is no change.
    pub fn add(&mut self, wall: Log) -> bool {
        self.count = self.count.saturating_add(1);
        *self.buckets.entry(wall / STEP).or_default() += 1;
        let due = self.count >= COUNT_MIN && self.count.is_power_of_two() && self.count.ilog2().is_multiple_of(2);
        if !due {
            return false;
        }
        let quartile = self.upper_quartile();
        let changed = self.quote.is_none_or(|quote| quote.abs_diff(quartile) > STEP);
        if changed {
            self.quote = Some(quartile);
        }
        changed
    }

    /// Returns what is expected of a job of which only the kind is known.
    pub fn expected(&self, class: Class) -> Log {
        self.quote.unwrap_or_else(|| scale::log(class.wall_ms()))
    }

    fn upper_quartile(&self) -> Log {
        let mut below = 0;
        for (bucket, count) in &self.buckets {
            below += count;
            if below * 4 >= self.count * 3 {
                // The bucket's upper end.
                return (bucket + 1) * STEP;
            }
        }
        0
    }
}

/// Half a doubling.
const STEP: Log = DOUBLING / 2;

/// Returns the milliseconds that versions of this program that learnt nothing expected of a job. What they made of it stays in records.
pub(crate) fn wall_ms_unlearnt(job: &Job) -> u64 {
    match Class::of(job) {
        Class::Builtin => 2_000,
        Class::FixedOutput => 3_000,
        Class::Local => 300,
        Class::BigParallel => 40 * 60_000,
        Class::Ordinary => 27_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_expected_to_take_its_upper_quartile_once_enough_were_measured() {
        let mut kind = Kind::default();
        let fast = scale::log(1_000);
        assert!((1..16).all(|_| !kind.add(fast)));
        assert_eq!(kind.expected(Class::Ordinary), scale::log(57_000));
        assert!(kind.add(fast), "the sixteenth");
        let expected = scale::exp(kind.expected(Class::Ordinary));
        assert!((1_000..1_500).contains(&expected), "{expected}");
        let changed = (16..256).filter(|_| kind.add(scale::log(60_000))).count();
        assert_eq!(changed, 1, "at 64; by 256 it is the same");
        assert!(scale::exp(kind.expected(Class::Ordinary)) > 60_000);
    }
}
