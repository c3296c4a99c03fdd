//! How much of the fleet a lease holds, and what part of the whole that is.

use kiln_wire::Resources;
use kiln_wire::limits::USAGE_HALF_LIFE_MS;

/// Cores, MiB of memory and slots, in parts of which [`PARTS`] make one, so that a job can be split among builds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    cores: u64,
    memory_mib: u64,
    slots: u64,
}

/// What all registered workers have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Whole {
    pub cores: u64,
    pub memory_mib: u64,
    pub slots: u64,
}

/// The whole fleet, as shares of it are counted.
pub(crate) const ALL: u64 = 1 << 30;

/// The parts of one core, MiB or slot: a job that so many builds want can still be split.
const PARTS: u64 = 1 << 16;

/// Memory that counts of one worker or lease, 4 PiB: sums of it stay below 2^64 parts.
const MEMORY_MIB_MAX: u64 = 1 << 32;

impl Amount {
    /// Returns what each of `builds` holds of a lease that they want together. A light lease takes no slot.
    pub fn of(granted: Resources, light: bool, builds: usize) -> Self {
        let builds = u64::try_from(builds).unwrap_or(u64::MAX).max(1);
        let part = |count: u64| count.saturating_mul(PARTS) / builds;
        let memory_mib = granted.memory_mib.min(MEMORY_MIB_MAX);
        Self { cores: part(u64::from(granted.cores)), memory_mib: part(memory_mib), slots: part(u64::from(!light)) }
    }

    /// Returns so many times the amount.
    pub fn times(self, count: u32) -> Self {
        let many = |amount: u64| amount.saturating_mul(u64::from(count));
        Self { cores: many(self.cores), memory_mib: many(self.memory_mib), slots: many(self.slots) }
    }

    /// Returns the sum.
    pub fn and(self, other: Self) -> Self {
        Self {
            cores: self.cores.saturating_add(other.cores),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            slots: self.slots.saturating_add(other.slots),
        }
    }

    /// Returns what is left without `other`, which is in it.
    pub fn without(self, other: Self) -> Self {
        Self {
            cores: self.cores.saturating_sub(other.cores),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            slots: self.slots.saturating_sub(other.slots),
        }
    }

    /// Returns its part of the whole fleet by the resource of which it holds most, of [`ALL`].
    pub fn dominant(self, whole: Whole) -> u64 {
        let part = |held: u64, of: u64| {
            let part = u128::from(held) * u128::from(ALL / PARTS) / u128::from(of.max(1));
            u64::try_from(part).unwrap_or(u64::MAX)
        };
        part(self.cores, whole.cores).max(part(self.memory_mib, whole.memory_mib)).max(part(self.slots, whole.slots))
    }
}

impl Whole {
    /// Returns it with, or without, what one worker has.
    pub fn changed(self, capacity: Resources, slots: u32, change: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            cores: change(self.cores, u64::from(capacity.cores)),
            memory_mib: change(self.memory_mib, capacity.memory_mib.min(MEMORY_MIB_MAX)),
            slots: change(self.slots, u64::from(slots)),
        }
    }
}

/// Returns what is left of an amount after some time: half for each half-life, and straight lines between.
pub(crate) fn decayed(amount: u64, elapsed_ms: u64) -> u64 {
    let (halvings, rest_ms) = (elapsed_ms / USAGE_HALF_LIFE_MS, elapsed_ms % USAGE_HALF_LIFE_MS);
    let halved = amount.checked_shr(u32::try_from(halvings).unwrap_or(u32::MAX)).unwrap_or(0);
    let lost = u128::from(halved) * u128::from(rest_ms) / u128::from(2 * USAGE_HALF_LIFE_MS);
    halved - u64::try_from(lost).unwrap_or(halved)
}

/// Returns the milliseconds that count of some that have just passed: each the less the longer ago it is. At most [`COUNTED_MS_MAX`].
pub(crate) fn counted_ms(length_ms: u64) -> u64 {
    let (halvings, rest_ms) = (length_ms / USAGE_HALF_LIFE_MS, length_ms % USAGE_HALF_LIFE_MS);
    let left = |ms: u64| ms.checked_shr(u32::try_from(halvings).unwrap_or(u32::MAX)).unwrap_or(0);
    let whole = COUNTED_MS_MAX - left(COUNTED_MS_MAX);
    // The area below a straight line that falls by half within a half-life.
    let rest = rest_ms - rest_ms * rest_ms / (4 * USAGE_HALF_LIFE_MS);
    whole + left(rest)
}

/// What all time counts: one and a half half-lives.
pub(crate) const COUNTED_MS_MAX: u64 = USAGE_HALF_LIFE_MS / 2 * 3;

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: Whole = Whole { cores: 64, memory_mib: 1 << 20, slots: 16 };

    #[test]
    fn the_resource_of_which_most_is_held_counts() {
        let amount = |cores, memory_mib, light| Amount::of(Resources { cores, memory_mib }, light, 1);
        let table = [
            ("a slot", amount(1, 0, false), ALL / 16),
            ("half of the cores", amount(32, 0, false), ALL / 2),
            ("a quarter of the memory", amount(8, 1 << 18, false), ALL / 4),
            ("a light one", amount(0, 0, true), 0),
            ("more than there is", amount(128, 0, false), 2 * ALL),
        ];
        for (what, amount, expect) in table {
            assert_eq!(amount.dominant(WHOLE), expect, "{what}");
        }
        assert_eq!(Amount::of(Resources { cores: 1, memory_mib: 1 }, false, 1).dominant(Whole::default()), ALL, "of nothing");
    }

    #[test]
    fn a_job_is_split_in_equal_parts_that_are_no_more_than_it() {
        let granted = Resources { cores: 4, memory_mib: 4096 };
        let whole = Amount::of(granted, false, 1);
        for builds in 1..200u32 {
            let parts = Amount::of(granted, false, builds as usize).times(builds);
            assert_eq!(whole.and(parts).without(parts), whole);
            assert!(parts.dominant(WHOLE) <= whole.dominant(WHOLE), "{builds} builds");
            assert!(parts.dominant(WHOLE) >= whole.dominant(WHOLE) - ALL / 256, "{builds} builds");
        }
    }

    #[test]
    fn what_was_used_counts_half_after_a_half_life() {
        let half = USAGE_HALF_LIFE_MS;
        let table =
            [(0, 1 << 20), (half / 2, 3 << 18), (half, 1 << 19), (2 * half, 1 << 18), (20 * half, 1), (64 * half, 0), (u64::MAX, 0)];
        for (elapsed_ms, expect) in table {
            assert_eq!(decayed(1 << 20, elapsed_ms), expect, "after {elapsed_ms} ms");
        }
    }

    #[test]
    fn time_counts_as_its_parts_do() {
        let half = USAGE_HALF_LIFE_MS;
        for length_ms in [0, 1, 1_000, half / 3, half, half + 1, 3 * half + 7, 1_000 * half] {
            for then_ms in [0, 5, half / 2, half, 2 * half + 3] {
                let at_once = counted_ms(length_ms + then_ms);
                let in_parts = decayed(counted_ms(length_ms), then_ms) + counted_ms(then_ms);
                // The straight lines of either begin elsewhere.
                assert!(at_once.abs_diff(in_parts) <= half / 8, "{length_ms} and {then_ms}: {at_once}, {in_parts}");
            }
        }
        assert_eq!(counted_ms(u64::MAX), COUNTED_MS_MAX);
    }
}
