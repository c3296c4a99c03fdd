//! What planted bugs do where it takes more than a line. None of this happens without one.

use std::collections::BTreeSet;

use kiln_core::{Asker, BuildRecord, Command, Copied, Effect};
use kiln_wire::client::BuildState;
use kiln_wire::worker::{Assignment, ToWorker};
use kiln_wire::{AttemptId, BuildId, Failure, FailureClass, JobSpec, Leader, Lease, Outcome, RequestId, Timestamp, Usage};

use crate::bug::Bug;
use crate::client::tenant;
use crate::event::Task;
use crate::fact::Fact;
use crate::log::{Body, Entry};
use crate::node::Then;
use crate::world::World;

/// Puts every placement into one entry.
pub(crate) fn share_an_entry(commands: Vec<Command>) -> Vec<Command> {
    let (mut all, mut stamp) = (Vec::new(), Timestamp(0));
    for command in commands {
        if let Command::Assign { placements, now } = command {
            all.extend(placements);
            stamp = now;
        }
    }
    if all.is_empty() { Vec::new() } else { vec![Command::Assign { placements: all, now: stamp }] }
}

impl World {
    /// Charges every running job with the end of the leader before.
    pub(crate) fn charge_everybody(&mut self, node: usize) {
        let now = self.stamp(node);
        let farm = &self.nodes[node].memory.farm;
        let leases = farm.registrations().flat_map(|(worker, _)| farm.leases_of(worker));
        let failure = Failure { class: FailureClass::Infrastructure, message: "the leader is gone".to_owned() };
        let outcome = Outcome::Failed { failure, usage: Usage::default() };
        let commands = leases.map(|lease| Command::Finish { lease, outcome: outcome.clone(), learn: true, judge: true, now }).collect();
        self.propose(node, commands, Then::Nobody);
    }

    /// Publishes what was committed, whether its references are published or not.
    pub(crate) fn publish_out_of_order(&mut self, node: usize, entry: &Entry, owed: &mut Vec<Effect>) {
        if let Body::Command(Command::Finish { lease, .. }) = &entry.body
            && self.has(Bug::PublishesOutOfOrder)
        {
            owed.retain(|effect| !matches!(effect, Effect::Publish { .. }));
            let committed = self.nodes[node].memory.farm.outputs_of(&lease.derivation);
            let outputs = committed.map(|outputs| outputs.iter().map(|output| output.info.clone()).collect());
            owed.extend(outputs.map(|outputs| Effect::Publish { derivation: lease.derivation.clone(), outputs }));
        }
    }

    /// Dispatches what is only proposed.
    pub(crate) fn dispatch_early(&mut self, node: usize, leader: Leader, commands: &[Command]) {
        if !self.has(Bug::DispatchesUncommitted) {
            return;
        }
        let mut index = self.nodes[node].disk.last().0;
        for command in commands {
            index += 1;
            let Command::Assign { placements, .. } = command else { continue };
            for placement in placements.clone() {
                let spec = &self.graph.of(&placement.derivation).spec;
                let (resources, limits) = (spec.resources, spec.limits);
                let (attempt, worker, epoch) = (AttemptId(index), placement.worker, placement.epoch);
                let lease = Lease { derivation: placement.derivation, attempt, worker, epoch };
                self.work(node, Task::Dispatch { leader, lease, resources, limits });
            }
        }
    }

    /// Turns the loss of a worker into failures of what it ran.
    pub(crate) fn as_failures(&mut self, node: usize, commands: Vec<Command>) -> Vec<Command> {
        let farm = &self.nodes[node].memory.farm;
        let mut changed = Vec::new();
        for command in commands {
            if let Command::Lose { worker, now, .. } = &command {
                let failure = Failure { class: FailureClass::BuildFailure, message: "lost".to_owned() };
                let outcome = Outcome::Failed { failure, usage: Usage::default() };
                changed.extend(farm.leases_of(worker).into_iter().map(|lease| Command::Finish {
                    lease,
                    outcome: outcome.clone(),
                    learn: true,
                    judge: true,
                    now: *now,
                }));
            }
            changed.push(command);
        }
        changed
    }

    /// Sends a job to another worker as well.
    pub(crate) fn send_to_another(&mut self, node: usize, lease: &Lease, assignment: &Assignment) {
        if self.has(Bug::TwoWorkersStart) {
            let other = self.nodes[node].memory.contacts.connected().find(|worker| **worker != lease.worker).cloned();
            if let Some(other) = other {
                self.send_to_worker(node, &other, ToWorker::Dispatch(assignment.clone()));
            }
        }
    }

    /// Says for which lease a report counts, and publishes what is only reported.
    pub(crate) fn lease_of_report(&mut self, node: usize, lease: Lease, outcome: &Outcome) -> Lease {
        let Outcome::Built { outputs, .. } = outcome else { return lease };
        if self.has(Bug::PublishesBeforeCommit) {
            let outputs: Vec<_> = outputs.iter().map(|output| output.info.clone()).collect();
            if self.store.publish(&outputs).is_ok() {
                self.fact(&Fact::Published { derivation: &lease.derivation, outputs: &outputs });
            }
        }
        let farm = &self.nodes[node].memory.farm;
        let is_lost = !farm.is_live(&lease) && farm.outputs_of(&lease.derivation).is_some();
        let mut references = outputs.iter().flat_map(|output| &output.info.references);
        if self.has(Bug::LoserIsPublished) && is_lost && references.all(|path| self.store.published(path).is_some()) {
            let outputs: Vec<_> = outputs.iter().map(|output| output.info.clone()).collect();
            if self.store.publish(&outputs).is_ok() {
                self.fact(&Fact::Published { derivation: &lease.derivation, outputs: &outputs });
            }
        }
        let live = self.nodes[node].memory.farm.live_lease(&lease.derivation);
        let Some(live) = live.filter(|live| *live != lease && self.has(Bug::LateReportCounts)) else { return lease };
        // The worker is told all the same that its report has come.
        let now = self.stamp(node);
        self.propose_again(node, Command::Finish { lease, outcome: outcome.clone(), learn: true, judge: true, now });
        live
    }

    /// Tells nobody to stop what another attempt outran.
    pub(crate) fn let_run_on(&self, mut effects: Vec<Effect>) -> Vec<Effect> {
        let is_won = |effect: &Effect| matches!(effect, Effect::Copied { copied: Copied::Won { .. }, .. });
        if self.has(Bug::OutrunRunsOn) && effects.iter().any(is_won) {
            effects.retain(|effect| !matches!(effect, Effect::Revoke(_)));
        }
        effects
    }

    /// Takes the failure of one of two attempts for nothing, because the other goes on.
    pub(crate) fn belittled(&self, node: usize, lease: &Lease, outcome: Outcome) -> Outcome {
        let farm = &self.nodes[node].memory.farm;
        match outcome {
            Outcome::Failed { failure, usage } if self.has(Bug::OneOfTwoIsForgiven) && farm.live_leases(&lease.derivation).len() > 1 => {
                Outcome::Failed { failure: Failure { class: FailureClass::Cancelled, ..failure }, usage }
            }
            outcome @ (Outcome::Failed { .. } | Outcome::Built { .. }) => outcome,
        }
    }

    /// Spoils the jobs of a submission.
    pub(crate) fn spoilt(&self, mut jobs: Vec<JobSpec>) -> Vec<JobSpec> {
        if self.has(Bug::KeyedByOutput) {
            let mut seen = BTreeSet::new();
            jobs.retain(|job| seen.insert(job.outputs.values().next().cloned()));
            let kept: BTreeSet<_> = jobs.iter().map(|job| job.derivation.clone()).collect();
            jobs.iter_mut().for_each(|job| job.inputs.retain(|input| kept.contains(&input.derivation)));
        }
        for job in &mut jobs {
            if self.has(Bug::HardFeatureIsSoft) {
                job.required_features.remove("kvm");
            }
            if self.has(Bug::SoftFeatureIsHard) && job.required_features.remove("big-parallel") {
                job.required_features.insert("large-machine".to_owned());
            }
        }
        jobs
    }

    /// Takes somebody for another.
    pub(crate) fn mistaken(&self, mut asker: Asker) -> Asker {
        asker.security |= self.has(Bug::EverybodyIsUrgent);
        if self.has(Bug::EverybodyIsOneTenant) {
            asker.account.tenant = Some(tenant(RequestId(0)));
        }
        asker
    }

    /// Ends a build because one attempt had bad luck.
    pub(crate) fn bad_luck(&self, node: usize, build: BuildId) -> Option<BuildRecord> {
        if !self.has(Bug::JoinersShareBadLuck) {
            return None;
        }
        let farm = &self.nodes[node].memory.farm;
        let view = farm.build_view(build).filter(|view| view.state == BuildState::Active)?;
        let unlucky =
            farm.jobs().find(|job| job.builds.contains(&build) && job.attempts.iter().any(|attempt| attempt.failure.is_some()))?;
        let request = self.clients.first()?.submission.request;
        let (name, counts, outputs, submitted_at) = (view.name, view.counts, view.outputs, view.submitted_at);
        let (roots, failures, state) = (Vec::new(), vec![unlucky], BuildState::Failed);
        Some(BuildRecord {
            build,
            request,
            name,
            roots,
            submitted_at,
            ended_at: submitted_at,
            state,
            counts,
            outputs,
            failures,
            account: None,
            evaluation: None,
        })
    }

    /// Kills what a cancelled build runs, whoever else wants it; or asks for it before the period of grace is over.
    pub(crate) fn kill_early(&mut self, node: usize, build: BuildId) {
        let (all, skipped) = (self.has(Bug::CancelKillsForAll), self.has(Bug::GraceIsSkipped));
        let Some(leader) = self.nodes[node].memory.lead.leader().filter(|_| all || skipped) else { return };
        let farm = &self.nodes[node].memory.farm;
        let jobs = farm.jobs().filter(|job| job.builds.contains(&build));
        let leases: Vec<Lease> = jobs.flat_map(|job| farm.live_leases(&job.derivation)).collect();
        let now = self.stamp(node);
        if all {
            let effects = leases.iter().cloned().map(Effect::Revoke).collect();
            self.act(node, leader, effects);
        } else {
            let revoke = leases.into_iter().map(|lease| Command::Revoke { lease, now: now.after_ms(60_000) });
            let commands: Vec<Command> = std::iter::once(Command::Cancel { build, now }).chain(revoke).collect();
            self.propose(node, commands, Then::Nobody);
        }
    }
}
