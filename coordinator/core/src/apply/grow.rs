//! Growth: while a build goes on, the build of an input turns out to have made a derivation, of which outputs are needed. What builds those
//! joins the builds that wait for them. `Resolve`, where it comes to `Resolution::Grow`.
//!
//! The leader's task reads what was made and stages its jobs; here they are linked to the job that waits, in one step.
//! Invariant: a job's inputs have lower keys than the job. What comes later and is needed gives the job that waits, and all that wait for
//! it, keys above its own. None of these was ever started, so that nobody outside the farm knows a key. Source: ADR 0032.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use kiln_wire::client::EventKind;
use kiln_wire::{BuildId, DrvPath, JobSpec, RequestId, Timestamp};

use super::order::Order;
use super::submit::too_many;
use super::{boxed, refuse};
use crate::effect::Refused;
use crate::farm::{Effects, Farm};
use crate::job::{Job, JobKey, Resolving, State};

/// What a job is to wait for, checked.
struct Growth {
    /// Jobs that the farm lacks, and an order in which inputs come first.
    specs: BTreeMap<DrvPath, JobSpec>,
    order: Order,
}

impl Farm {
    /// Has a job that waits for nothing else wait for `needs`, which are jobs of the farm or staged by `request`.
    pub(super) fn grow(&mut self, key: JobKey, request: RequestId, needs: &[DrvPath], now: Timestamp, fx: &mut Effects) {
        // Nobody told its client that it is a build, so that its number may still be a submission's.
        if self.build_of(request).is_some() || self.facts.dropped.contains_key(&request) {
            return refuse(Refused::StageDropped(request), fx);
        }
        let growth = self.check_growth(key, request, needs);
        let Growth { specs, order } = match growth {
            Ok(growth) => growth,
            Err(refused) => return refuse(refused, fx),
        };
        self.add_jobs(&order, specs);
        let needs: Vec<JobKey> = needs.iter().filter_map(|need| self.key_of(need)).collect();
        let joined = self.closure(needs.iter().copied());
        let failed_elsewhere = self.failed_elsewhere(key, &joined);
        let key = self.join(key, &needs, &joined);
        self.revive(failed_elsewhere);
        self.raise_ranks(&boxed(joined.iter().copied()));
        fx.extend(joined.iter().chain([&key]).filter_map(|key| self.resolution_owed(*key)));
        for job in &joined {
            if matches!(self.job(*job).state, State::Waiting) && self.index.unbuilt(*job) == 0 && !self.job(*job).is_unresolved() {
                self.notify(*job, now, EventKind::Ready, fx);
            }
        }
        // Inputs first, so that a job which joined above one that has failed fails with it.
        for job in joined.into_iter().chain([key]) {
            let is_waiting = matches!(self.job(job).state, State::Waiting);
            let cause = self.job(job).inputs.iter().find_map(|input| self.cause_through(*input));
            if let Some(cause) = cause.filter(|_| is_waiting) {
                self.fail_behind(cause, [job].into(), self.watchers(job), now, fx);
            }
        }
    }

    /// Checks what joins: that there is something to wait for, that it can be built, and that it does not wait for the job itself.
    fn check_growth(&self, key: JobKey, request: RequestId, needs: &[DrvPath]) -> Result<Growth, Refused> {
        let job = self.job(key);
        let wrong = || Refused::WrongResolution((*job.derivation).clone());
        let nothing = BTreeMap::new();
        let staged = self.facts.stages.get(&request).map_or(&nothing, |stage| &stage.jobs);
        let is_known = |need: &DrvPath| staged.contains_key(need) || self.key_of(need).is_some();
        let is_input = |need: &DrvPath| self.key_of(need).is_some_and(|key| job.inputs.binary_search(&key).is_ok());
        if !self.is_wanted(key) {
            return Err(Refused::NotUnresolved((*job.derivation).clone()));
        }
        if !needs.iter().all(is_known) || needs.iter().all(is_input) {
            return Err(wrong());
        }
        // Of what was staged, what is needed and not here.
        let mut specs: BTreeMap<DrvPath, JobSpec> = BTreeMap::new();
        let mut existing: Vec<JobKey> = Vec::new();
        let mut open: Vec<&DrvPath> = needs.iter().collect();
        while let Some(derivation) = open.pop() {
            if let Some(known) = self.key_of(derivation) {
                existing.push(known);
            } else if let Some(spec) = staged.get(derivation).filter(|_| !specs.contains_key(derivation)) {
                open.extend(spec.inputs.iter().map(|input| &input.derivation));
                specs.insert(derivation.clone(), spec.clone());
            }
        }
        if self.closure(existing).contains(&key) {
            return Err(Refused::Cycle([(*job.derivation).clone()].into()));
        }
        self.check_keys(key, request, specs.len())?;
        self.check_builds(key, needs, &specs)?;
        let order = self.check_new(request, &specs)?;
        Ok(Growth { specs, order })
    }

    /// Checks that there are keys for what joins, and for what gets new ones.
    fn check_keys(&self, key: JobKey, request: RequestId, joining: usize) -> Result<(), Refused> {
        let room = usize::try_from(u32::MAX - self.facts.job_next).unwrap_or(usize::MAX);
        let wanted = self.behind(key).len().saturating_add(joining);
        if wanted > room { Err(too_many(request, wanted, room)) } else { Ok(()) }
    }

    /// Checks that every build that goes on with the job may grow so: what builders make may lead to more without end.
    fn check_builds(&self, key: JobKey, needs: &[DrvPath], specs: &BTreeMap<DrvPath, JobSpec>) -> Result<(), Refused> {
        let inputs = specs.values().flat_map(|spec| spec.inputs.iter().map(|input| &input.derivation));
        let joined = self.closure(inputs.chain(needs).filter_map(|derivation| self.key_of(derivation)));
        for (id, build) in self.live_builds_of(key) {
            let lacking = joined.iter().filter(|key| build.jobs.binary_search(key).is_err()).count();
            build.check_growth(id, specs.len().saturating_add(lacking))?;
        }
        Ok(())
    }

    /// Returns a job and all that wait for it.
    pub(super) fn behind(&self, key: JobKey) -> BTreeSet<JobKey> {
        let (mut behind, mut open) = (BTreeSet::from([key]), [key].to_vec());
        while let Some(key) = open.pop() {
            open.extend(self.index.dependents(key).filter(|dependent| behind.insert(*dependent)));
        }
        behind
    }

    /// Returns those that failed and that no build has which goes on and waits for the job: as in a submission, they get another chance.
    fn failed_elsewhere(&self, key: JobKey, joined: &BTreeSet<JobKey>) -> Vec<JobKey> {
        let waiting: BTreeSet<BuildId> = self.live_builds_of(key).filter(|(_, build)| build.is_going()).map(|(id, _)| id).collect();
        let has_failed_there = |joined: JobKey| self.live_builds_of(joined).any(|(id, _)| waiting.contains(&id));
        let failed = joined.iter().copied().filter(|joined| matches!(self.job(*joined).state, State::Failed { .. }));
        failed.filter(|failed| !has_failed_there(*failed)).collect()
    }

    /// Makes `needs` inputs of a job, and what they need part of its builds. Returns the job's new key.
    fn join(&mut self, key: JobKey, needs: &[JobKey], joined: &BTreeSet<JobKey>) -> JobKey {
        let behind = self.behind(key);
        for key in behind.iter().chain(joined) {
            self.index.detach(&self.facts, *key);
        }
        let builds = self.index.links.get(&key).map(|links| links.builds.clone()).unwrap_or_default();
        let moved = self.renumber(&behind, key, needs);
        for id in builds {
            let build = self.facts.builds.get_mut(&id).expect("links name builds of the farm");
            let mut jobs: Vec<JobKey> = build.jobs.iter().map(|key| *moved.get(key).unwrap_or(key)).chain(joined.iter().copied()).collect();
            jobs.sort_unstable();
            jobs.dedup();
            build.jobs = jobs.into_boxed_slice();
            build.growths = build.growths.saturating_add(1);
            for key in joined {
                let builds = &mut self.index.links.entry(*key).or_default().builds;
                if let Err(at) = builds.binary_search(&id) {
                    builds.insert(at, id);
                }
            }
        }
        for key in joined {
            // A build that goes on awaits it.
            if let Some(State::Running(running)) = self.facts.jobs.get_mut(key).map(|job| &mut job.state) {
                running.revoke_at = None;
            }
        }
        // What joined is needed by more, and what was renumbered has its rank to come.
        let ranked: BTreeSet<JobKey> = moved.values().chain(joined).copied().collect();
        self.index.rank_all(&self.facts, ranked.iter().rev().copied());
        for key in moved.values().chain(joined) {
            self.index.attach(&self.facts, *key);
        }
        moved[&key]
    }

    /// Gives detached jobs new keys, in their order, and one of them new inputs. Returns the new key of each.
    fn renumber(&mut self, behind: &BTreeSet<JobKey>, key: JobKey, needs: &[JobKey]) -> BTreeMap<JobKey, JobKey> {
        let mut moved = BTreeMap::new();
        let mut taken: Vec<(JobKey, Job, Vec<BuildId>)> = Vec::with_capacity(behind.len());
        for old in behind {
            let job = self.facts.jobs.remove(old).expect("links name jobs of the farm");
            let builds = self.index.links.get_mut(old).map(|links| core::mem::take(&mut links.builds)).unwrap_or_default();
            self.index.remove_job(*old, &job);
            moved.insert(*old, JobKey(self.facts.job_next));
            self.facts.job_next += 1;
            taken.push((*old, job, builds));
        }
        let now = |key: &JobKey| *moved.get(key).unwrap_or(key);
        for (old, mut job, builds) in taken {
            let more = needs.iter().filter(|_| old == key);
            let inputs: BTreeSet<JobKey> = job.inputs.iter().chain(more).map(now).collect();
            job.inputs = boxed(inputs);
            if let Some(Resolving::Done { inputs, .. }) = job.resolving.as_deref_mut() {
                inputs.iter_mut().for_each(|(input, ..)| *input = now(input));
            }
            let new = now(&old);
            self.facts.jobs.insert(new, job);
            let job = self.facts.jobs.get(&new).expect("it was entered");
            self.index.add_job(&self.facts, new, job);
            self.index.links.entry(new).or_default().builds = builds;
        }
        moved
    }
}
