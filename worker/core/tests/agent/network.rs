//! A farm and its agents over a network that loses, repeats and reorders messages, with crashes of workers and leaders.
//!
//! A failure names its seed; `KILN_SEED=<seed>` runs that one alone. A lost message breaks its session, as QUIC would, some time
//! later; until then the rest of that session goes on, in any order.

use std::collections::{BTreeMap, BTreeSet};

use kiln_agent::{Action, Agent};
use kiln_core::{Command, Effect, Farm, Limits, plan};
use kiln_wire::client::{BuildState, JobView};
use kiln_wire::worker::{FromWorker, ToWorker};
use kiln_wire::{BuildId, Epoch, JobSpec, Leader, Lease, LogIndex, Outcome, RequestId, Root, Timestamp, WorkerId};

use crate::facts::{Dice, assignment, built, leader, offer, spec, worker};

const WORKERS: u64 = 3;
const JOBS: u64 = 30;
/// Ticks of 500 ms in which the network misbehaves; afterwards it is given time to come to rest.
const TICKS_BAD: u64 = 400;
const TICKS_ALL: u64 = 4_000;
/// Ticks without a session after which a worker counts as lost.
const SILENCE_TICKS_MAX: u64 = 20;

enum Letter {
    ToFarm(Box<FromWorker>),
    ToWorker(Box<ToWorker>),
}

struct InFlight {
    at: u64,
    worker: WorkerId,
    session: u64,
    letter: Letter,
}

/// A worker's process and what survives it.
struct Host {
    agent: Agent,
    /// The journal.
    finished: BTreeMap<Lease, Outcome>,
    leader_seen: Leader,
    /// Builders and when they end.
    builders: BTreeMap<Lease, u64>,
    killed: BTreeSet<Lease>,
    started: BTreeSet<Lease>,
    /// The open session, and when it breaks.
    session: Option<(u64, u64)>,
}

struct World {
    dice: Dice,
    tick: u64,
    index: u64,
    term: u64,
    farm: Farm,
    hosts: BTreeMap<WorkerId, Host>,
    network: Vec<InFlight>,
    sessions: u64,
    /// Since when a registered worker has had no session.
    silent_since: BTreeMap<WorkerId, u64>,
    jobs: Vec<JobSpec>,
    /// How often the jobs were submitted: a job that three crashed workers had is poisoned, and its build has to be asked for again.
    submissions: u64,
    build: Option<BuildId>,
}

impl World {
    fn new(seed: u64) -> Self {
        let host = |number: u64| {
            let name = worker(&format!("w{number}"));
            (name.clone(), Host::boot(name, BTreeMap::new(), Leader::default()))
        };
        Self {
            dice: Dice(seed),
            tick: 0,
            index: 0,
            term: 1,
            farm: Farm::new(),
            hosts: (0..WORKERS).map(host).collect(),
            network: Vec::new(),
            sessions: 0,
            silent_since: BTreeMap::new(),
            jobs: Vec::new(),
            submissions: 0,
            build: None,
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.tick * 500)
    }

    fn is_bad(&self) -> bool {
        self.tick < TICKS_BAD
    }

    fn draw_jobs(&mut self) {
        for number in 0..JOBS {
            let inputs: BTreeSet<String> = (0..self.dice.below(3).min(number)).map(|_| format!("j{}", self.dice.below(number))).collect();
            self.jobs.push(spec(&format!("j{number}"), &inputs.into_iter().collect::<Vec<_>>()));
        }
    }

    fn submit(&mut self) {
        self.submissions += 1;
        let (request, now) = (RequestId(self.submissions), self.now());
        self.propose(Command::Stage { request, jobs: self.jobs.clone(), now });
        let roots = self.jobs.iter().map(|job| Root { derivation: job.derivation.clone(), outputs: BTreeSet::new() }).collect();
        self.propose(Command::Submit { request, name: "all".to_owned(), roots, keep_going: false, asker: None, now });
        self.build = self.farm.builds().last();
    }

    /// Commits a command. Its effects are lost if the leader falls right after it.
    fn propose(&mut self, command: Command) {
        self.index += 1;
        let effects = self.farm.apply(LogIndex(self.index), command);
        self.farm.check_invariants().expect("every invariant holds after every command");
        if self.is_bad() && self.dice.once_in(60) {
            return self.leader_falls();
        }
        effects.into_iter().for_each(|effect| self.act(effect));
    }

    fn leader_falls(&mut self) {
        self.term += 1;
        let names: Vec<WorkerId> = self.hosts.keys().cloned().collect();
        names.iter().for_each(|name| self.close(name));
        // The next leader expects every registered worker.
        self.silent_since = self.farm.registrations().map(|(name, _)| (name.clone(), self.tick)).collect();
        for effect in self.farm.pending_effects() {
            self.act(effect);
        }
    }

    fn act(&mut self, effect: Effect) {
        let leader = leader(self.term);
        match effect {
            Effect::Welcome { worker, epoch, keep } => self.post(
                &worker,
                Letter::to_worker(ToWorker::Welcome {
                    leader,
                    epoch,
                    keep,
                    log_bytes: BTreeMap::new(),
                    hears_strain: true,
                    hears_winding: true,
                }),
            ),
            Effect::Dispatch { lease, resources, .. } => {
                let to = lease.worker.clone();
                self.post(&to, Letter::to_worker(ToWorker::Dispatch(assignment(lease, self.term, resources))));
            }
            Effect::Revoke(lease) => {
                let to = lease.worker.clone();
                self.post(&to, Letter::to_worker(ToWorker::Revoke { leader, lease }));
            }
            Effect::Acknowledge { worker, derivation, attempt } => {
                self.post(&worker, Letter::to_worker(ToWorker::Acknowledge { derivation, attempt }));
            }
            Effect::Publish { derivation, .. } => {
                let now = self.now();
                self.propose(Command::Publish { derivation, now });
            }
            Effect::Notify { .. }
            | Effect::Judged { .. }
            | Effect::Copied { .. }
            | Effect::Archive(_)
            | Effect::Answer(_)
            | Effect::Resolve { .. } => {}
        }
    }

    /// Sends a letter on a worker's open session, if there is one: perhaps late, perhaps twice, perhaps never.
    fn post(&mut self, worker: &WorkerId, letter: Letter) {
        let Some((session, _)) = self.hosts[worker].session else { return };
        let bad = self.is_bad();
        if bad && self.dice.once_in(25) {
            let at = self.tick + self.dice.below(6);
            self.host(worker).session = Some((session, at));
            return;
        }
        if bad && self.dice.once_in(8) {
            let at = self.tick + 1 + self.dice.below(30);
            self.network.push(InFlight { at, worker: worker.clone(), session, letter: letter.copy() });
        }
        let at = self.tick + 1 + if bad { self.dice.below(6) } else { 0 };
        self.network.push(InFlight { at, worker: worker.clone(), session, letter });
    }

    fn host(&mut self, worker: &WorkerId) -> &mut Host {
        self.hosts.get_mut(worker).expect("the fleet does not change")
    }

    fn deliver(&mut self) {
        let tick = self.tick;
        let due: Vec<InFlight> = self.network.extract_if(.., |letter| letter.at <= tick).collect();
        for letter in due {
            let open = self.hosts[&letter.worker].session.is_some_and(|(session, _)| session == letter.session);
            // Of a session that is over, most is gone with it; what comes late all the same must do no harm.
            if !open && !self.dice.once_in(4) {
                continue;
            }
            match letter.letter {
                Letter::ToWorker(message) => {
                    let actions = self.host(&letter.worker).agent.receive(*message);
                    self.perform(&letter.worker, actions);
                }
                Letter::ToFarm(message) => self.hear(&letter.worker, *message),
            }
        }
    }

    fn hear(&mut self, worker: &WorkerId, message: FromWorker) {
        let now = self.now();
        match message {
            FromWorker::Hello(hello) => {
                self.silent_since.remove(worker);
                self.propose(Command::Register {
                    worker: worker.clone(),
                    offer: hello.offer,
                    attempts: hello.attempts,
                    since: hello.since,
                    judge: false,
                    now,
                });
            }
            FromWorker::Finished { lease, outcome } => self.propose(Command::Finish { lease, outcome, learn: false, judge: false, now }),
            FromWorker::Heartbeat | FromWorker::Admission(_) | FromWorker::Winding(_) | FromWorker::Started(_) | FromWorker::Log { .. } => {
            }
        }
    }

    fn perform(&mut self, worker: &WorkerId, actions: Vec<Action>) {
        for action in actions {
            let ends_at = self.tick + 1 + self.dice.below(10);
            let dies_at = self.tick + 1 + self.dice.below(3);
            let host = self.host(worker);
            match action {
                Action::Start(assignment) => {
                    let lease = assignment.lease;
                    assert!(host.started.insert(lease.clone()), "{worker} starts {lease:?} twice");
                    host.builders.insert(lease, ends_at);
                    let slots = usize::try_from(host.agent.offer().slots).expect("small");
                    assert!(host.builders.len() <= slots, "{worker} runs more than its slots");
                }
                Action::Kill(lease) => {
                    host.builders.insert(lease.clone(), dies_at);
                    host.killed.insert(lease);
                }
                Action::Send(message) => {
                    if let FromWorker::Finished { lease, .. } = &message {
                        assert!(!host.killed.contains(lease), "{worker} reports {lease:?}, which was stopped");
                    }
                    self.post(worker, Letter::ToFarm(Box::new(message)));
                }
                Action::Keep { lease, outcome } => {
                    host.finished.insert(lease, outcome);
                }
                Action::Forget(lease) => {
                    host.finished.remove(&lease);
                }
                Action::Remember(leader) => host.leader_seen = leader,
                Action::Disconnect(_) => self.close(worker),
            }
        }
    }

    fn close(&mut self, worker: &WorkerId) {
        let tick = self.tick;
        let host = self.host(worker);
        if host.session.take().is_some() {
            host.agent.disconnected();
            self.silent_since.entry(worker.clone()).or_insert(tick);
        }
    }

    fn step_host(&mut self, worker: &WorkerId) {
        let tick = self.tick;
        if self.is_bad() && self.dice.once_in(150) {
            // The process dies: builders with it. The journal stays.
            self.close(worker);
            let host = self.host(worker);
            *host = Host::boot(worker.clone(), host.finished.clone(), host.leader_seen);
        }
        if self.hosts[worker].session.is_some_and(|(_, breaks_at)| breaks_at <= tick) {
            self.close(worker);
        }
        if self.hosts[worker].session.is_none() && self.dice.once_in(4) {
            self.sessions += 1;
            let session = self.sessions;
            let agent = &mut self.hosts.get_mut(worker).expect("a host").agent;
            let hello = FromWorker::Hello(agent.hello());
            self.host(worker).session = Some((session, u64::MAX));
            self.post(worker, Letter::ToFarm(Box::new(hello)));
        }
        let over: Vec<Lease> = self.hosts[worker].builders.iter().filter(|(_, at)| **at <= tick).map(|(lease, _)| lease.clone()).collect();
        for lease in over {
            self.host(worker).builders.remove(&lease);
            let outcome = built(lease.derivation.name());
            let actions = self.host(worker).agent.ended(&lease, outcome);
            self.perform(worker, actions);
        }
    }

    fn step(&mut self) {
        self.tick += 1;
        self.deliver();
        let names: Vec<WorkerId> = self.hosts.keys().cloned().collect();
        names.iter().for_each(|name| self.step_host(name));
        let (tick, now) = (self.tick, self.now());
        let lost: Vec<(WorkerId, Epoch)> = self.farm.registrations().map(|(name, epoch)| (name.clone(), epoch)).collect();
        for (worker, epoch) in lost {
            if self.silent_since.get(&worker).is_some_and(|since| tick - since > SILENCE_TICKS_MAX) {
                self.silent_since.remove(&worker);
                self.propose(Command::Lose { worker, epoch, judge: false, now });
            }
        }
        self.farm.due(now).into_iter().for_each(|command| self.propose(command));
        let (plan, _) = plan(&self.farm, now, &Limits::STANDARD);
        if !plan.placements.is_empty() {
            self.propose(Command::Assign { placements: plan.placements, now });
        }
        if self.state() == Some(BuildState::Failed) {
            let poisoned = |job: &JobView| job.reason.contains("poisoned");
            let view = self.build.and_then(|build| self.farm.build_view(build)).expect("the build has not left the farm");
            assert!(view.failures.iter().all(poisoned), "nothing fails here but workers: {:?}", view.failures);
            self.submit();
        }
    }

    fn state(&self) -> Option<BuildState> {
        self.build.and_then(|build| self.farm.build_view(build)).map(|view| view.state)
    }

    fn is_at_rest(&self) -> bool {
        let ended = self.state() == Some(BuildState::Built);
        let idle = self.hosts.values().all(|host| host.builders.is_empty() && host.finished.is_empty());
        ended && idle && !self.is_bad()
    }
}

impl Host {
    fn boot(name: WorkerId, finished: BTreeMap<Lease, Outcome>, leader_seen: Leader) -> Self {
        let results = finished.iter().map(|(lease, outcome)| (lease.clone(), outcome.clone())).collect();
        Self {
            agent: Agent::restore(name, offer(2), leader_seen, results),
            finished,
            leader_seen,
            builders: BTreeMap::new(),
            killed: BTreeSet::new(),
            started: BTreeSet::new(),
            session: None,
        }
    }
}

impl Letter {
    fn to_worker(message: ToWorker) -> Self {
        Self::ToWorker(Box::new(message))
    }

    fn copy(&self) -> Self {
        match self {
            Self::ToFarm(message) => Self::ToFarm(message.clone()),
            Self::ToWorker(message) => Self::ToWorker(message.clone()),
        }
    }
}

fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("KILN_SEED") {
        Ok(seed) => vec![seed.parse().expect("KILN_SEED is a number")],
        Err(_) => (0..count).collect(),
    }
}

#[test]
fn everything_is_built_over_a_bad_network() {
    for seed in seeds(60) {
        let mut world = World::new(seed);
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            world.draw_jobs();
            world.submit();
            while !world.is_at_rest() && world.tick < TICKS_ALL {
                world.step();
            }
            let counts = world.farm.counts();
            assert!(world.is_at_rest(), "after {} ticks: {counts:?}", world.tick);
            assert_eq!(counts.built, JOBS, "{counts:?}");
        }));
        assert!(run.is_ok(), "KILN_SEED={seed} reproduces it");
    }
}
