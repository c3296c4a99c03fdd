//! Clients: submit, watch until the end, sometimes cancel. A request without an answer has an unknown fate and is made again, under the
//! same number.

use std::collections::BTreeSet;

use kiln_core::{Answer, Asker, Command};
use kiln_wire::client::{BuildState, Submission};
use kiln_wire::{Account, BuildId, JobSpec, Priority, ProjectName, RequestId, Root, TenantName, Urgency};

use crate::bug::Bug;
use crate::event::{Ask, Event, Reply};
use crate::fact::Fact;
use crate::node::{Fate, Then};
use crate::world::World;

/// A client waits so long for an answer.
const PATIENCE_US: u64 = 3_000_000;
/// Between two looks at a build.
const LOOK_US: u64 = 400_000;

/// A client with one build.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub submission: Submission,
    /// The derivations that it wants, by their place.
    pub wants: Vec<usize>,
    pub cancels_at_us: Option<u64>,
    /// It has asked for the end.
    pub cancelled: bool,
    pub stage: Stage,
    /// Which coordinator it asks.
    pub node: usize,
    /// Its last question has no answer yet.
    pub asked: bool,
    /// Counts its turns: what was planned for an earlier one is void.
    pub turn: u64,
}

/// How far a client has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Submits,
    Watches(BuildId),
    Cancels(BuildId),
    Done(Option<BuildState>),
}

/// A question that was asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub client: usize,
    pub turn: u64,
    pub node: usize,
}

/// Three tenants ask in turn.
pub(crate) fn tenant(request: RequestId) -> TenantName {
    TenantName::parse(&format!("t{}", request.0 % 3)).expect("a plain name")
}

fn asker(request: RequestId, urgency: Urgency) -> Asker {
    Asker {
        account: Account { tenant: Some(tenant(request)), project: urgency.project },
        priority: urgency.priority,
        security: urgency.security,
        trace: None,
    }
}

impl World {
    /// Draws how urgent a build is: one in six is of the security class.
    fn urgency(&mut self) -> Urgency {
        let project = self.dice.chance(300).then(|| ProjectName::parse("p").expect("a plain name"));
        let points = [-100, -50, 0, 50, 100][self.dice.place(5)];
        Urgency { project, priority: Priority::from(points), security: self.dice.chance(166) }
    }

    /// Makes a client.
    pub(crate) fn new_client(&mut self, number: usize) -> Client {
        let wants: BTreeSet<usize> = (0..=self.dice.below(3)).map(|_| self.dice.place(self.graph.recipes.len())).collect();
        let roots =
            wants.iter().map(|place| Root { derivation: self.graph.recipes[*place].spec.derivation.clone(), outputs: BTreeSet::new() });
        let cancels = self.options.cancels && self.dice.chance(400);
        let submission = Submission {
            request: RequestId(u64::try_from(number).expect("small") + 1),
            name: format!("build {number}"),
            roots: roots.collect(),
            keep_going: self.dice.chance(500),
            urgency: self.urgency(),
            trace: None,
            evaluation: None,
        };
        let cancels_at_us = cancels.then(|| self.now + 1_000 + self.dice.below(8_000_000));
        Client {
            submission,
            wants: wants.into_iter().collect(),
            cancels_at_us,
            cancelled: false,
            stage: Stage::Submits,
            node: number,
            asked: false,
            turn: 0,
        }
    }

    /// A client acts: it asks, and asks again if there was no answer.
    pub(crate) fn client(&mut self, client: usize, turn: u64) {
        let retry_is_new = self.has(Bug::RetryIsANewBuild);
        let this = &mut self.clients[client];
        if turn != this.turn {
            return;
        }
        this.turn += 1;
        let again = std::mem::replace(&mut this.asked, true);
        if again {
            this.node += 1;
        }
        let ask = match this.stage {
            Stage::Submits => {
                let mut submission = this.submission.clone();
                if again && retry_is_new {
                    submission.request.0 += 1000;
                }
                Ask::Submit(submission)
            }
            Stage::Watches(build) if this.cancels_at_us.is_some_and(|at| at <= self.now) => {
                this.stage = Stage::Cancels(build);
                this.cancelled = true;
                Ask::Cancel(build)
            }
            Stage::Watches(build) => Ask::Watch(build),
            Stage::Cancels(build) => Ask::Cancel(build),
            Stage::Done(_) => return,
        };
        let (turn, node) = (this.turn, this.node % self.nodes.len());
        self.questions.push(Question { client, turn, node });
        let question = u64::try_from(self.questions.len() - 1).expect("a number");
        if self.nodes[node].up && !self.dice.chance(self.options.loss) {
            let delay = self.delay();
            self.after(delay, Event::Question { node, question, ask: Box::new(ask) });
        }
        // Without an answer by then: the next coordinator's turn.
        self.after(PATIENCE_US, Event::Client { client, turn });
    }

    /// A question arrives at a coordinator.
    pub(crate) fn question(&mut self, node: usize, question: u64, ask: Ask) {
        if !self.nodes[node].up {
            return;
        }
        if self.leads(node).is_none() {
            let hint = self.nodes[node].memory.leader.map(|leader| leader.node);
            return self.reply(question, Reply::NotLeader(hint));
        }
        match ask {
            Ask::Submit(submission) => self.submit(node, question, submission),
            Ask::Watch(build) => {
                self.steer(node, build);
                self.watch_build(node, question, build);
            }
            Ask::Cancel(build) => {
                let now = self.stamp(node);
                self.kill_early(node, build);
                self.propose(node, vec![Command::Cancel { build, now }], Then::Client { question, rest: Vec::new() });
            }
        }
    }

    fn submit(&mut self, node: usize, question: u64, submission: Submission) {
        let Some(jobs) = self.select(node, &submission.roots) else { return self.reply(question, Reply::Unavailable) };
        self.fact(&Fact::Submits { submission: &submission });
        self.fact(&Fact::Selected { jobs: &jobs });
        let jobs = self.spoilt(jobs);
        let now = self.stamp(node);
        let Submission { request, name, roots, keep_going, urgency, trace: _, evaluation: _ } = submission;
        let mut commands = Vec::new();
        // Small chunks, so that there are several.
        for chunk in jobs.chunks(3) {
            commands.push(Command::Stage { request, jobs: chunk.to_vec(), now });
        }
        commands.push(Command::Submit { request, name, roots, keep_going, asker: Some(self.mistaken(asker(request, urgency))), now });
        let rest = commands.split_off(1);
        if self.has(Bug::AnswersBeforeCommit) {
            let build = BuildId(self.nodes[node].disk.last().0 + 1 + u64::try_from(rest.len()).expect("few"));
            self.reply(question, Reply::Submitted(build));
        }
        self.propose(node, commands, Then::Client { question, rest });
    }

    /// Returns what must be built; none if the store cannot be asked.
    fn select(&mut self, node: usize, roots: &[Root]) -> Option<Vec<JobSpec>> {
        let mut wanted: BTreeSet<usize> = roots.iter().map(|root| self.graph.place(&root.derivation)).collect();
        let mut jobs: Vec<JobSpec> = Vec::new();
        for place in (0..self.graph.recipes.len()).rev() {
            if !wanted.contains(&place) {
                continue;
            }
            let spec = &self.graph.recipes[place].spec;
            let mut lacks = false;
            for path in spec.outputs.values().flatten() {
                let committed = jobs.is_empty()
                    && self.has(Bug::CommittedCountsAsReadable)
                    && roots.iter().any(|root| root.derivation == spec.derivation)
                    && self.nodes[node].memory.farm.path_info(path).is_some();
                lacks |= !committed && self.store.narinfo(path).ok()?.is_none();
            }
            if self.has(Bug::RunningCountsAsBuilt)
                && !jobs.is_empty()
                && self.nodes[node].memory.farm.live_lease(&spec.derivation).is_some()
            {
                lacks = false;
            }
            if lacks || self.has(Bug::AsksForWhatExists) {
                wanted.extend(spec.inputs.iter().map(|input| self.graph.place(&input.derivation)));
                jobs.push(spec.clone());
            }
        }
        let made: BTreeSet<_> = jobs.iter().map(|job| job.derivation.clone()).collect();
        for job in &mut jobs {
            job.inputs.retain(|input| made.contains(&input.derivation));
        }
        jobs.reverse();
        Some(jobs)
    }

    fn watch_build(&mut self, node: usize, question: u64, build: BuildId) {
        let live = self.nodes[node].memory.farm.build_view(build).map(|view| view.state);
        if let Some(record) = self.bad_luck(node, build) {
            return self.reply(question, Reply::Ended(Box::new(record)));
        }
        let reply = match (live, self.store.archived(build)) {
            (Some(BuildState::Active), _) | (Some(_), Ok(None)) => Reply::Active,
            (_, Ok(Some(record))) => Reply::Ended(Box::new(record.clone())),
            (None, Ok(None)) => Reply::NoBuild,
            (_, Err(_)) => Reply::Unavailable,
        };
        self.reply(question, reply);
    }

    /// A step of a client's request is settled.
    pub(crate) fn submitted(&mut self, node: usize, question: u64, mut rest: Vec<Command>, fate: Fate, answers: Vec<Answer>) {
        let reply = match (fate, answers.into_iter().next()) {
            (Fate::NotLeader | Fate::Unknown | Fate::Busy, _) => Reply::Unavailable,
            (Fate::Applied, Some(Answer::Submitted { build, .. })) => Reply::Submitted(build),
            (Fate::Applied, Some(Answer::Refused(_))) => Reply::Refused,
            (Fate::Applied, None) if !rest.is_empty() => {
                let later = rest.split_off(1);
                return self.propose(node, rest, Then::Client { question, rest: later });
            }
            (Fate::Applied, None) => Reply::Done,
        };
        self.reply(question, reply);
    }

    fn reply(&mut self, question: u64, reply: Reply) {
        if !self.dice.chance(self.options.loss) {
            let delay = self.delay();
            self.after(delay, Event::Answer { question, reply: Box::new(reply) });
        }
    }

    /// An answer arrives at its client.
    pub(crate) fn answer(&mut self, question: u64, reply: &Reply) {
        let Question { client, turn, node } = self.questions[usize::try_from(question).expect("a number")];
        let this = &self.clients[client];
        if this.turn != turn {
            return;
        }
        self.fact(&Fact::Answered { client: this, reply });
        let mut pause = LOOK_US;
        let mut ask_other = None;
        let stage = match (this.stage, reply) {
            (stage, Reply::NotLeader(hint)) => {
                // A hint may be old, so that following each goes in circles.
                let hint = hint.filter(|_| self.dice.chance(500));
                ask_other = Some(hint.map_or(node + 1, |hint| self.node_of(hint)));
                pause = 50_000;
                stage
            }
            (Stage::Submits, Reply::Submitted(build)) => {
                pause = 1_000;
                Stage::Watches(*build)
            }
            (Stage::Submits, Reply::Refused) => Stage::Done(None),
            (Stage::Watches(_) | Stage::Cancels(_), Reply::Ended(record)) => Stage::Done(Some(record.state)),
            (Stage::Cancels(build), Reply::Done | Reply::Refused) => {
                self.clients[client].cancels_at_us = None;
                Stage::Watches(build)
            }
            (stage, _) => stage,
        };
        let this = &mut self.clients[client];
        this.stage = stage;
        this.turn += 1;
        this.asked = false;
        this.node = ask_other.unwrap_or(this.node);
        let turn = this.turn;
        self.after(pause, Event::Client { client, turn });
    }
}
