//! What a coordinator does around its log: its loop, its proposals, its tasks. Decisions are `kiln_core`'s; here effects are done, with
//! delays and failures.

use std::collections::BTreeMap;

use kiln_core::{Answer, Command, Effect, Limits, Resolution, ResolvedInput, Turn};
use kiln_wire::worker::{Assignment, ToWorker};
use kiln_wire::{BuiltOutput, DrvPath, Failure, FailureClass, Leader, Lease, Outcome, PathInfo, StoreDir, Timestamp, Usage};

use crate::bug::Bug;
use crate::event::{Event, Task};
use crate::fact::Fact;
use crate::log::Body;
use crate::node::{Fate, Then, Waiting};
use crate::planted::share_an_entry;
use crate::world::World;

/// What bounds a leader's plans: all that a farm at the newest version does.
const BOUNDS: Limits = Limits { judges: true, copies: true, ..Limits::STANDARD };

/// A task that failed for a passing reason goes on after so long.
const AGAIN_US: u64 = 300_000;

impl World {
    /// Follows the leadership, as the loop does at every turn.
    pub(crate) fn follow(&mut self, node: usize) {
        let leads = self.leads(node);
        match self.nodes[node].memory.lead.follow(leads) {
            Turn::Same => {}
            Turn::StepsDown => {
                self.forget_sessions(node);
                let leading = self.nodes[node].memory.leading.as_mut();
                let waiting = leading.map(|leading| std::mem::take(&mut leading.waiting)).unwrap_or_default();
                self.give_up(node, waiting);
            }
            Turn::TakesOver(leader) => {
                self.forget_sessions(node);
                let this = &mut self.nodes[node];
                this.memory.stamps.not_before(this.memory.farm.latest());
                let owed = this.memory.farm.pending_effects();
                self.say(|| format!("node {} takes over in term {}", leader.node, leader.term));
                self.expect_workers(node);
                self.act(node, leader, owed);
                self.enforce(node);
                if self.has(Bug::FailoverIsCharged) {
                    self.charge_everybody(node);
                }
            }
        }
    }

    fn expect_workers(&mut self, node: usize) {
        let now = self.now;
        let this = &mut self.nodes[node];
        let steady = this.steady(now);
        for (worker, epoch) in this.memory.farm.registrations() {
            this.memory.contacts.expect(worker.clone(), epoch, steady);
        }
    }

    /// Plans if the loop would, and plans the next look at deadlines.
    pub(crate) fn turn(&mut self, node: usize) {
        let now = self.now;
        let this = &mut self.nodes[node];
        let (stamp, steady) = (this.stamp(now), this.steady(now));
        let Some(leader) = this.memory.lead.leader() else { return };
        let planned_for = if self.has(Bug::BackOffIsForgotten) { stamp.after_ms(600_000) } else { stamp };
        let memory = &mut self.nodes[node].memory;
        let away = memory.away();
        memory.lead.away(away);
        memory.lead.bounded(BOUNDS);
        memory.lead.winding(memory.contacts.winding(&memory.farm));
        if let Some((mut commands, mut report)) = memory.lead.plan(&memory.farm, planned_for, steady) {
            if self.has(Bug::ReportIsCutShort) {
                report.waiting.pop();
            }
            self.fact(&Fact::Planned { farm: &self.nodes[node].memory.farm, placements: &commands, report: &report });
            if self.has(Bug::LeasesShareAnEntry) {
                commands = share_an_entry(commands);
            }
            self.dispatch_early(node, leader, &commands);
            let memory = &mut self.nodes[node].memory;
            memory.leases_open += u64::from(!commands.is_empty());
            self.propose(node, commands, Then::Leases(leader));
        }
        self.copy_some(node, stamp);
        let memory = &self.nodes[node].memory;
        if memory.leases_open == 0 && self.options.busy == 0 && memory.lead.leader().is_some() {
            self.fact(&Fact::Rests { farm: &memory.farm, away: &memory.away(), now: stamp });
        }
        self.arm(node, stamp);
    }

    /// Plans the next look at deadlines.
    fn arm(&mut self, node: usize, stamp: Timestamp) {
        let now = self.now;
        let this = &mut self.nodes[node];
        let steady = this.steady(now);
        let memory = &mut this.memory;
        let Some(ms) = memory.lead.wake_after_ms(&memory.farm, memory.contacts.next_silence(), stamp, steady) else { return };
        let at = now + ms * 1000 * 1000 / this.rate + 1;
        memory.wake_due_us = at;
        if memory.wake_at_us <= now || at < memory.wake_at_us {
            memory.wake += 1;
            memory.wake_at_us = at;
            let event = Event::Wake { node, life: this.life, wake: memory.wake };
            self.heap.plan(at, event);
        }
    }

    /// A coordinator looks at its deadlines.
    pub(crate) fn wake(&mut self, node: usize, wake: u64) {
        let memory = &self.nodes[node].memory;
        if memory.wake == wake && memory.wake_due_us <= self.now {
            self.enforce(node);
        }
        self.turn(node);
    }

    fn enforce(&mut self, node: usize) {
        let now = self.now;
        let this = &mut self.nodes[node];
        let (stamp, steady) = (this.stamp(now), this.steady(now));
        let silent = this.memory.contacts.take_silent(steady);
        for (worker, _) in &silent {
            self.close_at_node(node, worker);
        }
        let memory = &mut self.nodes[node].memory;
        memory.lead.bounded(BOUNDS);
        let mut commands = memory.lead.enforce(&memory.farm, silent, stamp);
        if self.has(Bug::LossIsFailure) {
            commands = self.as_failures(node, commands);
        }
        let memory = &mut self.nodes[node].memory;
        if let Some(leader) = memory.lead.leader().filter(|_| !commands.is_empty()) {
            self.propose(node, commands, Then::Deadlines(leader));
        }
    }

    /// Proposes commands; each becomes an entry. Empty proposals are none.
    pub(crate) fn propose(&mut self, node: usize, commands: Vec<Command>, then: Then) {
        if commands.is_empty() {
            return;
        }
        let memory = &self.nodes[node].memory;
        if memory.leading.is_none() || memory.lead.leader().is_none() {
            return self.settled(node, then, Fate::NotLeader, Vec::new());
        }
        if !self.healed && self.dice.chance(self.options.busy) {
            return self.settled(node, then, Fate::Busy, Vec::new());
        }
        let mut indices = Vec::with_capacity(commands.len());
        for command in commands {
            self.fact(&Fact::Proposed { node: self.nodes[node].id, command: &command });
            indices.push(self.write(node, Body::Command(command)));
        }
        if let (Some(first), Some(last), Some(leading)) = (indices.first(), indices.last(), &mut self.nodes[node].memory.leading) {
            leading.waiting.insert(*last, Waiting { first: *first, answers: Vec::new(), then });
        }
        self.replicate(node);
    }

    /// A proposal's fate is known to whoever made it.
    pub(crate) fn settled(&mut self, node: usize, then: Then, fate: Fate, answers: Vec<Answer>) {
        let applied = fate == Fate::Applied;
        let steady = self.nodes[node].steady(self.now);
        let memory = &mut self.nodes[node].memory;
        match then {
            Then::Nobody => {}
            Then::Leases(leader) => {
                memory.leases_open = memory.leases_open.saturating_sub(1);
                memory.lead.assigned(leader, applied, steady);
                self.turn(node);
            }
            Then::Deadlines(leader) => {
                memory.lead.enforced(leader, applied, steady);
                if !applied && memory.lead.leader() == Some(leader) {
                    self.expect_workers(node);
                }
                self.turn(node);
            }
            Then::Again(command) => {
                if fate == Fate::Busy {
                    self.task(node, AGAIN_US, Task::Propose { command });
                }
            }
            Then::Client { question, rest } => self.submitted(node, question, rest, fate, answers),
        }
    }

    /// Does what effects say.
    pub(crate) fn act(&mut self, node: usize, leader: Leader, effects: Vec<Effect>) {
        let effects = self.let_run_on(effects);
        let missed = self.has(Bug::WakeUpIsLost) && effects.iter().any(|effect| matches!(effect, Effect::Publish { .. }));
        if !missed {
            self.nodes[node].memory.lead.changed();
        }
        for effect in effects {
            self.act_on(node, leader, effect);
        }
    }

    fn act_on(&mut self, node: usize, leader: Leader, effect: Effect) {
        let now = self.now;
        let this = &mut self.nodes[node];
        let delay = self.dice.below(20_000);
        match effect {
            Effect::Welcome { worker, epoch, keep } => {
                let steady = this.steady(now);
                this.memory.contacts.registered(&worker, epoch, steady);
                self.send_to_worker(
                    node,
                    &worker,
                    ToWorker::Welcome { leader, epoch, keep, log_bytes: Default::default(), hears_strain: true, hears_winding: true },
                );
            }
            Effect::Dispatch { lease, resources, limits } => {
                self.task(node, delay, Task::Dispatch { leader, lease, resources, limits });
            }
            Effect::Revoke(lease) => {
                let worker = lease.worker.clone();
                self.send_to_worker(node, &worker, ToWorker::Revoke { leader, lease });
            }
            Effect::Acknowledge { worker, derivation, attempt } => {
                this.memory.verified.remove(&(derivation.clone(), attempt));
                self.send_to_worker(node, &worker, ToWorker::Acknowledge { derivation, attempt });
            }
            Effect::Publish { derivation, mut outputs } => {
                if self.has(Bug::PublishesInParts) {
                    outputs.truncate(1);
                }
                // Signing waits for the disk now and then.
                let slow = if self.dice.chance(50) { 2_000_000 } else { 0 };
                self.task(node, delay + slow, Task::Publish { derivation, outputs });
            }
            Effect::Resolve { derivation } => self.task(node, delay, Task::Resolve { derivation }),
            Effect::Notify { .. } | Effect::Judged { .. } | Effect::Copied { .. } | Effect::Answer(_) => {}
            Effect::Archive(record) => {
                if self.has(Bug::RetiresUnarchived) {
                    let now = self.stamp(node);
                    self.propose_again(node, Command::Retire { build: record.build, now });
                }
                self.task(node, delay, Task::Archive { record });
            }
        }
    }

    pub(crate) fn task(&mut self, node: usize, delay_us: u64, task: Task) {
        let life = self.nodes[node].life;
        self.after(delay_us, Event::Task { node, life, task: Box::new(task) });
    }

    /// A task goes on.
    pub(crate) fn work(&mut self, node: usize, task: Task) {
        match task {
            Task::Dispatch { leader, lease, resources, limits } => match self.inputs(node, &lease.derivation) {
                Ok(inputs) => {
                    let assignment = self.assignment(leader, &lease, inputs, resources, limits);
                    let worker = lease.worker.clone();
                    let assignment_copy = assignment.clone();
                    self.send_to_worker(node, &worker, ToWorker::Dispatch(assignment));
                    self.send_to_another(node, &lease, &assignment_copy);
                    if !self.is_live(node, &lease) {
                        self.send_to_worker(node, &worker, ToWorker::Revoke { leader, lease });
                    }
                }
                Err(Lacks::Passing) => self.task(node, AGAIN_US, Task::Dispatch { leader, lease, resources, limits }),
                Err(Lacks::Path) => self.fail(node, lease, "an input is missing"),
            },
            Task::Report { lease, outcome } => self.report(node, lease, outcome),
            Task::Publish { derivation, outputs } => match self.store.publish(&outputs) {
                Ok(()) => {
                    self.fact(&Fact::Published { derivation: &derivation, outputs: &outputs });
                    let now = self.stamp(node);
                    self.propose_again(node, Command::Publish { derivation, now });
                }
                Err(_) => self.task(node, AGAIN_US, Task::Publish { derivation, outputs }),
            },
            Task::Archive { record } => match self.store.archive(&record) {
                Ok(()) => {
                    let now = self.stamp(node);
                    self.propose_again(node, Command::Retire { build: record.build, now });
                }
                Err(_) => self.task(node, AGAIN_US, Task::Archive { record }),
            },
            Task::Resolve { derivation } => self.resolve(node, derivation),
            Task::Propose { command } => self.propose_again(node, command),
        }
    }

    /// Proposes what a derivation is upon the committed outputs of its inputs; nothing if somebody has done so.
    fn resolve(&mut self, node: usize, derivation: DrvPath) {
        let now = self.stamp(node);
        let elsewhere = self.has(Bug::ResolvesFromElsewhere);
        let farm = &self.nodes[node].memory.farm;
        if !farm.is_to_be_resolved(&derivation) {
            return;
        }
        let mut inputs = Vec::new();
        for input in farm.inputs_of(&derivation).unwrap_or_default() {
            for built in farm.outputs_of(input).unwrap_or_default() {
                let (input, output) = (input.clone(), built.name.clone());
                let path = if elsewhere { derivation.as_path().clone() } else { built.info.path.clone() };
                inputs.push(ResolvedInput { derivation: input, output, path });
            }
        }
        let to = Resolution::Build { derivation: derivation.clone(), outputs: BTreeMap::new() };
        self.propose_again(node, Command::Resolve { derivation, inputs, to, now });
    }

    /// Proposes what must not be forgotten while this node leads.
    pub(crate) fn propose_again(&mut self, node: usize, command: Command) {
        self.propose(node, vec![command.clone()], Then::Again(command));
    }

    pub(crate) fn stamp(&mut self, node: usize) -> Timestamp {
        self.nodes[node].stamp(self.now)
    }

    pub(crate) fn is_live(&self, node: usize, lease: &Lease) -> bool {
        self.nodes[node].memory.farm.is_live(lease)
    }

    fn fail(&mut self, node: usize, lease: Lease, message: &str) {
        let failure = Failure { class: FailureClass::Infrastructure, message: message.to_owned() };
        let now = self.stamp(node);
        self.propose_again(
            node,
            Command::Finish { lease, outcome: Outcome::Failed { failure, usage: Usage::default() }, learn: true, judge: true, now },
        );
    }

    /// Proposes the end of an attempt, after a look at what it claims to have made.
    fn report(&mut self, node: usize, lease: Lease, outcome: Outcome) {
        let lease = self.lease_of_report(node, lease, &outcome);
        let outcome = self.belittled(node, &lease, outcome);
        let outcome = match outcome {
            Outcome::Built { outputs, usage } if self.is_live(node, &lease) => match self.check_outputs(node, &lease, &outputs) {
                Ok(outputs) => Outcome::Built { outputs, usage },
                Err(Lacks::Passing) => {
                    return self.task(node, AGAIN_US, Task::Report { lease, outcome: Outcome::Built { outputs, usage } });
                }
                Err(Lacks::Path) => return self.fail(node, lease, "an output is not in the store"),
            },
            outcome @ (Outcome::Built { .. } | Outcome::Failed { .. }) => outcome,
        };
        let (judge, now) = (!self.has(Bug::FailuresAreForgotten), self.stamp(node));
        self.propose_again(node, Command::Finish { lease, outcome, learn: true, judge, now });
    }

    fn check_outputs(&self, node: usize, lease: &Lease, outputs: &[BuiltOutput]) -> Result<Vec<BuiltOutput>, Lacks> {
        let verified = self.nodes[node].memory.verified.get(&(lease.derivation.clone(), lease.attempt));
        let check = |output: &BuiltOutput| {
            if let Some(known) = verified.and_then(|known| known.iter().find(|known| known.name == output.name)) {
                return Ok(known.clone());
            }
            let blob = self.store.blob(&output.info.nar_hash).map_err(|_| Lacks::Passing)?.ok_or(Lacks::Path)?;
            Ok(BuiltOutput { name: output.name.clone(), info: PathInfo { blob, ..output.info.clone() } })
        };
        outputs.iter().map(check).collect()
    }

    /// Returns what is known of a derivation's inputs.
    fn inputs(&self, node: usize, derivation: &DrvPath) -> Result<Vec<PathInfo>, Lacks> {
        let recipe = self.graph.of(derivation);
        let mut inputs = Vec::new();
        for input in &recipe.spec.inputs {
            for path in self.graph.of(&input.derivation).spec.outputs.values().flatten() {
                let live = self.nodes[node].memory.farm.path_info(path);
                let info = match live {
                    Some(info) => Some(info),
                    None => self.store.narinfo(path).map_err(|_| Lacks::Passing)?,
                };
                inputs.push(info.cloned().ok_or(Lacks::Path)?);
            }
        }
        Ok(inputs)
    }

    fn assignment(
        &self,
        leader: Leader,
        lease: &Lease,
        inputs: Vec<PathInfo>,
        resources: kiln_wire::Resources,
        limits: kiln_wire::JobLimits,
    ) -> Assignment {
        let lease = lease.clone();
        let (derivation, input_outputs) = (Vec::new(), BTreeMap::new());
        Assignment {
            leader,
            lease,
            store_dir: StoreDir::default(),
            derivation,
            inputs,
            input_outputs,
            resources,
            limits,
            resolved: None,
            trace: None,
        }
    }
}

/// Why something cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lacks {
    /// The store cannot be asked at the moment.
    Passing,
    /// The farm does not have it.
    Path,
}
