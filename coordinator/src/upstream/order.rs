//! Which cache is asked first, and which not at all for a while. Pure.

/// What is known of one cache when questions begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// Its place in the configuration.
    pub(super) cache: usize,
    /// What the configuration says.
    pub(super) configured: Option<u32>,
    /// What the cache says of itself.
    pub(super) advertised: Option<u32>,
}

/// Priority of a cache that nobody gave one, as Nix has it.
const PRIORITY_DEFAULT: u32 = 50;

/// Returns caches in the order in which they are asked: a lower priority first, as with Nix; of equals, the one that is configured first.
pub(super) fn order(mut caches: Vec<Standing>) -> Vec<usize> {
    caches.sort_by_key(|of| (of.configured.or(of.advertised).unwrap_or(PRIORITY_DEFAULT), of.cache));
    caches.into_iter().map(|of| of.cache).collect()
}

/// How a cache has answered lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Health {
    failures: u32,
    rests_until_ms: u64,
}

impl Health {
    /// It answered, whatever it said.
    pub(super) fn worked(&mut self) {
        self.failures = 0;
    }

    /// It did not answer, or with a failure of its own. Returns whether it is left alone from here on.
    pub(super) fn failed(&mut self, now_ms: u64, failures_max: u32, rest_ms: u64) -> bool {
        self.failures += 1;
        let rests = self.failures >= failures_max;
        if rests {
            self.failures = 0;
            // Who asked before it rested may say so after.
            self.rests_until_ms = self.rests_until_ms.max(now_ms.saturating_add(rest_ms));
        }
        rests
    }

    /// Returns whether it is to be left alone.
    pub(super) fn is_resting(&self, now_ms: u64) -> bool {
        now_ms < self.rests_until_ms
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn standing(cache: usize, configured: Option<u32>, advertised: Option<u32>) -> Standing {
        Standing { cache, configured, advertised }
    }

    #[test]
    fn the_lower_priority_is_asked_first_and_the_configuration_has_the_last_word() {
        type Row = (&'static [(Option<u32>, Option<u32>)], &'static [usize]);
        let table: [Row; 5] = [
            (&[], &[]),
            (&[(None, Some(40)), (None, Some(30))], &[1, 0]),
            (&[(None, Some(40)), (Some(41), Some(30))], &[0, 1]),
            (&[(None, None), (None, Some(51)), (Some(50), Some(1)), (Some(0), None)], &[3, 0, 2, 1]),
            (&[(Some(7), None), (Some(7), None)], &[0, 1]),
        ];
        for (caches, expected) in table {
            let standings = caches.iter().enumerate().map(|(cache, of)| standing(cache, of.0, of.1)).collect();
            assert_eq!(order(standings), expected, "{caches:?}");
        }
    }

    proptest! {
        #[test]
        fn the_order_does_not_depend_on_who_answered_first(priorities in prop::collection::vec((any::<Option<u32>>(), any::<Option<u32>>()), 0..6)) {
            let caches: Vec<Standing> = priorities.iter().enumerate().map(|(cache, of)| standing(cache, of.0, of.1)).collect();
            let backwards = caches.iter().rev().copied().collect();
            let ordered = order(caches.clone());
            prop_assert_eq!(&ordered, &order(backwards));
            let effective = |cache: usize| caches[cache].configured.or(caches[cache].advertised).unwrap_or(PRIORITY_DEFAULT);
            prop_assert!(ordered.windows(2).all(|pair| (effective(pair[0]), pair[0]) < (effective(pair[1]), pair[1])));
        }
    }

    #[test]
    fn a_cache_that_fails_again_and_again_is_left_alone_for_a_while() {
        let mut health = Health::default();
        assert!(!health.failed(10, 3, 100) && !health.failed(11, 3, 100));
        health.worked();
        assert!(!health.failed(12, 3, 100) && !health.failed(13, 3, 100) && !health.is_resting(13));
        assert!(health.failed(14, 3, 100));
        assert_eq!([14, 113, 114].map(|now_ms| health.is_resting(now_ms)), [true, true, false]);
        assert!(!health.failed(120, 3, 100), "it has all its tries again");
        assert!(health.failed(90, 1, 10) && health.is_resting(113), "a failure that is told late ends no rest");
    }
}
