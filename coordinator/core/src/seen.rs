//! What is around a job, as far as somebody sees it: a package that two tenants build tells neither what the other builds with it.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Reverse;

use kiln_wire::{BuildId, DrvPath, Explanation, Timestamp, WorkerId};

use crate::compare::package;
use crate::farm::Farm;
use crate::job::JobKey;
use crate::page::Sight;

/// Jobs beside one, each with its state in a word, and how many more there are.
pub type Neighbours = (Vec<(DrvPath, &'static str)>, u64);

impl Farm {
    /// Returns the jobs that a job needs, and those that need it, each with its state in one word; of each at most `max` that somebody sees,
    /// and how many of those there are beyond.
    pub fn neighbours(&self, derivation: &DrvPath, max: usize, sight: &Sight) -> Option<[Neighbours; 2]> {
        let (key, job) = self.find(derivation)?;
        let inputs: Vec<JobKey> = job.inputs.iter().copied().filter(|key| self.is_seen(*key, sight)).collect();
        let dependents: Vec<JobKey> = self.index.dependents(key).filter(|key| self.is_seen(*key, sight)).collect();
        Some([inputs, dependents].map(|keys| {
            let word = |key: &JobKey| (self.job(*key), self.state_word(*key, self.job(*key)));
            let named = keys.iter().take(max).map(word).map(|(job, word)| ((*job.derivation).clone(), word)).collect();
            (named, u64::try_from(keys.len().saturating_sub(max)).unwrap_or(u64::MAX))
        }))
    }

    /// Returns why a job is where it is, with what somebody sees of other jobs counted alone; none if they do not see it.
    pub fn explanation_seen(&self, derivation: &DrvPath, now: Timestamp, away: &BTreeSet<WorkerId>, sight: &Sight) -> Option<Explanation> {
        let key = self.key_of(derivation).filter(|key| self.is_seen(*key, sight))?;
        let mut explained = self.explanation(derivation, now, away)?;
        explained.job.builds = self.builds_seen(&explained.job.builds, sight);
        explained.job.attributes = self.names_in(&explained.job.builds, derivation);
        if *sight != Sight::All {
            let seen = |keys: &mut dyn Iterator<Item = JobKey>| keys.filter(|key| self.is_seen(*key, sight)).count();
            let count = |keys: &mut dyn Iterator<Item = JobKey>| u64::try_from(seen(keys)).unwrap_or(u64::MAX);
            explained.dependents = count(&mut self.index.dependents(key));
            explained.dependents_all = count(&mut self.dependents_of(key, usize::MAX).into_iter());
            let entry = (Reverse(self.index.rank_ms(key)), self.job(key).derivation.clone(), key);
            let lines = self.index.ready.values().flat_map(|lines| lines.values());
            let ahead = count(&mut lines.flat_map(|line| line.range(..&entry)).map(|(_, _, key)| *key));
            explained.ahead = explained.ahead.map(|_| ahead);
        }
        Some(explained)
    }

    /// Returns how many jobs are not built and cannot be without a job, near and far, of those that somebody sees. Looks at `looked_max` at
    /// most; none if there are more, or the farm has no such job.
    pub fn held_up(&self, derivation: &DrvPath, sight: &Sight, looked_max: usize) -> Option<u64> {
        let reached = self.dependents_of(self.key_of(derivation)?, looked_max);
        let held = reached.iter().filter(|key| !self.job(**key).is_built() && self.is_seen(**key, sight)).count();
        (reached.len() < looked_max).then(|| u64::try_from(held).unwrap_or(u64::MAX))
    }

    /// Adds those of some packages of which a build has a job that is built, looking at `looked_max` of its jobs after `after` at most; returns
    /// where to go on, if there are more.
    pub fn packages_built(
        &self,
        id: BuildId,
        after: Option<u32>,
        looked_max: usize,
        wanted: &BTreeSet<String>,
        built: &mut BTreeSet<String>,
    ) -> Option<u32> {
        let jobs = self.facts.builds.get(&id).map(|build| &*build.jobs).unwrap_or_default();
        let rest = &jobs[after.map_or(0, |after| jobs.partition_point(|key| key.0 <= after))..];
        let done = rest.iter().take(looked_max).map(|key| self.job(*key)).filter(|job| job.is_built());
        built.extend(done.map(|job| package(&job.derivation)).filter(|name| wanted.contains(*name)).map(String::from));
        (rest.len() > looked_max).then(|| rest[looked_max - 1].0)
    }

    /// Returns the jobs that need a job, near and far, but not more than about `max`.
    fn dependents_of(&self, key: JobKey, max: usize) -> BTreeSet<JobKey> {
        let (mut reached, mut open) = (BTreeSet::new(), Vec::from([key]));
        while let Some(from) = open.pop().filter(|_| reached.len() < max) {
            for dependent in self.index.dependents(from) {
                if reached.len() < max && reached.insert(dependent) {
                    open.push(dependent);
                }
            }
        }
        reached
    }
}
