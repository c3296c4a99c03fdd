//! Numbers from a seed: what a run draws can be drawn again.
//!
//! Source: SplitMix64, Steele, Lea and Flood 2014.

/// A sequence of numbers that its seed determines.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts the sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number from `least` to `most`, both included.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        assert!(least <= most, "no number lies between {least} and {most}");
        least + self.number() % (most - least + 1)
    }

    /// Returns one of `choices`.
    pub fn of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        let last = u64::try_from(choices.len()).unwrap_or(u64::MAX).checked_sub(1).expect("there is something to choose from");
        &choices[usize::try_from(self.between(0, last)).expect("an index of the choices")]
    }

    /// Returns a sequence of its own for the part `number` of a run, so that parts do not depend on what others drew.
    pub fn part(seed: u64, number: u64) -> Self {
        let mut random = Self(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        random.number();
        random
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_published_sequence() {
        let mut random = Random::new(1_234_567);
        // The reference implementation's first numbers for this seed.
        assert_eq!(
            [random.number(), random.number(), random.number()],
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn numbers_stay_within_bounds_and_parts_differ() {
        let mut random = Random::new(1);
        assert!((0..1000).all(|_| (3..=5).contains(&random.between(3, 5))));
        assert!((0..100).all(|_| [1, 2].contains(random.of(&[1, 2]))));
        assert_ne!(Random::part(7, 1).number(), Random::part(7, 2).number());
        assert_eq!(Random::part(7, 1).number(), Random::part(7, 1).number());
    }
}
