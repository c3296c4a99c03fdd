//! Which kinds of jobs have a name of their own in metrics. Systems and features are whatever submissions say, and each that Prometheus hears of
//! costs it memory for as long as it remembers: so names are given to so many kinds as come first, for the life of the process, and the rest
//! are counted together. Those that no worker could run have few, so that they cannot take those of the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use kiln_core::Queued;

use crate::tally::OTHER;

/// Kinds that have names.
#[derive(Debug, Default)]
pub(crate) struct Kinds(Mutex<BTreeMap<Kind, bool>>);

/// A system, and features with commas between.
type Kind = (String, String);

/// Ready jobs of one kind that wait for the same reason: system, features, reason.
pub type QueueLine = (String, String, &'static str);

impl Kinds {
    /// Returns the queue with the names that its kinds have.
    pub(crate) fn name(&self, queue: BTreeMap<Queued, u64>, others_backing_off: u64) -> BTreeMap<QueueLine, u64> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut named: BTreeMap<QueueLine, u64> = BTreeMap::new();
        for (of, count) in queue {
            let (system, features) = named_kind(&mut known, of.system, &of.features, of.is_unplaceable);
            *named.entry((system, features, of.reason)).or_default() += count;
        }
        if others_backing_off > 0 {
            *named.entry((OTHER.to_owned(), OTHER.to_owned(), "back_off")).or_default() += others_backing_off;
        }
        named
    }
}

fn named_kind(known: &mut BTreeMap<Kind, bool>, system: String, features: &BTreeSet<String>, is_unplaceable: bool) -> Kind {
    let other = || (OTHER.to_owned(), OTHER.to_owned());
    let length: usize = system.len() + features.iter().map(|feature| feature.len() + 1).sum::<usize>();
    if length > KIND_BYTES_MAX {
        return other();
    }
    let kind = (system, features.iter().map(String::as_str).collect::<Vec<_>>().join(","));
    if known.contains_key(&kind) {
        return kind;
    }
    let max = if is_unplaceable { UNPLACEABLE_KINDS_MAX } else { PLACEABLE_KINDS_MAX };
    if known.values().filter(|of| **of == is_unplaceable).count() >= max {
        return other();
    }
    known.insert(kind.clone(), is_unplaceable);
    kind
}

/// Kinds with names that a worker could run when they were first seen. Each has a series for each of sixteen reasons at most.
const PLACEABLE_KINDS_MAX: usize = 96;
/// Kinds with names that no worker could run.
const UNPLACEABLE_KINDS_MAX: usize = 32;
/// Bytes of a kind's name: what is longer is no name that a farm's people gave.
const KIND_BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn queued(system: &str, features: &[&str], is_unplaceable: bool) -> Queued {
        let features = features.iter().map(|feature| (*feature).to_owned()).collect();
        Queued { system: system.to_owned(), features, reason: if is_unplaceable { "lacks_system" } else { "busy" }, is_unplaceable }
    }

    #[test]
    fn what_no_worker_runs_takes_no_names_from_what_workers_run() {
        let kinds = Kinds::default();
        let strange = (0..5_000).map(|number| (queued(&format!("strange-{number}"), &[], true), 2)).collect();
        let named = kinds.name(strange, 0);
        assert_eq!(named.len(), UNPLACEABLE_KINDS_MAX + 1);
        let rest = 2 * (5_000 - u64::try_from(UNPLACEABLE_KINDS_MAX).expect("few"));
        assert_eq!(named[&("other".to_owned(), "other".to_owned(), "lacks_system")], rest, "none is lost");
        let usual = [(queued("x86_64-linux", &["big", "kvm"], false), 7), (queued("x86_64-linux", &[], false), 1)];
        let named = kinds.name(BTreeMap::from(usual.clone()), 3);
        let line = |system: &str, features: &str, reason| (system.to_owned(), features.to_owned(), reason);
        let expected =
            [(line("other", "other", "back_off"), 3), (line("x86_64-linux", "", "busy"), 1), (line("x86_64-linux", "big,kvm", "busy"), 7)];
        assert_eq!(named.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_name_is_kept_and_a_long_one_is_never_given() {
        let kinds = Kinds::default();
        let one = |of: Queued| kinds.name(BTreeMap::from([(of, 1)]), 0).into_keys().next().expect("a line").0;
        let long = "x".repeat(KIND_BYTES_MAX + 1);
        assert_eq!(one(queued(&long, &[], false)), "other");
        for number in 0..PLACEABLE_KINDS_MAX {
            one(queued(&format!("system-{number}"), &[], false));
        }
        assert_eq!((one(queued("late", &[], false)), one(queued("system-3", &[], true))), ("other".to_owned(), "system-3".to_owned()));
    }
}
