//! What a job is expected to take of which nothing like it was measured: by the kind of its builder.
//!
//! Of an unknown job an upper quantile is expected, never the mean or the median: an unknown giant that starts last costs more than many
//! small jobs that start early. Sources of the guesses: Debian's rebuild of 2006 (10,052 packages: three quarters took less than 57 s, one
//! in 4,096 more than 4 h); packages marked `big-parallel` take 40 minutes on few cores, three quarters less than 64; the rest are guesses.

use alloc::collections::BTreeMap;

use kiln_wire::JobKind;
use serde::{Deserialize, Serialize};

use super::scale::{self, DOUBLING, Log};
use crate::job::Job;

/// The feature that marks long builds with many cores.
const FEATURE_BIG_PARALLEL: &str = "big-parallel";

/// Measurements of a kind before they count instead of the guess.
const COUNT_MIN: u64 = 16;

/// One build of so many is a surprise.
const SURPRISE_ONE_IN: u64 = 4_096;

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

    /// Returns what a surprise of the kind is guessed to take; 0 of kinds that hold none that is worth a thought.
    fn surprise_ms(self) -> u64 {
        match self {
            Self::Builtin | Self::FixedOutput | Self::Local => 0,
            Self::BigParallel | Self::Ordinary => 4 * 3_600_000,
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
    /// Adds a measurement. Returns whether what is expected of the kind changed: that costs a look at every unknown job.
    pub fn add(&mut self, wall: Log) -> bool {
        let surprise = self.surprise_measured();
        let quartile_changed = self.add_and_look(wall);
        quartile_changed || surprise != self.surprise_measured()
    }

    /// Adds a measurement. Returns whether the upper quartile is another: it is looked at after 16, 64, 256, … measurements, and half a
    /// doubling is no change.
    fn add_and_look(&mut self, wall: Log) -> bool {
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

    /// Returns the milliseconds that a job takes that is a surprise: one in 4,096 of the kind takes as long. 0 if the kind holds none.
    pub fn surprise_ms(&self, class: Class) -> u64 {
        let guess_ms = class.surprise_ms();
        if guess_ms == 0 { 0 } else { self.surprise_measured().map_or(guess_ms, scale::exp) }
    }

    /// Returns the upper end of the highest bucket above which one in 4,096 lies; none before as many were measured. How many that are is
    /// taken from the last power of 4, so that it rises between two of these and seldom moves.
    fn surprise_measured(&self) -> Option<Log> {
        if self.count < SURPRISE_ONE_IN {
            return None;
        }
        let beyond = (1 << (self.count.ilog2() / 2 * 2)) / SURPRISE_ONE_IN;
        let mut above = 0;
        for (bucket, count) in self.buckets.iter().rev() {
            above += count;
            if above >= beyond {
                return Some((bucket + 1) * STEP);
            }
        }
        None
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

    #[test]
    fn a_surprise_is_what_one_of_thousands_took_once_there_were_thousands() {
        let mut kind = Kind::default();
        let guess_ms = 4 * 3_600_000;
        assert_eq!([Class::Ordinary, Class::BigParallel, Class::Local].map(|class| kind.surprise_ms(class)), [guess_ms, guess_ms, 0]);
        kind.add(scale::log(7_000_000));
        (1..4_095).for_each(|_| _ = kind.add(scale::log(1_000)));
        assert_eq!(kind.surprise_ms(Class::Ordinary), guess_ms);
        assert!(kind.add(scale::log(1_000)), "the 4,096th");
        assert!((7_000_000..10_000_000).contains(&kind.surprise_ms(Class::Ordinary)));
        assert!(kind.add(scale::log(30_000_000)), "a longer one");
        let changed = (4_097..16_384).filter(|_| kind.add(scale::log(1_000))).count();
        assert_eq!(changed, 1, "two in 16,384 are fewer than one in 4,096");
        assert!((1_000..2_000).contains(&kind.surprise_ms(Class::Ordinary)), "all others took as long");
    }
}
