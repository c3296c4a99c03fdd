//! Retention, as a table.

use kiln_core::garbage::{EndedBuild, Retention};
use kiln_wire::{BuildId, Timestamp};

#[test]
fn a_build_stays_as_long_as_either_rule_keeps_it() {
    // Name and time of the end; the number is the place in the list.
    let builds: Vec<EndedBuild> = [("nightly", 10), ("nightly", 20), ("other", 30), ("nightly", 40), ("nightly", 90)]
        .into_iter()
        .zip(1..)
        .map(|((name, ended_at), number)| EndedBuild { build: BuildId(number), name: name.to_owned(), ended_at: Timestamp(ended_at) })
        .collect();
    for (per_name, age_ms, expected) in [
        (0, 0, &[1, 2, 3, 4, 5][..]),
        (1, 0, &[1, 2, 4]),
        (2, 0, &[1, 2]),
        (0, 60, &[1, 2, 3]),
        (1, 60, &[1, 2]),
        (1, 1000, &[]),
        (4, 0, &[]),
    ] {
        let retired = Retention { per_name, age_ms, others_max: None }.retired(&builds, Timestamp(100));
        assert_eq!(retired.iter().map(|build| build.0).collect::<Vec<_>>(), expected, "{per_name} of each name, {age_ms} ms");
    }
    assert_eq!(
        Retention { per_name: 0, age_ms: 5, others_max: None }.retired(&builds, Timestamp(0)),
        [],
        "ended after this clock's present"
    );
}

#[test]
fn a_bound_takes_the_oldest_of_those_that_age_alone_keeps_and_none_of_the_last_of_a_name() {
    let builds: Vec<EndedBuild> = [("rare", 1), ("nightly", 50), ("by hand", 60), ("nightly", 70), ("nightly", 80), ("nightly", 90)]
        .into_iter()
        .zip(1..)
        .map(|((name, ended_at), number)| EndedBuild { build: BuildId(number), name: name.to_owned(), ended_at: Timestamp(ended_at) })
        .collect();
    for (per_name, age_ms, others_max, expected) in [
        (1, 1000, None, &[][..]),
        (1, 1000, Some(2), &[2]),
        (1, 1000, Some(0), &[2, 4, 5]),
        (2, 1000, Some(1), &[2]),
        (0, 60, Some(2), &[1, 2, 3, 4]),
        (1, 25, Some(1), &[2, 4]),
    ] {
        let retired = Retention { per_name, age_ms, others_max }.retired(&builds, Timestamp(100));
        assert_eq!(retired.iter().map(|build| build.0).collect::<Vec<_>>(), expected, "{per_name}, {age_ms} ms, {others_max:?}");
    }
}
