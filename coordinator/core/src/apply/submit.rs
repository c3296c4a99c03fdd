//! Submissions: `Stage`, `Submit`. A submission joins the jobs that the farm has and adds those that it lacks.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use kiln_wire::limits::{JOBS_PER_ENTRY_MAX, JOBS_PER_SUBMISSION_MAX, REQUESTS_REMEMBERED_MAX, STAGE_MS_MAX, STAGES_MAX};
use kiln_wire::{BuildId, DrvPath, Evaluation, JobSpec, LogIndex, RequestId, Root, Timestamp};

use super::order::{Input, Order};
use super::{boxed, refuse};
use crate::build::{Build, Phase, Stage};
use crate::effect::{Answer, Effect, Refused};
use crate::estimate;
use crate::fair::Asker;
use crate::farm::{Effects, Farm};
use crate::job::{Job, JobKey, Needs, State};

/// What a `Submit` asks for.
pub(super) struct Wish {
    pub request: RequestId,
    pub name: String,
    pub roots: Vec<Root>,
    pub keep_going: bool,
    pub asker: Option<Asker>,
}

impl Farm {
    /// Keeps jobs aside for a submission. Jobs of a submission that is a build already change nothing.
    pub(super) fn stage(&mut self, request: RequestId, jobs: Vec<JobSpec>, now: Timestamp, fx: &mut Effects) {
        self.drop_old_stages(request, now);
        if self.build_of(request).is_some() {
            return;
        }
        if self.facts.dropped.contains_key(&request) {
            return refuse(Refused::StageDropped(request), fx);
        }
        let staged = self.facts.stages.get(&request).map(|stage| &stage.jobs);
        let lacking = jobs.iter().filter(|job| staged.is_none_or(|staged| !staged.contains_key(&job.derivation))).count();
        let (jobs_new, jobs_all) = (jobs.len(), staged.map_or(0, BTreeMap::len).saturating_add(lacking));
        if jobs_new > JOBS_PER_ENTRY_MAX || jobs_all > JOBS_PER_SUBMISSION_MAX {
            self.drop_stage(request, now);
            let (count, limit) =
                if jobs_new > JOBS_PER_ENTRY_MAX { (jobs_new, JOBS_PER_ENTRY_MAX) } else { (jobs_all, JOBS_PER_SUBMISSION_MAX) };
            return refuse(too_many(request, count, limit), fx);
        }
        let stage = self.facts.stages.entry(request).or_default();
        stage.touched_at = now;
        for job in jobs {
            stage.jobs.entry(job.derivation.clone()).or_insert(job);
        }
    }

    /// Notes which staged jobs are built although their outputs exist. Of a submission that is a build already it changes nothing.
    pub(super) fn check_staged(&mut self, request: RequestId, derivations: Vec<DrvPath>, now: Timestamp, fx: &mut Effects) {
        if self.build_of(request).is_some() {
            return;
        }
        let Some(stage) = self.facts.stages.get_mut(&request) else { return refuse(Refused::StageDropped(request), fx) };
        stage.touched_at = now;
        stage.check.extend(derivations.into_iter().filter(|derivation| stage.jobs.contains_key(derivation)));
    }

    /// Keeps aside what is known of a submission's evaluation. Of a submission that is a build already it changes nothing.
    pub(super) fn describe(&mut self, request: RequestId, mut evaluation: Evaluation, now: Timestamp, fx: &mut Effects) {
        self.drop_old_stages(request, now);
        if self.build_of(request).is_some() {
            return;
        }
        if self.facts.dropped.contains_key(&request) {
            return refuse(Refused::StageDropped(request), fx);
        }
        let stage = self.facts.stages.entry(request).or_default();
        stage.touched_at = now;
        evaluation.unbuilt.clear();
        evaluation.unreached.clear();
        stage.evaluation = Some(Box::new(evaluation));
    }

    /// Makes a build of a submission. The same request twice is one build.
    pub(super) fn submit(&mut self, index: LogIndex, wish: Wish, now: Timestamp, fx: &mut Effects) {
        let request = wish.request;
        if let Some(build) = self.build_of(request) {
            return fx.push(Effect::Answer(Answer::Submitted { request, build }));
        }
        if self.facts.dropped.contains_key(&request) {
            return refuse(Refused::StageDropped(request), fx);
        }
        // What another build has done, or does, cannot be done again beside it. The stage stays: its client asks again.
        let check = self.facts.stages.get(&request).into_iter().flat_map(|stage| &stage.check);
        if let Some(derivation) = check.clone().find(|derivation| self.key_of(derivation).is_some()) {
            return refuse(Refused::BeingBuilt(derivation.clone()), fx);
        }
        let Stage { jobs: mut specs, check, evaluation, touched_at: _ } = self.facts.stages.remove(&request).unwrap_or_default();
        let known: BTreeSet<JobKey> = specs.keys().filter_map(|derivation| self.key_of(derivation)).collect();
        specs.retain(|derivation, _| self.key_of(derivation).is_none());
        match self.check_new(request, &specs) {
            Ok(order) => {
                let added = self.add_jobs(&order, specs);
                for key in check.iter().filter_map(|derivation| self.key_of(derivation)).collect::<Vec<_>>() {
                    self.change(key, |job| job.check = true);
                }
                let evaluation = evaluation.filter(|evaluation| evaluation.objection(&wish.roots).is_none());
                let build = self.begin(index, (wish, evaluation), known.into_iter().chain(added), now);
                fx.push(Effect::Answer(Answer::Submitted { request, build }));
                let jobs = self.facts.builds.get(&build).map(|build| build.jobs.clone()).unwrap_or_default();
                fx.extend(jobs.iter().filter_map(|key| self.resolution_owed(*key)));
                self.settle(None, [build], now, fx);
            }
            Err(refused) => {
                self.drop_stage(request, now);
                refuse(refused, fx);
            }
        }
    }

    pub(super) fn build_of(&self, request: RequestId) -> Option<BuildId> {
        let retired = || self.facts.retired.iter().find(|(_, other)| **other == request).map(|(build, _)| *build);
        self.index.requests.get(&request).copied().or_else(retired)
    }

    /// Checks the jobs that the farm lacks and returns them in an order in which inputs come first.
    pub(super) fn check_new(&self, request: RequestId, specs: &BTreeMap<DrvPath, JobSpec>) -> Result<Order, Refused> {
        let room = usize::try_from(u32::MAX - self.facts.job_next).unwrap_or(usize::MAX);
        if specs.len() > room {
            return Err(too_many(request, specs.len(), room));
        }
        Order::of(specs, |derivation| self.key_of(derivation))
    }

    pub(super) fn add_jobs(&mut self, order: &Order, specs: BTreeMap<DrvPath, JobSpec>) -> Vec<JobKey> {
        let mut needs_known: BTreeSet<Arc<Needs>> = BTreeSet::new();
        let mut keys = vec![JobKey::default(); specs.len()];
        let mut specs: Vec<Option<JobSpec>> = specs.into_values().map(Some).collect();
        let mut added = Vec::with_capacity(specs.len());
        for place in order.places() {
            let mut spec = specs[*place].take().expect("the order names each job once");
            let needs = Needs {
                memory_wish_mib: 0,
                light: false,
                system: core::mem::take(&mut spec.system),
                features: core::mem::take(&mut spec.required_features),
                resources: spec.resources,
            };
            let needs = self.shared_needs(needs, &mut needs_known);
            let inputs = order.inputs(*place).iter().map(|input| match input {
                Input::New(place) => keys[*place],
                Input::Known(key) => *key,
            });
            let inputs = inputs.collect();
            let key = JobKey(self.facts.job_next);
            self.facts.job_next += 1;
            let job = Job::new(spec, needs, inputs);
            self.index.add_job(&self.facts, key, &job);
            self.facts.jobs.insert(key, job);
            self.index.attach(&self.facts, key);
            keys[*place] = key;
            added.push(key);
        }
        added
    }

    fn shared_needs(&self, needs: Needs, known: &mut BTreeSet<Arc<Needs>>) -> Arc<Needs> {
        if let Some(shared) = known.get(&needs) {
            return Arc::clone(shared);
        }
        let shared = self.index.ready.get_key_value(&needs).map_or_else(|| Arc::new(needs), |(shared, _)| Arc::clone(shared));
        known.insert(Arc::clone(&shared));
        shared
    }

    /// Enters the build: it now wants its whole closure, which gets failed jobs another chance and stops pending revocations.
    fn begin(
        &mut self,
        index: LogIndex,
        (wish, evaluation): (Wish, Option<Box<Evaluation>>),
        jobs: impl IntoIterator<Item = JobKey>,
        now: Timestamp,
    ) -> BuildId {
        let id = BuildId(index.0);
        let jobs = boxed(self.closure(jobs));
        let Wish { request, name, roots, keep_going, asker } = wish;
        let asker = asker.map(Box::new);
        let (submitted_at, phase) = (now, Phase::Going);
        let build = Build { request, name, roots, keep_going, submitted_at, jobs: jobs.clone(), growths: 0, asker, evaluation, phase };
        for key in &jobs {
            self.index.detach(&self.facts, *key);
        }
        self.index.add_build(id, &build);
        self.facts.builds.insert(id, build);
        self.index.rank_all(&self.facts, jobs.iter().rev().copied());
        for key in &jobs {
            if let Some(State::Running(running)) = self.facts.jobs.get_mut(key).map(|job| &mut job.state) {
                running.revoke_at = None;
            }
            self.index.attach(&self.facts, *key);
        }
        let failed = jobs.iter().copied().filter(|key| self.job(*key).is_failed()).collect();
        self.revive(failed);
        self.raise_ranks(&jobs);
        id
    }

    /// Raises the ranks that are kept for records. Highest key first: a job's dependents are settled before it is. O(V+E).
    pub(super) fn raise_ranks(&mut self, jobs: &[JobKey]) {
        for key in jobs.iter().rev() {
            let job = self.job(*key);
            if job.is_built() {
                continue;
            }
            let behind = self.index.dependents(*key).map(|dependent| self.job(dependent).upward_rank_ms).max().unwrap_or(0);
            let rank = behind.saturating_add(estimate::wall_ms_unlearnt(job));
            if rank > job.upward_rank_ms {
                let job = self.facts.jobs.get_mut(key).expect("a build's jobs are of the farm");
                job.upward_rank_ms = rank;
            }
        }
    }

    fn drop_stage(&mut self, request: RequestId, now: Timestamp) {
        self.facts.stages.remove(&request);
        self.facts.dropped.insert(request, now);
        if self.facts.dropped.len() > REQUESTS_REMEMBERED_MAX {
            let oldest = self.facts.dropped.iter().min_by_key(|(request, at)| (**at, **request)).map(|(request, _)| *request);
            oldest.map(|request| self.facts.dropped.remove(&request));
        }
    }

    /// Drops stages that were left alone for too long, and the oldest if `request` would be one too many.
    fn drop_old_stages(&mut self, request: RequestId, now: Timestamp) {
        let stages = &self.facts.stages;
        let mut drop: Vec<RequestId> =
            stages.iter().filter(|(_, stage)| now.since_ms(stage.touched_at) > STAGE_MS_MAX).map(|(request, _)| *request).collect();
        if drop.is_empty() && stages.len() >= STAGES_MAX && !stages.contains_key(&request) {
            drop.extend(stages.iter().min_by_key(|(request, stage)| (stage.touched_at, **request)).map(|(request, _)| *request));
        }
        for request in drop {
            self.drop_stage(request, now);
        }
    }
}

pub(super) fn too_many(request: RequestId, jobs: usize, jobs_max: usize) -> Refused {
    Refused::TooManyJobs { request, jobs: u64::try_from(jobs).unwrap_or(u64::MAX), jobs_max: u64::try_from(jobs_max).unwrap_or(u64::MAX) }
}
