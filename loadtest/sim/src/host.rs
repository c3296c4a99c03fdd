//! One worker: its agent, its journal, the attempts that it runs, and its search for the leader. Decisions are `kiln_agent`'s; here
//! actions are done.

use std::collections::BTreeMap;

use kiln_agent::{Action, Agent};
use kiln_wire::worker::{Assignment, FromWorker, Offer, Strain, ToWorker};
use kiln_wire::{AttemptId, BuiltOutput, Failure, FailureClass, Leader, Lease, NodeId, Outcome, Usage, WorkerId};

use crate::bug::Bug;
use crate::event::{Event, Step};
use crate::fact::Fact;
use crate::world::World;

/// How often a worker says that it lives.
const BEAT_US: u64 = kiln_wire::limits::HEARTBEAT_MS * 1000;
/// How long a worker waits to be welcomed.
const WELCOME_US: u64 = 10_000_000;
/// A transfer that failed for a passing reason goes on after so long.
const AGAIN_US: u64 = 200_000;

/// A worker.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub id: WorkerId,
    pub offer: Offer,
    pub up: bool,
    /// Counts its processes.
    pub life: u32,
    pub agent: Agent,
    pub journal: Journal,
    pub conn: Option<usize>,
    /// Which coordinator it dials next.
    pub next: usize,
    pub running: BTreeMap<Lease, Running>,
    /// Stands still until then.
    pub paused_until_us: u64,
    /// Its next result finds no way.
    pub parts_at_result: bool,
    /// How much longer than others it takes, in thousandths.
    pub slowness: u64,
}

/// What a worker's process leaves to the next one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal {
    pub leader_seen: Leader,
    pub results: BTreeMap<AttemptId, (Lease, Outcome)>,
}

/// An attempt that runs.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub assignment: Assignment,
    pub killed: bool,
    /// Its builder has exited.
    pub exited: bool,
}

impl World {
    /// A worker dials the next coordinator.
    pub(crate) fn dial(&mut self, host: usize) {
        let this = &self.hosts[host];
        if this.conn.is_some() || !this.up {
            return;
        }
        let node = this.next % self.nodes.len();
        if !self.nodes[node].up || !self.net.host_reaches(host, node) {
            return self.dial_later(host, None);
        }
        let conn = self.open_session(host, node);
        let this = &mut self.hosts[host];
        this.conn = Some(conn);
        let hello = this.agent.hello();
        self.send_to_node(conn, FromWorker::Hello(hello));
        self.after(BEAT_US, Event::Beat { conn });
    }

    /// Dials again: the coordinator that is said to lead, or the next one.
    fn dial_later(&mut self, host: usize, hint: Option<NodeId>) {
        let pause = 50_000 + self.dice.below(300_000);
        let next = match hint {
            Some(node) => self.node_of(node),
            None => self.hosts[host].next + 1,
        };
        let this = &mut self.hosts[host];
        this.next = next % self.nodes.len();
        let life = this.life;
        self.after(pause, Event::Dial { host, life });
    }

    /// A worker's session is over.
    pub(crate) fn session_ended(&mut self, conn: usize) {
        let this = &mut self.conns[conn];
        this.open_at_worker = false;
        let (host, welcomed, node) = (this.host, this.welcomed, this.node);
        self.cut(conn);
        if self.hosts[host].conn == Some(conn) {
            let this = &mut self.hosts[host];
            this.conn = None;
            this.agent.disconnected();
            let hint = welcomed.then_some(self.nodes[node].id);
            self.dial_later(host, hint);
        }
    }

    /// A worker says that it lives, or finds that it was never welcomed.
    pub(crate) fn beat(&mut self, conn: usize) {
        let this = &self.conns[conn];
        if !this.open_at_worker || self.hosts[this.host].life != this.host_life {
            return;
        }
        if !this.welcomed && self.now - this.opened_us >= WELCOME_US {
            return self.session_ended(conn);
        }
        self.send_to_node(conn, FromWorker::Heartbeat);
        self.after(BEAT_US, Event::Beat { conn });
    }

    /// A coordinator's message arrives at its worker.
    pub(crate) fn worker_hears(&mut self, conn: usize, message: ToWorker) {
        let this = &self.conns[conn];
        let host = this.host;
        if !this.open_at_worker || self.hosts[host].life != this.host_life {
            return;
        }
        if let ToWorker::Dispatch(assignment) = &message {
            let another = assignment.lease.worker != self.hosts[host].id && self.has(Bug::TwoWorkersStart);
            if another && !self.hosts[host].running.contains_key(&assignment.lease) {
                return self.start(host, assignment.clone());
            }
        }
        let actions = self.hosts[host].agent.receive(message);
        if self.hosts[host].agent.session().is_some() {
            self.conns[conn].welcomed = true;
        }
        let seen = self.hosts[host].agent.leader_seen();
        self.fact(&Fact::Obeys { worker: &self.hosts[host].id, seen });
        self.do_actions(host, actions);
    }

    /// A worker's machine is short of something, or not any more.
    pub(crate) fn strained(&mut self, host: usize, strain: Option<Strain>) {
        if self.hosts[host].up {
            let actions = self.hosts[host].agent.strained(strain);
            self.do_actions(host, actions);
        }
    }

    fn do_actions(&mut self, host: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Start(assignment) => self.start(host, *assignment),
                Action::Kill(lease) => {
                    let this = &mut self.hosts[host];
                    if let Some(running) = this.running.get_mut(&lease) {
                        running.killed = true;
                    }
                    self.step(host, lease, 1 + self.now % 5_000, Step::Killed);
                }
                Action::Send(message) => {
                    if let Some(conn) = self.hosts[host].conn {
                        self.send_to_node(conn, message);
                    }
                }
                Action::Keep { lease, outcome } => {
                    self.fact(&Fact::Keeps { worker: &self.hosts[host].id, lease: &lease });
                    self.hosts[host].journal.results.insert(lease.attempt, (lease, outcome));
                    self.part_if_due(host);
                }
                Action::Forget(lease) => {
                    self.fact(&Fact::Forgets { worker: &self.hosts[host].id, lease: &lease });
                    self.hosts[host].journal.results.remove(&lease.attempt);
                }
                Action::Remember(leader) => self.hosts[host].journal.leader_seen = leader,
                Action::Disconnect(_) => {
                    if let Some(conn) = self.hosts[host].conn {
                        self.conns[conn].welcomed = false;
                        self.session_ended(conn);
                    }
                }
            }
        }
    }

    fn step(&mut self, host: usize, lease: Lease, delay_us: u64, step: Step) {
        let life = self.hosts[host].life;
        self.after(delay_us, Event::Attempt { host, life, lease: Box::new(lease), step });
    }

    fn start(&mut self, host: usize, assignment: Assignment) {
        let lease = assignment.lease.clone();
        let this = &self.hosts[host];
        self.fact(&Fact::Starts { worker: &this.id, assignment: &assignment, running: &this.running, offer: &this.offer });
        self.hosts[host].running.insert(lease.clone(), Running { assignment, killed: false, exited: false });
        let needed = self.dice.below(50_000);
        self.step(host, lease, needed, Step::Fetched);
    }

    /// An attempt goes on.
    pub(crate) fn attempt(&mut self, host: usize, lease: Lease, step: Step) {
        let Some(running) = self.hosts[host].running.get(&lease) else { return };
        match step {
            Step::Killed => self.attempt_ended(host, &lease, failed(FailureClass::Cancelled, "stopped")),
            _ if running.killed => {}
            Step::Fetched => self.fetched(host, lease),
            Step::Ran => self.ran(host, lease),
            Step::Upload(outputs, place) => self.upload(host, lease, outputs, place),
        }
    }

    fn fetched(&mut self, host: usize, lease: Lease) {
        let running = &self.hosts[host].running[&lease];
        let found: Result<Vec<_>, _> = running.assignment.inputs.iter().map(|input| self.store.blob(&input.nar_hash)).collect();
        let there = match found {
            Err(_) => return self.step(host, lease, AGAIN_US, Step::Fetched),
            Ok(blobs) => blobs.iter().all(Option::is_some),
        };
        self.fact(&Fact::Fetched { worker: &self.hosts[host].id, assignment: &self.hosts[host].running[&lease].assignment, there });
        if !there {
            return self.attempt_ended(host, &lease, failed(FailureClass::Infrastructure, "an input cannot be fetched"));
        }
        // Never the first: it alone may be able to run a job.
        if self.options.black_hole && !self.healed && host > 0 && host + 1 == self.hosts.len() {
            return self.attempt_ended(host, &lease, failed(FailureClass::Infrastructure, "the sandbox cannot start"));
        }
        let actions = self.hosts[host].agent.started(&lease);
        self.do_actions(host, actions);
        if self.has(Bug::WindsBeforeItsEnd) {
            let actions = self.hosts[host].agent.wound(&lease);
            self.do_actions(host, actions);
        }
        let needed = self.graph.of(&lease.derivation).duration_ms * self.hosts[host].slowness;
        self.step(host, lease, needed, Step::Ran);
    }

    fn ran(&mut self, host: usize, lease: Lease) {
        let memory_mib = self.hosts[host].running[&lease].assignment.resources.memory_mib;
        match self.graph.outcome(self.graph.place(&lease.derivation), lease.attempt, memory_mib) {
            Outcome::Built { outputs, .. } => {
                if let Some(running) = self.hosts[host].running.get_mut(&lease) {
                    running.exited = true;
                }
                let actions = self.hosts[host].agent.wound(&lease);
                self.do_actions(host, actions);
                self.step(host, lease, 0, Step::Upload(outputs, 0));
            }
            outcome @ Outcome::Failed { .. } => self.attempt_ended(host, &lease, outcome),
        }
    }

    /// Uploads one output after the other. Only the holder of a live lease may, and what went wrong in passing is tried again.
    fn upload(&mut self, host: usize, lease: Lease, mut outputs: Vec<BuiltOutput>, place: usize) {
        let Some(output) = outputs.get(place) else {
            let usage = Usage { wall_ms: self.graph.of(&lease.derivation).duration_ms, ..Usage::default() };
            return self.attempt_ended(host, &lease, Outcome::Built { outputs, usage });
        };
        let conn = self.hosts[host].conn.filter(|conn| self.conns[*conn].welcomed && !self.conns[*conn].cut);
        let leads = |node: &usize| self.nodes[*node].up && self.net.host_reaches(host, *node) && self.leads(*node).is_some();
        let Some(node) = conn.map(|conn| self.conns[conn].node).filter(leads) else {
            return self.step(host, lease, AGAIN_US, Step::Upload(outputs, place));
        };
        if !self.is_live(node, &lease) {
            return self.attempt_ended(host, &lease, failed(FailureClass::Cancelled, "the lease is over"));
        }
        let stored = if self.has(Bug::UploadIsNotKept) { Ok(output.info.blob) } else { self.store.put(&output.info) };
        let Ok(blob) = stored else {
            return self.step(host, lease, AGAIN_US, Step::Upload(outputs, place));
        };
        let (name, size) = (output.name.clone(), blob.size_bytes);
        if !self.has(Bug::OwnBytesAreClaimed) {
            outputs[place].info.blob = blob;
        }
        let verified = self.nodes[node].memory.verified.entry((lease.derivation.clone(), lease.attempt)).or_default();
        verified.retain(|known| known.name != name);
        verified.push(outputs[place].clone());
        self.hosts[host].agent.uploaded(&lease, &name, size);
        let needed = self.dice.below(20_000);
        self.step(host, lease, needed, Step::Upload(outputs, place + 1));
    }

    fn attempt_ended(&mut self, host: usize, lease: &Lease, outcome: Outcome) {
        let killed = self.hosts[host].running.remove(lease).is_some_and(|running| running.killed);
        if killed && self.has(Bug::KilledKeepsItsShare) {
            return;
        }
        let actions = self.hosts[host].agent.ended(lease, outcome);
        self.fact(&Fact::Ended { lease });
        self.do_actions(host, actions);
    }

    /// A worker's process dies. With its machine goes what the journal had not on disk.
    pub(crate) fn crash_host(&mut self, host: usize, machine: bool) {
        let this = &mut self.hosts[host];
        this.up = false;
        this.life += 1;
        this.running.clear();
        if machine {
            this.journal = Journal::default();
        }
        let conn = this.conn.take();
        self.say(|| format!("worker {host} dies{}", if machine { " with its machine" } else { "" }));
        self.fact(&Fact::WorkerDied { worker: &self.hosts[host].id, journal_lost: machine });
        if let Some(conn) = conn {
            self.conns[conn].open_at_worker = false;
            self.cut(conn);
        }
    }

    /// A worker's next process starts.
    pub(crate) fn restart_host(&mut self, host: usize) {
        let this = &mut self.hosts[host];
        if this.up {
            return;
        }
        this.up = true;
        let mut journal = this.journal.clone();
        if self.has(Bug::JournalLosesResults) {
            journal.results.clear();
        }
        if self.has(Bug::JournalForgetsLeader) {
            journal.leader_seen = Leader::default();
        }
        let mut offer = self.hosts[host].offer.clone();
        if self.has(Bug::CapacityIsMiscounted) {
            (offer.slots, offer.capacity.cores) = (offer.slots * 4, offer.capacity.cores * 4);
        }
        let this = &mut self.hosts[host];
        this.agent = Agent::restore(this.id.clone(), offer, journal.leader_seen, journal.results.into_values().collect());
        self.say(|| format!("worker {host} starts"));
        self.dial(host);
    }
}

fn failed(class: FailureClass, message: &str) -> Outcome {
    Outcome::Failed { failure: Failure { class, message: message.to_owned() }, usage: Usage::default() }
}
