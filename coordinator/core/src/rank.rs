//! Upward ranks: expected milliseconds from a job's start to the end of the longest chain that needs it.
//!
//! Part of the index: they follow from the graph and from what is expected of each job. Invariant: an unbuilt job's rank is its own
//! expected time and the highest rank of what waits for it; a built job has none. Kept up to date from a change upwards, against the
//! arrows of the graph, as far as ranks really change. Source: HEFT, Topcuoglu, Hariri, Wu 2002.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use crate::estimate::{Expected, Touched};
use crate::farm::{Facts, Farm};
use crate::index::Index;
use crate::job::{Job, JobKey, State};

impl Index {
    /// Returns the upward rank of a job in milliseconds.
    pub fn rank_ms(&self, key: JobKey) -> u64 {
        self.links.get(&key).map_or(0, |links| links.rank_ms)
    }

    /// Returns what is expected of a job.
    pub fn expected(&self, key: JobKey) -> Expected {
        self.links.get(&key).map_or_else(Expected::default, |links| links.expected)
    }

    /// Computes the ranks of jobs that are not attached, highest key first: a job's dependents are settled before it is. O(V+E). The jobs
    /// must hold every input of each of them.
    pub fn rank_all(&mut self, facts: &Facts, keys: impl Iterator<Item = JobKey>) {
        for key in keys {
            if let Some(rank_ms) = self.rank_now(facts, key) {
                self.links.entry(key).or_default().rank_ms = rank_ms;
            }
        }
    }

    /// Computes the ranks of some jobs again, and of what they need as far as ranks change.
    pub fn rerank(&mut self, facts: &Facts, mut open: BTreeSet<JobKey>) {
        // Inputs have lower keys: each job is looked at once.
        while let Some(key) = open.pop_last() {
            let Some(rank_ms) = self.rank_now(facts, key).filter(|rank_ms| *rank_ms != self.rank_ms(key)) else { continue };
            self.update(facts, key, |links| links.rank_ms = rank_ms);
            open.extend(facts.jobs.get(&key).into_iter().flat_map(|job| job.inputs.iter().copied()));
        }
    }

    /// Returns the rank that a job has by those of what waits for it; none if it is built or unknown.
    fn rank_now(&self, facts: &Facts, key: JobKey) -> Option<u64> {
        let links = self.links.get(&key)?;
        facts.jobs.get(&key).filter(|job| !job.is_built())?;
        let behind = links.dependents.iter().map(|dependent| self.rank_ms(*dependent)).max().unwrap_or(0);
        Some(behind.saturating_add(links.expected.wall_ms))
    }

    /// Looks again at what is expected of jobs of which more is known by now.
    fn expect_again(&mut self, facts: &Facts, keys: Vec<JobKey>) {
        let mut changed = BTreeSet::new();
        for key in keys {
            let Some(job) = facts.jobs.get(&key).filter(|job| !job.is_built()) else { continue };
            let expected = facts.estimates.expected(job);
            if expected != self.expected(key) {
                self.update(facts, key, |links| links.expected = expected);
                changed.insert(key);
            }
        }
        self.rerank(facts, changed);
    }

    /// Changes what the order of ready jobs stands on. Only of jobs that wait does anything else follow from it.
    fn update(&mut self, facts: &Facts, key: JobKey, change: impl FnOnce(&mut crate::index::Links)) {
        let attached = facts.jobs.get(&key).is_some_and(|job| matches!(job.state, State::Waiting));
        if attached {
            self.detach(facts, key);
        }
        change(self.links.entry(key).or_default());
        if attached {
            self.attach(facts, key);
        }
    }
}

impl Farm {
    /// Follows what was learned: of which packages more is known.
    pub(crate) fn learned(&mut self, touched: &Touched) {
        let keys: Vec<JobKey> = if touched.all {
            self.facts.jobs.iter().filter(|(_, job)| !Job::is_built(job)).map(|(key, _)| *key).collect()
        } else {
            touched.topics.iter().flat_map(|topic| self.index.jobs_of(*topic)).collect()
        };
        self.index.expect_again(&self.facts, keys);
    }
}
