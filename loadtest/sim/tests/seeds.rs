//! Seeds: every invariant holds, the same seed is the same run, and each invariant was seen to fail on a planted bug.

use kiln_sim::{Bug, run};

/// Seeds of a test run. `ops/prove/simulation` runs any number.
const SEEDS: u64 = 10_000;
/// Seeds on which a planted bug must show.
const SEEDS_PER_BUG: u64 = 5_000;

#[test]
fn every_invariant_holds_on_ten_thousand_seeds() {
    for seed in 1..=SEEDS {
        if let Some(broken) = run(seed, None, false).broken {
            panic!(
                "{} at {} us: {}\nreplay: cargo run -p kiln-sim -- --seed {seed} --trace",
                broken.invariant, broken.at_us, broken.subject
            );
        }
    }
}

#[test]
fn the_same_seed_is_the_same_run_to_the_byte() {
    for seed in [1, 77, 4_711, 1_000_003] {
        let (first, second) = (run(seed, None, true), run(seed, None, true));
        assert!(first.trace.len() > 10_000, "seed {seed} has a trace");
        assert_eq!(first, second, "seed {seed}");
        assert_ne!(first.digest, run(seed + 1, None, false).digest, "another seed is another run");
    }
}

#[test]
fn every_planted_bug_is_caught_by_its_invariant() {
    for (bug, _, invariant) in Bug::TABLE {
        let caught = (1..=SEEDS_PER_BUG).find_map(|seed| run(seed, Some(*bug), false).broken);
        let caught = caught.unwrap_or_else(|| panic!("{bug:?} shows on none of {SEEDS_PER_BUG} seeds"));
        assert_eq!(caught.invariant, *invariant, "{bug:?}: {}", caught.subject);
    }
}

#[test]
fn at_least_fifteen_of_the_documented_invariants_have_a_planted_bug() {
    let numbers: std::collections::BTreeSet<u8> = Bug::TABLE.iter().filter_map(|(_, number, _)| *number).collect();
    assert!(numbers.len() >= 15, "{numbers:?}");
}
