//! Upward ranks: expected milliseconds from a job's start to the end of the longest chain that needs it.
//!
//! A build of which nothing is known is short, nearly always, and now and then takes hours: that is known once it has run. So a chain counts
//! at most one such surprise, for two in one chain are not to be expected; and a job that may be one itself goes ahead by as much
//! again, because starting it is what tells. Source: measured, ADR 0042.
//!
//! Part of the index: they follow from the graph and from what is expected of each job. Invariant: what [`Chain::of`] says of every unbuilt
//! job; a built job has none. Kept up to date from a change upwards, against the arrows of the graph, as far as ranks really change.
//! Source: HEFT, Topcuoglu, Hariri, Wu 2002.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use kiln_wire::DrvPath;

use crate::estimate::{Expected, Touched};
use crate::farm::{Facts, Farm};
use crate::index::{Index, Links};
use crate::job::{Job, JobKey, State};

/// What follows a job, from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    /// With one surprise at most.
    pub surprised_ms: u64,
    /// Without any.
    pub path_ms: u64,
}

impl Chain {
    /// Returns the longest chain from a job of which this is expected to the end of one of those that need it.
    pub fn of(own: Expected, behind: impl Iterator<Item = Self>) -> Self {
        let longest = |a: Self, b: Self| Self { surprised_ms: a.surprised_ms.max(b.surprised_ms), path_ms: a.path_ms.max(b.path_ms) };
        let behind = behind.fold(Self::default(), longest);
        let surprised_ms = behind.surprised_ms.saturating_add(own.wall_ms).max(behind.path_ms.saturating_add(own.surprise_ms));
        Self { surprised_ms, path_ms: behind.path_ms.saturating_add(own.wall_ms) }
    }

    /// Returns the upward rank.
    pub fn rank_ms(self, own: Expected) -> u64 {
        self.surprised_ms.saturating_add(own.surprise_ms)
    }
}

impl Index {
    /// Returns the upward rank of a job in milliseconds.
    pub fn rank_ms(&self, key: JobKey) -> u64 {
        self.links.get(&key).map_or(0, |links| links.rank_ms)
    }

    /// Returns the expected milliseconds from a job's start to the end of the longest chain that needs it, without a surprise.
    pub fn path_ms(&self, key: JobKey) -> u64 {
        self.links.get(&key).map_or(0, |links| links.path_ms)
    }

    /// Returns the longest chain from a job's start.
    fn chain(&self, key: JobKey) -> Chain {
        let chain =
            |links: &Links| Chain { surprised_ms: links.rank_ms.saturating_sub(links.expected.surprise_ms), path_ms: links.path_ms };
        self.links.get(&key).map_or_else(Chain::default, chain)
    }

    /// Returns what is expected of a job.
    pub fn expected(&self, key: JobKey) -> Expected {
        self.links.get(&key).map_or_else(Expected::default, |links| links.expected)
    }

    /// Computes the ranks of jobs that are not attached, highest key first: a job's dependents are settled before it is. O(V+E). The jobs
    /// must hold every input of each of them.
    pub fn rank_all(&mut self, facts: &Facts, keys: impl Iterator<Item = JobKey>) {
        for key in keys {
            if let Some((rank_ms, path_ms)) = self.rank_now(facts, key) {
                let links = self.links.entry(key).or_default();
                (links.rank_ms, links.path_ms) = (rank_ms, path_ms);
            }
        }
    }

    /// Computes the ranks of some jobs again, and of what they need as far as ranks change.
    pub fn rerank(&mut self, facts: &Facts, mut open: BTreeSet<JobKey>) {
        // Inputs have lower keys: each job is looked at once.
        while let Some(key) = open.pop_last() {
            let was = (self.rank_ms(key), self.path_ms(key));
            let Some(ranks) = self.rank_now(facts, key).filter(|ranks| *ranks != was) else { continue };
            self.update(facts, key, |links| (links.rank_ms, links.path_ms) = ranks);
            open.extend(facts.jobs.get(&key).into_iter().flat_map(|job| job.inputs.iter().copied()));
        }
    }

    /// Returns the rank and the path that a job has by those of what waits for it; none if it is built or unknown.
    pub fn rank_now(&self, facts: &Facts, key: JobKey) -> Option<(u64, u64)> {
        let links = self.links.get(&key)?;
        facts.jobs.get(&key).filter(|job| !job.is_built())?;
        let chain = Chain::of(links.expected, links.dependents.iter().map(|dependent| self.chain(*dependent)));
        Some((chain.rank_ms(links.expected), chain.path_ms))
    }

    /// Looks again at what is expected of jobs of which more is known by now.
    fn expect_again(&mut self, facts: &Facts, keys: Vec<JobKey>) {
        let mut changed = BTreeSet::new();
        for key in keys {
            let Some(job) = facts.jobs.get(&key).filter(|job| !job.is_built()) else { continue };
            let expected = facts.estimates.expected(job);
            let was = self.expected(key);
            if expected != was {
                self.update(facts, key, |links| links.expected = expected);
                changed.insert(key);
                // What the job hands on is its rank less its own surprise: it may be another one though the rank is the same.
                changed.extend(job.inputs.iter().copied().filter(|_| expected.surprise_ms != was.surprise_ms));
            }
        }
        self.rerank(facts, changed);
    }

    /// Changes what the order of jobs stands on. Only of those that wait or run does anything else follow from it.
    fn update(&mut self, facts: &Facts, key: JobKey, change: impl FnOnce(&mut Links)) {
        let attached = facts.jobs.get(&key).is_some_and(|job| matches!(job.state, State::Waiting | State::Running(_)));
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
    /// Returns the upward rank of a live job: by what its like is put in order, of those that are ready. It counts surprises, so that it is
    /// no time: the view has that.
    pub fn upward_rank_ms(&self, derivation: &DrvPath) -> Option<u64> {
        self.find(derivation).map(|(key, _)| self.index.rank_ms(key))
    }

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
