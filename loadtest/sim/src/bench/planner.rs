//! The policy under test: a real farm. Its planner decides; it learns by the commands that a real coordinator would write.
//!
//! The only module of the bench that drives `kiln_core`. Does not decide anything: registers the fleet, submits, asks for a plan at each
//! event, and reports what ended.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kiln_core::{Asker, Command, Effect, Farm, Limits, plan_beside, split_name};
use kiln_wire::limits::{DURATIONS_PER_ENTRY_MAX, JOBS_PER_ENTRY_MAX};
use kiln_wire::{
    Account, AttemptId, Blake3Hash, Blob, BuiltOutput, DrvPath, Lease, LogIndex, Measured, Outcome, PathInfo, RequestId, Resources, Root,
    Sha256Hash, Share, ShareKey, TenantName, Timestamp, Usage, WorkerId,
};

use super::engine::{Placed, Policy, Span, View};
use super::fleet::{Fleet, WorkerNo};
use super::workload::{JobNo, Kind, Submission, Task, Workload};

/// A farm with its workers.
pub(crate) struct Planner {
    farm: Farm,
    index: u64,
    jobs: HashMap<DrvPath, JobNo>,
    workers: BTreeMap<WorkerId, WorkerNo>,
    /// Of each job, the leases that live: two at most.
    leases: HashMap<JobNo, Vec<Lease>>,
    /// Attempts that upload, by their workers, as these say.
    winding: BTreeMap<WorkerId, BTreeSet<AttemptId>>,
    /// Outputs are said to be empty: the farm sees nothing to be gained by placing jobs near their inputs.
    blind: bool,
    /// Bounds of its plans.
    limits: Limits,
}

impl Planner {
    /// Returns a farm in which the fleet is registered. Without `locality` it does not hear how large outputs are.
    pub fn new(load: &Workload, fleet: &Fleet, locality: bool) -> Self {
        let jobs = load.numbers().map(|job| (load.task(job).spec.derivation.clone(), job)).collect();
        let workers = fleet.workers.iter().zip(fleet.numbers()).map(|(worker, number)| (worker.id.clone(), number)).collect();
        let mut planner = Self {
            farm: Farm::new(),
            index: 0,
            jobs,
            workers,
            leases: HashMap::new(),
            winding: BTreeMap::new(),
            blind: !locality,
            limits: Limits { copies: true, ..Limits::STANDARD },
        };
        for worker in &fleet.workers {
            let (worker, offer) = (worker.id.clone(), worker.offer.clone());
            planner.apply(Command::Register { worker, offer, attempts: Vec::new(), since: None, judge: false, now: Timestamp(0) });
        }
        for asked in &load.submissions {
            let key = ShareKey { tenant: tenant(asked), project: None };
            let share = Share { weight: asked.weight, ..Share::default() };
            planner.apply(Command::SetShare { key, share: Some(share), now: Timestamp(0) });
        }
        for durations in history(load).chunks(DURATIONS_PER_ENTRY_MAX) {
            planner.apply(Command::ImportDurations { durations: durations.to_vec(), now: Timestamp(0) });
        }
        planner
    }

    /// Returns it as a farm that gives no job a second attempt.
    pub fn single(self) -> Self {
        Self { limits: Limits { copies: false, ..self.limits }, ..self }
    }

    /// Applies one entry of the log. The farm must not refuse what the bench proposes.
    fn apply(&mut self, command: Command) -> Vec<Effect> {
        self.index += 1;
        let effects = self.farm.apply(LogIndex(self.index), command);
        let refused = effects.iter().find(|effect| matches!(effect, Effect::Answer(kiln_core::Answer::Refused(_))));
        assert!(refused.is_none(), "the farm refuses what its planner or the replay says: {refused:?}");
        effects
    }

    /// Gives and ends the leases of one plan. An attempt's id is the index of its entry, so each has one of its own, as with a real leader.
    fn carry_out(&mut self, plan: kiln_core::Plan, now: Timestamp, placed: &mut Placed) {
        for lease in plan.preemptions {
            let (job, worker) = (self.jobs[&lease.derivation], self.workers[&lease.worker]);
            self.apply(Command::Preempt { lease: lease.clone(), now });
            self.forget(job, &lease);
            // What began in this moment has not begun.
            let began = placed.copies.iter().position(|(other, at, _)| (*other, *at) == (job, worker));
            match began {
                Some(at) => drop(placed.copies.remove(at)),
                None => placed.stopped.push((job, worker)),
            }
        }
        for placement in plan.placements {
            let given = self.lease(Command::Assign { placements: vec![placement], now });
            placed.placements.extend(given);
        }
        for (of, placement) in plan.copies {
            let given = self.lease(Command::Copy { of, placement, now });
            placed.copies.extend(given);
        }
    }

    fn lease(&mut self, command: Command) -> Option<(JobNo, WorkerNo, Resources)> {
        let given = self.apply(command).into_iter().find_map(|effect| match effect {
            Effect::Dispatch { lease, resources, .. } => Some((lease, resources)),
            _ => None,
        });
        let (lease, resources) = given?;
        let (job, worker) = (self.jobs[&lease.derivation], self.workers[&lease.worker]);
        self.leases.entry(job).or_default().push(lease);
        Some((job, worker, resources))
    }

    fn lease_on(&self, job: JobNo, worker: WorkerNo) -> Lease {
        let of = |lease: &&Lease| self.workers[&lease.worker] == worker;
        self.leases.get(&job).into_iter().flatten().find(of).cloned().expect("what runs is leased")
    }

    fn forget(&mut self, job: JobNo, lease: &Lease) {
        if let Some(leases) = self.leases.get_mut(&job) {
            leases.retain(|other| other != lease);
        }
        self.winding.get_mut(&lease.worker).map(|attempts| attempts.remove(&lease.attempt));
    }
}

impl Policy for Planner {
    fn arrive(&mut self, load: &Workload, submission: usize, now_ms: u64) {
        let (request, now) = (RequestId(submission as u64 + 1), Timestamp(now_ms));
        let asked = &load.submissions[submission];
        let tasks = &load.tasks[asked.jobs.start as usize..asked.jobs.end as usize];
        for tasks in tasks.chunks(JOBS_PER_ENTRY_MAX) {
            let jobs = tasks.iter().map(|task| task.spec.clone()).collect();
            self.apply(Command::Stage { request, jobs, now });
        }
        let root = |task: &Task| Root { derivation: task.spec.derivation.clone(), outputs: Default::default() };
        let roots = tasks.iter().filter(|task| task.dependents.is_empty()).map(root).collect();
        self.apply(Command::Submit { request, name: asked.name.clone(), roots, keep_going: true, asker: Some(asker(asked)), now });
    }

    fn ready(&mut self, _: &Workload, _: JobNo, _: u64) {}

    fn exited(&mut self, _: &Workload, span: &Span, _: u64) -> bool {
        let lease = self.lease_on(span.job, span.worker);
        self.winding.entry(lease.worker.clone()).or_default().insert(lease.attempt)
    }

    fn ended(&mut self, load: &Workload, span: &Span, now_ms: u64) {
        let (lease, now) = (self.lease_on(span.job, span.worker), Timestamp(now_ms));
        let task = load.task(span.job);
        let derivation = lease.derivation.clone();
        for lease in self.leases.remove(&span.job).unwrap_or_default() {
            self.forget(span.job, &lease);
        }
        self.apply(Command::Finish {
            lease,
            outcome: outcome(task, span, if self.blind { 0 } else { task.output_bytes }),
            learn: true,
            judge: false,
            now,
        });
        self.apply(Command::Publish { derivation, now });
    }

    fn place(&mut self, view: &View<'_>) -> Placed {
        let now = Timestamp(view.now_ms);
        let mut placed = Placed::default();
        loop {
            let (proposed, report) = plan_beside(&self.farm, now, &self.limits, &BTreeSet::new(), &self.winding);
            let again = proposed.placements.len() == self.limits.placements_max || !proposed.preemptions.is_empty();
            self.carry_out(proposed, now, &mut placed);
            if !again {
                placed.wake_ms = report.wake.map(|(at, _)| at.0);
                return placed;
            }
        }
    }
}

/// Says whose a submission is, as a client's certificate would.
fn asker(asked: &Submission) -> Asker {
    let account = Account { tenant: Some(tenant(asked)), project: None };
    Asker { account, ..Asker::default() }
}

fn tenant(asked: &Submission) -> TenantName {
    TenantName::parse(&asked.tenant).expect("tenants of the bench have plain names")
}

/// What is known of builds before, as `kiln durations import` would tell a farm. Of fetches and texts a farm has its own idea.
fn history(load: &Workload) -> Vec<Measured> {
    let mut known: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for task in load.tasks.iter().filter(|task| matches!(task.kind, Kind::Ordinary | Kind::Giant)) {
        if let Some(estimate_ms) = task.estimate_ms {
            known.insert((task.name(), &task.spec.system), estimate_ms);
        }
    }
    let line = |((name, system), wall_ms): ((&str, &str), u64)| {
        let (pname, version) = split_name(name);
        Measured {
            pname: pname.to_owned(),
            version: version.map(str::to_owned),
            system: system.to_owned(),
            wall_ms: wall_ms.max(1),
            ..Measured::default()
        }
    };
    known.into_iter().map(line).collect()
}

/// What the worker says once a builder has ended. To what outputs refer, the graphs do not say: to nothing.
fn outcome(task: &Task, span: &Span, output_bytes: u64) -> Outcome {
    let count = task.spec.outputs.len().max(1) as u64;
    let info = |path| PathInfo {
        path,
        nar_hash: Sha256Hash([7; 32]),
        nar_size_bytes: output_bytes / count,
        references: Default::default(),
        deriver: Some(task.spec.derivation.clone()),
        content_address: None,
        blob: Blob { size_bytes: output_bytes / count, blake3: Blake3Hash([7; 32]), sha256: Sha256Hash([7; 32]) },
    };
    let outputs = task.spec.outputs.iter().filter_map(|(name, path)| Some(BuiltOutput { name: name.clone(), info: info(path.clone()?) }));
    let cpu_ms = task.duration_ms.saturating_mul(u64::from(span.given.cores.max(1)));
    let memory_peak_bytes = task.spec.resources.memory_mib << 20;
    let usage = Usage { wall_ms: span.exit_ms - span.build_ms, cpu_ms, memory_peak_bytes, ..Usage::default() };
    Outcome::Built { outputs: outputs.collect(), usage }
}
