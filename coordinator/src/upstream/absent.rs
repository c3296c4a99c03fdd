//! What upstream caches said that they do not have. Pure: time comes in as a value.
//!
//! Kept by the leader for its own questions and nobody else's: a worker is never told that a path is nowhere (INVARIANTS 13).

use std::collections::{BTreeMap, VecDeque};

use kiln_wire::StorePath;

/// Which cache was asked, and the hash part that it was asked about.
type Key = (usize, [u8; 32]);

/// Answers "not here", the newest of them.
#[derive(Debug)]
pub(super) struct Absent {
    entries_max: usize,
    believed_ms: u64,
    /// When each was noted.
    noted: BTreeMap<Key, u64>,
    /// In the order in which they were noted. One that was noted again stands here more than once.
    order: VecDeque<(u64, Key)>,
}

impl Absent {
    pub(super) fn new(entries_max: usize, believed_ms: u64) -> Self {
        Self { entries_max, believed_ms, noted: BTreeMap::new(), order: VecDeque::new() }
    }

    /// Notes that a cache does not have a path. `now_ms` never decreases.
    pub(super) fn note(&mut self, cache: usize, path: &StorePath, now_ms: u64) {
        self.forget_old(now_ms);
        let key = key(cache, path);
        self.noted.insert(key, now_ms);
        self.order.push_back((now_ms, key));
        while self.noted.len() > self.entries_max || self.order.len() > self.entries_max.saturating_mul(2) {
            self.forget_first();
        }
    }

    /// Returns whether a cache is believed not to have a path.
    pub(super) fn is_absent(&self, cache: usize, path: &StorePath, now_ms: u64) -> bool {
        self.noted.get(&key(cache, path)).is_some_and(|noted_ms| now_ms < noted_ms.saturating_add(self.believed_ms))
    }

    fn forget_old(&mut self, now_ms: u64) {
        while self.order.front().is_some_and(|(noted_ms, _)| now_ms >= noted_ms.saturating_add(self.believed_ms)) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let Some((noted_ms, key)) = self.order.pop_front() else { return };
        // If it was noted again, it stands further back as well.
        if self.noted.get(&key) == Some(&noted_ms) {
            self.noted.remove(&key);
        }
    }
}

fn key(cache: usize, path: &StorePath) -> Key {
    (cache, path.hash_part().as_bytes().try_into().expect("the hash part of a store path has 32 characters"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(number: usize) -> StorePath {
        let letter = char::from(b"0123456789abcdfghijklmnpqrsvwxyz"[number]);
        StorePath::parse(&format!("{}-x", letter.to_string().repeat(32))).expect("a path")
    }

    #[test]
    fn an_answer_is_believed_for_a_while_and_for_the_cache_that_gave_it() {
        let mut absent = Absent::new(10, 100);
        absent.note(0, &path(1), 1_000);
        for (cache, number, now_ms, expected) in
            [(0, 1, 1_000, true), (0, 1, 1_099, true), (0, 1, 1_100, false), (1, 1, 1_000, false), (0, 2, 1_000, false)]
        {
            assert_eq!(absent.is_absent(cache, &path(number), now_ms), expected, "{cache} {number} {now_ms}");
        }
        absent.note(0, &path(1), 1_050);
        absent.note(0, &path(2), 1_100);
        assert!(absent.is_absent(0, &path(1), 1_149), "noted again, it is believed from then");
    }

    proptest! {
        #[test]
        fn it_is_a_bounded_list_of_the_newest_answers(steps in prop::collection::vec((0..2usize, 0..8usize, 0..30u64, any::<bool>()), 0..200)) {
            let mut absent = Absent::new(5, 100);
            // The simple model: every answer ever, the newest of each last.
            let mut all: Vec<(Key, u64)> = Vec::new();
            let mut now_ms = 0;
            for (cache, number, pause_ms, is_noted) in steps {
                now_ms += pause_ms;
                let key = key(cache, &path(number));
                if is_noted {
                    absent.note(cache, &path(number), now_ms);
                    all.retain(|(known, _)| *known != key);
                    all.push((key, now_ms));
                }
                let kept = &all[all.len().saturating_sub(5)..];
                let expected = kept.iter().any(|(known, noted_ms)| *known == key && now_ms < noted_ms + 100);
                // It may forget too early what was noted again and again, and never believes what the model does not.
                prop_assert!(!absent.is_absent(cache, &path(number), now_ms) || expected);
                prop_assert!(!is_noted || absent.is_absent(cache, &path(number), now_ms), "what was noted last is believed");
                prop_assert!(absent.noted.len() <= 5 && absent.order.len() <= 10);
            }
        }
    }
}
