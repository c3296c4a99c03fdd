//! Read-only views, for people and for the shell. O(jobs of what is asked for) at most.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use kiln_wire::client::{AttemptView, BuildState, BuildView, JobCounts, JobView, WorkerView};
use kiln_wire::{
    AttemptId, BuildId, BuiltOutput, DrvPath, FailureClass, Lease, OutputName, PackageView, PathInfo, Standing, StorePath, WorkerId,
};

use crate::apply::{OUTRUN, PREEMPTED};
use crate::build::{Build, Phase};
use crate::farm::Farm;
use crate::health::Health;
use crate::job::{Attempt, AttemptEnd, Job, JobKey, Needs, State};
use crate::page::WorkLeft;
use crate::report::{NOBODY, WaitReason};

impl Farm {
    /// Returns a live build as it stands; one that has ended as it ended.
    pub fn build_view(&self, id: BuildId) -> Option<BuildView> {
        let build = self.facts.builds.get(&id)?;
        let view = BuildView {
            build: id,
            name: build.name.clone(),
            submitted_at: build.submitted_at,
            state: BuildState::Active,
            counts: JobCounts::default(),
            remaining_ms: None,
            outputs: BTreeMap::new(),
            failures: Vec::new(),
            running: Vec::new(),
            waiting: BTreeMap::new(),
            evaluated: build.evaluated(build.record().is_some()),
        };
        Some(match &build.phase {
            Phase::Ended(record) => BuildView {
                state: record.state,
                counts: record.counts,
                outputs: record.outputs.clone(),
                failures: named(build, record.failures.clone()),
                ..view
            },
            Phase::Going | Phase::Stopping { .. } => BuildView {
                counts: self.counts_of(id),
                remaining_ms: self.remaining_ms(id),
                outputs: self.outputs_by_root(build),
                failures: named(build, self.failures_of(build)),
                running: named(build, self.views(build, |job| job.running().is_some())),
                waiting: self.waiting_of(build),
                ..view
            },
        })
    }

    /// Returns a job of the farm.
    pub fn job_view(&self, derivation: &DrvPath) -> Option<JobView> {
        self.find(derivation).map(|(key, job)| self.live_view(key, job, &BTreeMap::new()))
    }

    /// Returns every job of the farm, oldest submission first and inputs before what needs them.
    pub fn jobs(&self) -> impl Iterator<Item = JobView> + '_ {
        self.jobs_while(&NOBODY)
    }

    /// As [`Farm::jobs`], for who knows which workers take nothing new, or have no session.
    pub fn jobs_while(&self, away: &BTreeSet<WorkerId>) -> impl Iterator<Item = JobView> + use<'_> {
        let reasons = self.class_reasons(away);
        self.facts.jobs.iter().map(move |(key, job)| self.live_view(*key, job, &reasons))
    }

    /// Returns what the farm learned of packages, by name; of all, or of those called `pname`.
    pub fn packages(&self, pname: Option<&str>) -> Vec<PackageView> {
        self.facts.estimates.views(pname)
    }

    /// Returns the registered workers. All count as connected: whether a session is open at this moment, the shell knows.
    pub fn workers(&self) -> Vec<WorkerView> {
        let view = |(id, worker): (&WorkerId, &crate::fleet::Worker)| {
            let load = self.index.loads.get(id).cloned().unwrap_or_default();
            let running = load.jobs.iter().map(|key| (*self.job(*key).derivation).clone()).collect();
            WorkerView {
                worker: id.clone(),
                connected: true,
                offer: worker.offer.clone(),
                used: load.used,
                running,
                strain: None,
                ailing: self.facts.health.get(id).filter(|health| health.drained || health.standing != Standing::Working).map(Health::view),
            }
        };
        self.facts.workers.iter().map(view).collect()
    }

    /// Returns how many of the farm's jobs are in which state.
    pub fn counts(&self) -> JobCounts {
        self.index.counts.into()
    }

    /// Returns the facts about a committed output of a live job. If several jobs made the path, of the oldest of them.
    pub fn path_info(&self, path: &StorePath) -> Option<&PathInfo> {
        let (_, key) = self.index.paths.range((path.clone(), JobKey(0))..).next().filter(|(found, _)| found == path)?;
        self.job(*key).built_outputs()?.iter().map(|output| &output.info).find(|info| info.path == *path)
    }

    /// Returns the committed outputs of a live job, sorted by name; none if it is not built.
    pub fn outputs_of(&self, derivation: &DrvPath) -> Option<&[BuiltOutput]> {
        self.find(derivation)?.1.built_outputs()
    }

    /// Returns the outputs that a live job's derivation declares, with their paths where these are known before the build.
    pub fn outputs_declared(&self, derivation: &DrvPath) -> Option<Vec<(OutputName, Option<StorePath>)>> {
        Some(self.find(derivation)?.1.outputs.iter().map(|spec| (spec.name.clone(), spec.path.clone())).collect())
    }

    /// Returns whether a job's inputs are all built, a build wants it, and it waits to be resolved.
    pub fn is_to_be_resolved(&self, derivation: &DrvPath) -> bool {
        self.key_of(derivation).is_some_and(|key| self.resolution_owed(key).is_some())
    }

    /// Returns whether a derivation is a job of the farm.
    pub fn has_job(&self, derivation: &DrvPath) -> bool {
        self.key_of(derivation).is_some()
    }

    /// Returns the derivation that is built in the place of a live job's; none if that is its own, or it is not resolved yet.
    pub fn resolved(&self, derivation: &DrvPath) -> Option<&DrvPath> {
        self.find(derivation)?.1.resolved()
    }

    /// Returns the live lease of a job, if it runs; the elder one, if it runs in two places.
    pub fn live_lease(&self, derivation: &DrvPath) -> Option<Lease> {
        self.find(derivation)?.1.lease()
    }

    /// Returns the live leases of a job, the elder one first: two, if it runs in two places.
    pub fn live_leases(&self, derivation: &DrvPath) -> Vec<Lease> {
        let leases = |job: &Job| job.leases().map(|running| job.lease_of(running)).collect();
        self.find(derivation).map(|(_, job)| leases(job)).unwrap_or_default()
    }

    /// Returns whether a lease is a live one of its job.
    pub fn is_live(&self, lease: &Lease) -> bool {
        self.find(&lease.derivation).is_some_and(|(_, job)| job.holds(lease))
    }

    /// Returns whether a live job had this attempt on this worker, and it has ended. What another attempt outran does not count: nobody asks
    /// for what it said.
    pub fn has_ended_on(&self, derivation: &DrvPath, attempt: AttemptId, worker: &WorkerId) -> bool {
        let is_it = |other: &Attempt| other.attempt == attempt && other.worker == *worker;
        let ended = self.find(derivation).map(|(_, job)| &job.tries.ended);
        ended.is_some_and(|ended| ended.iter().any(|other| is_it(other) && !matches!(other.end, AttemptEnd::Outrun | AttemptEnd::Same)))
    }

    /// Returns whether a live job is built to see whether it makes what the store has.
    pub fn is_check(&self, derivation: &DrvPath) -> bool {
        self.find(derivation).is_some_and(|(_, job)| job.check)
    }

    /// Returns the live leases of a worker.
    pub fn leases_of(&self, worker: &WorkerId) -> Vec<Lease> {
        let jobs = self.index.loads.get(worker).into_iter().flat_map(|load| &load.jobs);
        let lease = |job: &Job| job.leased_on(worker).map(|running| job.lease_of(running));
        jobs.filter_map(|key| lease(self.job(*key))).collect()
    }

    /// Returns the derivations that a live job needs and that the farm has as jobs.
    pub fn inputs_of(&self, derivation: &DrvPath) -> Option<Vec<&DrvPath>> {
        Some(self.find(derivation)?.1.inputs.iter().map(|input| &*self.job(*input).derivation).collect())
    }

    /// Returns why a job is in its state, in words; none if the farm has no such job.
    pub fn explain(&self, derivation: &DrvPath) -> Option<String> {
        self.find(derivation).map(|(key, job)| self.reason(key, job, &BTreeMap::new()))
    }

    pub(crate) fn counts_of(&self, build: BuildId) -> JobCounts {
        self.index.tallies.get(&build).map(|tally| tally.counts.into()).unwrap_or_default()
    }

    /// Returns the build's jobs that have failed, those among them that had when it began to stop and have a new chance by now.
    pub(crate) fn failures_of(&self, build: &Build) -> Vec<JobView> {
        let mut failures = self.views(build, |job| matches!(job.state, State::Failed { .. }));
        if let Phase::Stopping { failures: earlier, .. } = &build.phase {
            let known: BTreeSet<&DrvPath> = failures.iter().map(|view| &view.derivation).collect();
            let revived: Vec<JobView> = earlier.iter().filter(|view| !known.contains(&view.derivation)).cloned().collect();
            failures.extend(revived);
        }
        failures
    }

    fn remaining_ms(&self, id: BuildId) -> Option<u64> {
        let mut left = WorkLeft::default();
        self.work_left(id, None, usize::MAX, &mut left);
        self.ms_of(left)
    }

    fn views(&self, build: &Build, choose: impl Fn(&Job) -> bool) -> Vec<JobView> {
        // None of these waits, so no class needs a reason.
        let view = |(key, job): (JobKey, &Job)| self.view(key, job, &BTreeMap::new());
        build.jobs.iter().map(|key| (*key, self.job(*key))).filter(|(_, job)| choose(job)).map(view).collect()
    }

    /// As [`Self::view`], with what is expected by now and without surprises, for it is read as a time; records hold the rank that every
    /// version of this program gives.
    pub(crate) fn live_view(&self, key: JobKey, job: &Job, reasons: &BTreeMap<Arc<Needs>, WaitReason>) -> JobView {
        let view = self.view(key, job, reasons);
        let attributes = self.names_in(&view.builds, &view.derivation);
        let view = JobView { attributes, ..view };
        if job.is_built() { view } else { JobView { upward_rank_ms: self.index.path_ms(key), ..view } }
    }

    fn view(&self, key: JobKey, job: &Job, reasons: &BTreeMap<Arc<Needs>, WaitReason>) -> JobView {
        let ended = job.tries.ended.iter().map(attempt_view);
        let running = job.leases().map(|running| AttemptView {
            attempt: running.attempt,
            worker: running.worker.clone(),
            started_at: running.started_at,
            ended_at: None,
            failure: None,
            usage: None,
        });
        JobView {
            derivation: (*job.derivation).clone(),
            state: String::from(self.state_word(key, job)),
            reason: self.reason(key, job, reasons),
            builds: self.index.links.get(&key).map(|links| links.builds.clone()).unwrap_or_default(),
            attempts: ended.chain(running).collect(),
            upward_rank_ms: job.upward_rank_ms,
            attributes: Vec::new(),
        }
    }

    /// Returns the attributes that a derivation is as a root of some builds, each once.
    pub(crate) fn names_in(&self, builds: &[BuildId], derivation: &DrvPath) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for name in builds.iter().filter_map(|id| self.facts.builds.get(id)).flat_map(|build| build.names(derivation)) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    pub(crate) fn state_word(&self, key: JobKey, job: &Job) -> &'static str {
        match &job.state {
            State::Waiting if !self.is_wanted(key) => "cancelled",
            State::Waiting if self.index.unbuilt(key) > 0 || job.is_unresolved() => "blocked",
            State::Waiting => "ready",
            State::Running(_) => "running",
            State::Built { .. } => "built",
            State::Failed { .. } => "failed",
            State::DependencyFailed { .. } => "dependency-failed",
        }
    }

    pub(crate) fn reason(&self, key: JobKey, job: &Job, reasons: &BTreeMap<Arc<Needs>, WaitReason>) -> String {
        match &job.state {
            State::Waiting if !self.is_wanted(key) => String::from("no live build wants it started"),
            State::Waiting if self.index.unbuilt(key) > 0 => self.reason_blocked(key, job),
            State::Waiting if job.is_unresolved() => String::from("its inputs are built; their paths are being put into its derivation"),
            State::Waiting => self.wait_reason(key, job, reasons).to_string(),
            State::Running(running) if running.revoke_at.is_some() => {
                format!("on {}; no build wants it, it is stopped soon", running.worker)
            }
            State::Running(running) => match &running.copy {
                Some(copy) => format!("on {}, where it takes far longer than expected, and on {}", running.worker, copy.worker),
                None => format!("on {}", running.worker),
            },
            State::Built { published: false, .. } => String::from("its outputs are being published"),
            State::Built { published: true, .. } => String::new(),
            State::Failed { class, message } => format!("{class}: {message}"),
            State::DependencyFailed { cause } => format!("its input {} failed", self.job(*cause).derivation),
        }
    }

    fn reason_blocked(&self, key: JobKey, job: &Job) -> String {
        let unbuilt = self.index.unbuilt(key);
        let first = job.inputs.iter().map(|input| self.job(*input)).find(|input| !input.is_built());
        match first {
            Some(input) if unbuilt > 1 => format!("waits for {unbuilt} inputs, {} among them", input.derivation),
            Some(input) => format!("waits for its input {}", input.derivation),
            None => String::from("waits for its inputs"),
        }
    }

    pub(crate) fn is_wanted(&self, key: JobKey) -> bool {
        self.live_builds_of(key).any(|(_, build)| build.is_going())
    }

    fn waiting_of(&self, build: &Build) -> BTreeMap<String, u64> {
        let mut waiting = BTreeMap::new();
        let is_ready = |key: &&JobKey| {
            let job = self.job(**key);
            matches!(job.state, State::Waiting) && self.index.unbuilt(**key) == 0 && !job.is_unresolved() && self.is_wanted(**key)
        };
        let reasons = self.class_reasons(&NOBODY);
        for key in build.jobs.iter().filter(is_ready) {
            *waiting.entry(self.wait_reason(*key, self.job(*key), &reasons).to_string()).or_default() += 1;
        }
        waiting
    }
}

/// Returns the same views, with the attributes that they are as roots of a build.
fn named(build: &Build, mut views: Vec<JobView>) -> Vec<JobView> {
    for view in &mut views {
        view.attributes = build.names(&view.derivation).to_vec();
    }
    views
}

fn attempt_view(attempt: &Attempt) -> AttemptView {
    let failure = match &attempt.end {
        AttemptEnd::Built => None,
        AttemptEnd::Failed { class, message } | AttemptEnd::Lost { class, message } => Some((*class, message.clone())),
        AttemptEnd::Preempted => Some((FailureClass::Cancelled, String::from(PREEMPTED))),
        AttemptEnd::Outrun => Some((FailureClass::Cancelled, String::from(OUTRUN))),
        AttemptEnd::Same => Some((FailureClass::Cancelled, format!("{OUTRUN}; it made the same, too late"))),
        AttemptEnd::Differs => Some((FailureClass::BuildFailure, String::from("made other content than the committed outputs"))),
    };
    AttemptView {
        attempt: attempt.attempt,
        worker: attempt.worker.clone(),
        started_at: attempt.started_at,
        ended_at: Some(attempt.ended_at),
        failure,
        usage: attempt.usage,
    }
}
