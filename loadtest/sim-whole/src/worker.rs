//! A worker of the simulation: the real agent, the real scouts, sessions and uploads over real links. Only the building is pretended: it
//! takes its time and makes what it must.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_agent::{Action, Agent};
use kiln_link::{Connection, Dialer, Identity, LinkError};
use kiln_route::{Found, Pause, Scouts};
use kiln_wire::client::{RefusalKind, Request, Response};
use kiln_wire::limits::HEARTBEAT_MS;
use kiln_wire::worker::{Assignment, FromWorker, Offer, ToWorker};
use kiln_wire::{AttemptId, Failure, FailureClass, Leader, Lease, Outcome, Resources, Usage, WorkerId};
use tokio::sync::{mpsc, watch};

use crate::bug::Bug;
use crate::pace::Pace;
use crate::work::{self, Graph, Job};

/// What a worker's disk holds: it outlives a crash.
#[derive(Clone, Debug, Default)]
pub struct Journal(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    leader_seen: Leader,
    results: BTreeMap<AttemptId, (Lease, Outcome)>,
}

/// What the checks know of all workers.
#[derive(Clone, Debug, Default)]
pub struct Sightings(Arc<Mutex<Vec<Sighting>>>);

/// Something a worker did.
#[derive(Clone, Debug)]
pub enum Sighting {
    /// It began an attempt on behalf of a leader.
    Began { lease: Lease, leader: Leader, seen: Leader },
}

impl Sightings {
    pub fn note(&self, sighting: Sighting) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(sighting);
    }

    pub fn all(&self) -> Vec<Sighting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Everything a worker is made of.
#[derive(Clone)]
pub struct Worker {
    pub name: String,
    pub identity: Identity,
    pub coordinators: Vec<String>,
    pub graph: Graph,
    pub journal: Journal,
    pub sightings: Sightings,
    pub pace: Pace,
}

struct Life {
    worker: Worker,
    agent: Agent,
    running: BTreeMap<Lease, tokio::task::AbortHandle>,
    ended: mpsc::UnboundedSender<(Lease, Outcome)>,
    uplink: watch::Sender<Option<Connection>>,
    /// What it was last told to begin.
    last: Option<Assignment>,
}

impl Worker {
    /// Works until the host crashes.
    pub async fn run(self) -> turmoil::Result {
        let mut scouts = Scouts::start(Dialer::new(&self.identity)?, self.coordinators.clone());
        let (ended, mut events) = mpsc::unbounded_channel();
        let (uplink, _) = watch::channel(None);
        let agent = self.journal.restore(WorkerId::parse(&self.name)?);
        let mut life = Life { worker: self, agent, running: BTreeMap::new(), ended, uplink, last: None };
        let mut pause = Pause::new(Duration::from_millis(20), Duration::from_secs(2));
        loop {
            let found = tokio::select! {
                found = scouts.leader() => found,
                Some((lease, outcome)) = events.recv() => {
                    let actions = life.agent.ended(&lease, outcome);
                    let _ = life.act(actions);
                    continue;
                }
            };
            let end = life.session(&mut scouts, &found, &mut events, &mut pause).await;
            tracing::info!(worker = life.worker.name, ?end, "session ended");
            life.agent.disconnected();
            life.uplink.send_replace(None);
            found.connection.close("the session has ended");
            pause.wait().await;
        }
    }
}

impl Life {
    async fn session(
        &mut self,
        scouts: &mut Scouts,
        found: &Found,
        events: &mut mpsc::UnboundedReceiver<(Lease, Outcome)>,
        pause: &mut Pause,
    ) -> Result<(), LinkError> {
        let (mut sender, mut receiver) = found.connection.open().await?;
        sender.send(&Request::Session).await?;
        sender.send(&FromWorker::Hello(self.agent.hello())).await?;
        let mut heartbeat = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
        loop {
            let actions = tokio::select! {
                message = receiver.recv::<ToWorker>() => match message? {
                    None | Some(ToWorker::NotLeader(_)) => return Ok(()),
                    Some(message) => {
                        if matches!(message, ToWorker::Welcome { .. }) {
                            pause.reset();
                            self.uplink.send_replace(Some(found.connection.clone()));
                        }
                        let was_welcomed = matches!(message, ToWorker::Welcome { .. });
                        let actions = self.agent.receive(message);
                        if was_welcomed && Bug::ObeysTheDeposed.is_planted() {
                            self.obey_the_deposed();
                        }
                        actions
                    }
                },
                Some((lease, outcome)) = events.recv() => self.agent.ended(&lease, outcome),
                () = scouts.superseded(found.leader) => return Ok(()),
                _ = heartbeat.tick() => vec![Action::Send(FromWorker::Heartbeat)],
            };
            self.worker.pace.wait().await;
            let (messages, is_stale) = self.act(actions);
            for message in messages {
                sender.send(&message).await?;
            }
            if is_stale {
                return Ok(());
            }
        }
    }

    /// Returns what is to be said, and whether the leader was deposed.
    fn act(&mut self, actions: Vec<Action>) -> (Vec<FromWorker>, bool) {
        let mut messages = Vec::new();
        let mut is_stale = false;
        for action in actions {
            match action {
                Action::Start(assignment) => self.start(*assignment, &mut messages),
                Action::Kill(lease) => {
                    if let Some(attempt) = self.running.remove(&lease) {
                        attempt.abort();
                    }
                    let failure = Failure { class: FailureClass::Cancelled, message: "killed".into() };
                    let _ = self.ended.send((lease, Outcome::Failed { failure, usage: Usage::default() }));
                }
                Action::Send(message) => messages.push(message),
                Action::Keep { lease, outcome } => self.worker.journal.keep(lease, outcome),
                Action::Forget(lease) => self.worker.journal.forget(lease.attempt),
                Action::Remember(leader) => self.worker.journal.remember(leader),
                Action::Disconnect(_) => is_stale = true,
            }
        }
        (messages, is_stale)
    }

    fn start(&mut self, assignment: Assignment, messages: &mut Vec<FromWorker>) {
        self.last = Some(assignment.clone());
        self.begin(assignment.lease.clone(), assignment.leader, messages);
        if Bug::BeginsEarly.is_planted() {
            let needed = assignment.lease.derivation.as_str();
            let early = self.worker.graph.jobs.iter().find(|(_, job)| String::from_utf8_lossy(&job.file.bytes).contains(needed));
            let early = early.map(|(path, _)| Lease { derivation: path.clone(), ..assignment.lease.clone() });
            early.into_iter().for_each(|lease| self.begin(lease, assignment.leader, messages));
        }
    }

    fn obey_the_deposed(&mut self) {
        if let Some(last) = self.last.take().filter(|last| last.leader < self.agent.leader_seen()) {
            self.begin(last.lease, last.leader, &mut Vec::new());
        }
    }

    fn begin(&mut self, lease: Lease, leader: Leader, messages: &mut Vec<FromWorker>) {
        tracing::info!(worker = self.worker.name, attempt = lease.attempt.0, derivation = %lease.derivation, "begins");
        self.worker.sightings.note(Sighting::Began { lease: lease.clone(), leader, seen: self.agent.leader_seen() });
        let mut job = self.worker.graph.jobs[&lease.derivation].clone();
        job.build_ms += self.worker.pace.longer().as_millis() as u64;
        if Bug::BuildsAnother.is_planted() {
            (job.output, job.blob) = work::built(&lease.derivation, job.output.info.path.clone(), b"another");
        }
        messages.push(FromWorker::Log { lease: lease.clone(), offset_bytes: 0, bytes: b"begun\n".to_vec() });
        let attempt = build(job, lease.clone(), self.uplink.subscribe(), self.ended.clone());
        self.running.insert(lease, tokio::spawn(attempt).abort_handle());
    }
}

/// Builds, uploads until the farm has the output, reports.
async fn build(job: Job, lease: Lease, mut uplink: watch::Receiver<Option<Connection>>, ended: mpsc::UnboundedSender<(Lease, Outcome)>) {
    tokio::time::sleep(Duration::from_millis(job.build_ms)).await;
    let usage = Usage { wall_ms: job.build_ms, ..Usage::default() };
    if Bug::ReportsNothing.is_planted() {
        return;
    }
    let planted = [(Bug::Fails, FailureClass::BuildFailure), (Bug::BlamesTheMachine, FailureClass::Infrastructure)];
    if let Some((_, class)) = planted.into_iter().find(|(bug, _)| bug.is_planted()) {
        let failure = Failure { class, message: "planted".into() };
        let _ = ended.send((lease, Outcome::Failed { failure, usage }));
        return;
    }
    let mut pause = Pause::new(Duration::from_millis(50), Duration::from_secs(2));
    loop {
        let Ok(connection) = uplink.wait_for(Option::is_some).await.map(|live| live.clone()) else { return };
        match upload(&connection.expect("waited for"), &lease, &job).await {
            Ok(true) => break,
            // Nobody wants it any more; the agent is told so by the leader.
            Ok(false) => {}
            Err(_) => {}
        }
        pause.wait().await;
    }
    let _ = ended.send((lease, Outcome::Built { outputs: vec![job.output], usage }));
}

/// Returns whether the farm has the output.
async fn upload(connection: &Connection, lease: &Lease, job: &Job) -> Result<bool, LinkError> {
    let (mut sender, mut receiver) = connection.open().await?;
    sender.send(&Request::Upload { lease: lease.clone(), output: job.output.clone() }).await?;
    sender.send_blob(job.blob.clone(), job.output.info.blob.size_bytes, 0).await?;
    loop {
        match receiver.recv::<Response>().await? {
            Some(Response::UploadAt(_)) => {}
            Some(Response::Stored) => return Ok(true),
            Some(Response::Refused(refusal)) if refusal.kind == RefusalKind::StaleLease => return Ok(false),
            Some(_) | None => return Ok(false),
        }
    }
}

impl Journal {
    fn restore(&self, worker: WorkerId) -> Agent {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let offer = Offer {
            systems: ["x86_64-linux".to_owned()].into(),
            features: Default::default(),
            capacity: Resources { cores: 2, memory_mib: 4096 },
            slots: 2,
            guarantees: Default::default(),
            ..Offer::default()
        };
        Agent::restore(worker, offer, kept.leader_seen, kept.results.values().cloned().collect())
    }

    fn keep(&self, lease: Lease, outcome: Outcome) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).results.insert(lease.attempt, (lease, outcome));
    }

    fn forget(&self, attempt: AttemptId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).results.remove(&attempt);
    }

    fn remember(&self, leader: Leader) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.leader_seen = kept.leader_seen.max(leader);
    }
}
