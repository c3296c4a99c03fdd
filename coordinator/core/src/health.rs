//! How workers do: which jobs failed on each for infrastructure reasons, and what follows from that.
//!
//! A failure counts against its worker as long as the job fails nowhere else: then it is excused, for the job or the store may be to blame,
//! and it counts again once the job is built elsewhere. Enough of them, and the worker rests; then it gets one job at a time, and rests for
//! twice as long if that fails; after some rests it is quarantined. One success that was begun since wipes all out. Known by the worker's name:
//! a new session changes nothing. Source: ADR 0040.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use kiln_wire::limits::{
    WORKER_FAILURES_EXCUSED_MAX, WORKER_FAILURES_MAX, WORKER_REST_MS_MAX, WORKER_REST_MS_MIN, WORKER_RESTS_MAX, WORKERS_AILING_MAX,
};
use kiln_wire::worker::Offer;
use kiln_wire::{Ailing, DrvPath, Standing, Timestamp, WorkerId};
use serde::{Deserialize, Serialize};

use crate::farm::Facts;
use crate::fleet::Free;

/// What is held against a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Health {
    pub standing: Standing,
    /// An administrator drained it.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub drained: bool,
    /// Jobs that failed there since its last success or its last rest, with whether they are excused.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failures: BTreeMap<DrvPath, bool>,
    /// When the last of them did. What was begun before proves nothing.
    pub failed_at: Timestamp,
    /// What that said.
    pub message: String,
    /// Rests in a row.
    pub rests: u32,
}

impl Health {
    /// Returns whether nothing is held against it.
    pub fn is_spotless(&self) -> bool {
        self.standing == Standing::Working && !self.drained && self.failures.is_empty()
    }

    /// Returns whether it takes nothing new.
    pub fn takes_nothing(&self) -> bool {
        self.drained || matches!(self.standing, Standing::Resting { .. } | Standing::Quarantined { .. })
    }

    /// Returns whether all of its room is used, whatever it holds.
    pub fn is_used_whole(&self) -> bool {
        !self.takes_nothing() && matches!(self.standing, Standing::Working)
    }

    /// Returns what of its room the farm uses; `began` says whether a lease that it holds was begun at some time or later. What it runs since
    /// before its rest is no trial.
    pub fn bound(&self, free: Free, began: impl Fn(Timestamp) -> bool) -> Free {
        match self.standing {
            _ if self.takes_nothing() => Free::NONE,
            Standing::Probation { since } if began(since) => Free::NONE,
            Standing::Probation { .. } => Free { slots: free.slots.min(1), light: 0, ..free },
            Standing::Working | Standing::Resting { .. } | Standing::Quarantined { .. } => free,
        }
    }

    /// Returns whether what an attempt that was begun at `started_at` says counts: a worker that rests runs what it was given before.
    pub fn counts(&self, started_at: Timestamp) -> bool {
        match self.standing {
            Standing::Working => true,
            Standing::Probation { since } => started_at >= since,
            Standing::Resting { .. } | Standing::Quarantined { .. } => false,
        }
    }

    /// Returns whether enough failed for a rest: one job is enough after a rest.
    pub fn is_due(&self) -> bool {
        let (own_max, all_max) = match self.standing {
            Standing::Working => (WORKER_FAILURES_MAX, WORKER_FAILURES_EXCUSED_MAX),
            Standing::Probation { .. } => (1, WORKER_FAILURES_MAX),
            Standing::Resting { .. } | Standing::Quarantined { .. } => return false,
        };
        self.failures.values().filter(|excused| !**excused).count() >= own_max || self.failures.len() >= all_max
    }

    /// Begins a rest, or the quarantine if it has rested often enough and that is allowed.
    pub fn rest(&mut self, may_be_quarantined: bool, now: Timestamp) {
        self.failures.clear();
        if self.rests >= WORKER_RESTS_MAX && may_be_quarantined {
            self.standing = Standing::Quarantined { since: now };
        } else {
            self.standing = Standing::Resting { until: now.after_ms(rest_ms(self.rests)) };
            self.rests = self.rests.saturating_add(1);
        }
    }

    /// Returns when its rest is over, if it rests.
    pub fn rests_until(&self) -> Option<Timestamp> {
        match self.standing {
            Standing::Resting { until } => Some(until),
            Standing::Working | Standing::Probation { .. } | Standing::Quarantined { .. } => None,
        }
    }

    /// Returns what people are told.
    pub fn view(&self) -> Ailing {
        Ailing {
            standing: self.standing,
            drained: self.drained,
            failures: u32::try_from(self.failures.values().filter(|excused| !**excused).count()).unwrap_or(u32::MAX),
            rests: self.rests,
            message: self.message.clone(),
        }
    }
}

/// Returns the length of the rest after `rests` earlier ones, in milliseconds.
fn rest_ms(rests: u32) -> u64 {
    (WORKER_REST_MS_MIN << rests.min(WORKER_REST_MS_MAX.ilog2())).min(WORKER_REST_MS_MAX)
}

/// Returns whether one more worker like `id` may be quarantined. At most a third of those that run the same systems with the same features, at
/// least one of two, never the last; and only while half of the others do well: where most fail it is not the workers that are broken, and
/// those that only rest go on by themselves.
pub(crate) fn may_be_quarantined(facts: &Facts, id: &WorkerId) -> bool {
    let Some(worker) = facts.workers.get(id) else { return false };
    let standings: Vec<Standing> = like(facts, &worker.offer).filter(|(other, _)| *other != id).map(|(_, standing)| standing).collect();
    let well = standings.iter().filter(|standing| **standing == Standing::Working).count();
    let quarantined = standings.iter().filter(|standing| matches!(standing, Standing::Quarantined { .. })).count();
    quarantined < quarantined_max(standings.len() + 1) && 2 * well >= standings.len()
}

/// Returns the workers like one that leaves, or changes, whose quarantine has to end: too few are left beside them.
pub(crate) fn no_longer_quarantined(facts: &Facts, offer: &Offer) -> Vec<WorkerId> {
    let mut quarantined: Vec<(Timestamp, &WorkerId)> = Vec::new();
    let mut count = 0;
    for (id, standing) in like(facts, offer) {
        count += 1;
        if let Standing::Quarantined { since } = standing {
            quarantined.push((since, id));
        }
    }
    quarantined.sort_unstable();
    let over = quarantined.len().saturating_sub(quarantined_max(count));
    quarantined.into_iter().take(over).map(|(_, id)| id.clone()).collect()
}

/// Returns the registered workers with the same systems and features that nobody has told to take nothing, and how each stands.
fn like<'a>(facts: &'a Facts, offer: &'a Offer) -> impl Iterator<Item = (&'a WorkerId, Standing)> {
    let alike = |other: &&crate::fleet::Worker| other.offer.systems == offer.systems && other.offer.features == offer.features;
    let like = facts.workers.iter().filter(move |(_, other)| alike(other) && !other.is_finishing);
    like.filter_map(|(id, _)| match facts.health.get(id) {
        Some(health) if health.drained => None,
        health => Some((id, health.map_or(Standing::Working, |health| health.standing))),
    })
}

fn quarantined_max(count: usize) -> usize {
    if count < 2 { 0 } else { (count / 3).max(1) }
}

/// Forgets what is held against a worker that is gone, if too many are remembered.
pub(crate) fn forget_one(facts: &Facts) -> Option<WorkerId> {
    if facts.health.len() <= WORKERS_AILING_MAX {
        return None;
    }
    let gone = facts.health.iter().filter(|(id, _)| !facts.workers.contains_key(*id));
    gone.min_by_key(|(id, health)| (health.drained, health.failed_at, *id)).map(|(id, _)| id.clone())
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn rests_double_up_to_ten_minutes() {
        let table = [(0, 20_000), (1, 40_000), (2, 80_000), (4, 320_000), (5, 600_000), (40, 600_000), (u32::MAX, 600_000)];
        for (rests, expect) in table {
            assert_eq!(rest_ms(rests), expect, "after {rests} rests");
        }
    }

    /// Workers alike, `w0` first, each with how it stands and whether it is drained.
    fn fleet(standings: &[(Standing, bool)]) -> Facts {
        let mut facts = Facts::default();
        for (number, (standing, drained)) in standings.iter().enumerate() {
            let id = worker(number);
            let known = crate::fleet::Worker {
                epoch: kiln_wire::Epoch(1),
                offer: Offer::default(),
                registered_at: Timestamp(0),
                is_finishing: false,
            };
            facts.workers.insert(id.clone(), known);
            facts.health.insert(id, Health { standing: *standing, drained: *drained, ..Health::default() });
        }
        facts
    }

    fn worker(number: usize) -> WorkerId {
        WorkerId::parse(&alloc::format!("w{number}")).expect("a name")
    }

    const WELL: (Standing, bool) = (Standing::Working, false);
    const RESTS: (Standing, bool) = (Standing::Resting { until: Timestamp(9) }, false);

    fn quarantined(since: u64) -> (Standing, bool) {
        (Standing::Quarantined { since: Timestamp(since) }, false)
    }

    #[test]
    fn a_worker_is_quarantined_only_while_half_of_its_like_do_well() {
        let drained = (Standing::Working, true);
        let table = [
            (vec![RESTS], false, "the last one"),
            (vec![RESTS, WELL], true, "one of two"),
            (vec![RESTS, drained], false, "the other takes nothing"),
            (vec![RESTS, RESTS], false, "the other does badly too"),
            (vec![RESTS, WELL, RESTS], true, "half of the others do well"),
            (vec![RESTS, WELL, RESTS, RESTS], false, "most do badly"),
            (vec![RESTS, WELL, WELL, quarantined(1)], false, "one of four is the third"),
        ];
        for (standings, expect, why) in table {
            assert_eq!(may_be_quarantined(&fleet(&standings), &worker(0)), expect, "{why}");
        }
    }

    #[test]
    fn the_longest_quarantine_ends_when_too_few_are_left_beside_it() {
        let table = [
            (vec![quarantined(1), WELL], vec![]),
            (vec![quarantined(1)], vec![worker(0)]),
            (vec![quarantined(1), (Standing::Working, true)], vec![worker(0)]),
            (vec![quarantined(2), quarantined(1), WELL, WELL], vec![worker(1)]),
        ];
        for (standings, expect) in table {
            assert_eq!(no_longer_quarantined(&fleet(&standings), &Offer::default()), expect, "{standings:?}");
        }
    }

    #[test]
    fn a_drained_worker_is_forgotten_last() {
        let mut facts = fleet(&[]);
        for number in 0..=WORKERS_AILING_MAX {
            let health = Health { drained: number == 0, failed_at: Timestamp(if number == 0 { 0 } else { 5 }), ..Health::default() };
            facts.health.insert(worker(number), health);
        }
        assert!(forget_one(&facts).is_some_and(|gone| gone != worker(0)));
    }

    #[test]
    fn a_third_of_a_kind_is_quarantined_at_most_and_never_the_last() {
        let table = [(0, 0), (1, 0), (2, 1), (3, 1), (5, 1), (6, 2), (100, 33)];
        for (count, expect) in table {
            assert_eq!(quarantined_max(count), expect, "of {count}");
        }
    }
}
