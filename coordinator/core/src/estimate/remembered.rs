//! A map that forgets what was left alone longest once it is full.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// At most `MAX` values. Two maps, so that the oldest is found at once; written as one list, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remembered<K, V, const MAX: usize> {
    values: BTreeMap<K, (u64, V)>,
    ages: BTreeMap<u64, K>,
}

impl<K: Ord + Copy, V: Default, const MAX: usize> Remembered<K, V, MAX> {
    /// Returns what is remembered under a key.
    pub fn get(&self, key: K) -> Option<&V> {
        self.values.get(&key).map(|(_, value)| value)
    }

    /// Returns everything that is remembered, by key.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.values.values().map(|(_, value)| value)
    }

    /// Returns whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Makes a value the youngest, a new one if there was none. Returns it with what was forgotten for it.
    pub fn touch(&mut self, key: K) -> (&mut V, Option<(K, V)>) {
        let next = self.ages.last_key_value().map_or(0, |(age, _)| age.saturating_add(1));
        if let Some((age, _)) = self.values.get(&key) {
            self.ages.remove(age);
        }
        let is_new = !self.values.contains_key(&key);
        let full = is_new && self.values.len() >= MAX;
        let forgotten = if full { self.ages.pop_first().map(|(_, oldest)| oldest) } else { None };
        let forgotten = forgotten.and_then(|oldest| self.values.remove(&oldest).map(|(_, value)| (oldest, value)));
        self.ages.insert(next, key);
        let (age, value) = self.values.entry(key).or_default();
        *age = next;
        (value, forgotten)
    }
}

impl<K, V, const MAX: usize> Default for Remembered<K, V, MAX> {
    fn default() -> Self {
        Self { values: BTreeMap::new(), ages: BTreeMap::new() }
    }
}

impl<K: Ord + Copy + Serialize, V: Serialize, const MAX: usize> Serialize for Remembered<K, V, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value = |(age, key): (&u64, &K)| self.values.get(key).map(|(_, value)| (*age, *key, value));
        let all: Vec<(u64, K, &V)> = self.ages.iter().filter_map(value).collect();
        serializer.collect_seq(all)
    }
}

impl<'de, K: Ord + Copy + Deserialize<'de>, V: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Remembered<K, V, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let all: Vec<(u64, K, V)> = Vec::deserialize(deserializer)?;
        let count = all.len();
        let mut remembered = Self::default();
        for (age, key, value) in all {
            remembered.ages.insert(age, key);
            remembered.values.insert(key, (age, value));
        }
        if count > MAX || remembered.ages.len() != count || remembered.values.len() != count {
            return Err(serde::de::Error::custom("what is remembered is named twice, or is too much"));
        }
        Ok(remembered)
    }
}

#[cfg(test)]
mod tests {
    use kiln_wire::frame;

    use super::*;

    #[test]
    fn what_was_left_alone_longest_is_forgotten_first() {
        let mut map: Remembered<u32, u32, 3> = Remembered::default();
        for key in [1, 2, 3, 1] {
            let (value, forgotten) = map.touch(key);
            *value += 1;
            assert_eq!(forgotten, None);
        }
        assert_eq!(map.touch(4).1, Some((2, 1)));
        assert_eq!(map.values().count(), 3);
        assert_eq!((map.get(1), map.get(2), map.get(4)), (Some(&2), None, Some(&0)));
        let bytes = frame::to_bytes(&map).expect("encodes");
        assert_eq!(frame::from_bytes::<Remembered<u32, u32, 3>>(&bytes).expect("decodes"), map);
        assert!(frame::from_bytes::<Remembered<u32, u32, 2>>(&bytes).is_err(), "over its limit");
    }
}
