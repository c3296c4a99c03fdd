//! A logarithmic scale in integers: durations and sizes of builds differ by factors, so that is what is averaged.
//!
//! A [`Log`] is the binary logarithm in steps of 1/1024 (0.07 %). Source: repeated squaring, Knuth 1.2.2 exercise 25.

/// 1024 times the binary logarithm of a whole number, 0 for 0 and 1; at most 65,535.
pub(crate) type Log = u32;

/// Steps of one doubling.
pub(crate) const DOUBLING: Log = 1 << FRACTION_BITS;
const FRACTION_BITS: u32 = 10;

/// 2^(1/2), 2^(1/4), … 2^(1/1024), in units of 1/2^32.
const ROOTS: [u64; FRACTION_BITS as usize] = [
    6_074_000_999,
    5_107_605_667,
    4_683_695_048,
    4_485_121_744,
    4_389_014_833,
    4_341_736_423,
    4_318_288_544,
    4_306_612_134,
    4_300_785_774,
    4_297_875_550,
];

/// Returns the logarithm of `value`, rounded down.
pub(crate) fn log(value: u64) -> Log {
    let Some(whole) = value.checked_ilog2() else { return 0 };
    // The mantissa, in [1, 2), in units of 1/2^31.
    let mut mantissa = if whole >= 31 { value >> (whole - 31) } else { value << (31 - whole) };
    let mut log = whole;
    for _ in 0..FRACTION_BITS {
        mantissa = (mantissa * mantissa) >> 31;
        log <<= 1;
        if mantissa >= 1 << 32 {
            mantissa >>= 1;
            log |= 1;
        }
    }
    log
}

/// Returns the number whose logarithm it is, rounded to a whole one; the largest one there is if it is beyond.
pub(crate) fn exp(log: Log) -> u64 {
    let whole = log >> FRACTION_BITS;
    if whole >= 63 {
        return u64::MAX;
    }
    let mut mantissa: u64 = 1 << 32;
    for (bit, root) in ROOTS.iter().enumerate() {
        if log & (DOUBLING >> (bit + 1)) != 0 {
            mantissa = u64::try_from((u128::from(mantissa) * u128::from(*root)) >> 32).expect("below 2^33");
        }
    }
    let shifted = (u128::from(mantissa) << whole) + (1 << 31);
    u64::try_from(shifted >> 32).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_what_a_table_says() {
        let table =
            [(0, 0), (1, 0), (2, 1_024), (3, 1_623), (10, 3_401), (1_000, 10_204), (1 << 40, 40 * 1_024), (u64::MAX, 64 * 1_024 - 1)];
        for (value, expect) in table {
            assert_eq!(log(value), expect, "of {value}");
        }
    }

    #[test]
    fn a_value_comes_back_within_a_step() {
        for value in (1..5_000).chain([27_000, 2_400_000, 86_400_000, 1 << 33, (1 << 40) + 12_345]) {
            let back = exp(log(value));
            assert!(back.abs_diff(value) <= 1 + value / 1_000, "{value} comes back as {back}");
        }
        assert_eq!((exp(0), exp(DOUBLING), exp(u32::MAX)), (1, 2, u64::MAX));
    }
}
