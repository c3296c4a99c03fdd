//! The shell around the agent: what the agent decides is done here. Attempts are tasks, results go to the journal, logs to disk.
//!
//! Decides nothing about leases (`kiln-agent` does). One task owns it, so that nothing here needs a lock.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_agent::{Action, Agent, StaleLeader};
use kiln_wire::worker::{Assignment, FromWorker, Hello, Offer, Strain, ToWorker};
use kiln_wire::{FailureClass, Lease, Outcome, Usage, WorkerId};
use tokio::sync::{Notify, mpsc};

use crate::attempt::{self, Order};
use crate::attempt_log::AttemptLog;
use crate::failure::{chain, failure};
use crate::journal::{Journal, JournalError};
use crate::session::CHUNK_BYTES;
use crate::stop::Stop;
use crate::workshop::Workshop;

/// Something happened to an attempt.
#[derive(Debug)]
pub enum AttemptEvent {
    /// Its builder runs.
    Started(Lease),
    /// Its builder has exited and its outputs are checked; it only uploads.
    Wound(Lease),
    /// It is over and holds nothing any more.
    Ended(Lease, Outcome),
}

/// The shell of one worker.
pub struct Shell {
    agent: Agent,
    journal: Journal,
    workshop: Arc<Workshop>,
    running: BTreeMap<Lease, Stop>,
    logs: BTreeMap<Lease, SentLog>,
    logs_dir: PathBuf,
    log_changed: Arc<Notify>,
    events: mpsc::UnboundedSender<AttemptEvent>,
    accepting: bool,
}

#[derive(Debug)]
struct SentLog {
    log: Arc<AttemptLog>,
    /// Bytes that the present session was given.
    sent_bytes: u64,
}

impl Shell {
    /// Makes a shell of what the journal holds; `events` gets what becomes of attempts, for [`Shell::take`]. `logs_dir` keeps the
    /// logs of unacknowledged results; the rest there is removed.
    ///
    /// # Errors
    /// What listing the logs gives.
    pub fn new(
        worker: WorkerId,
        offer: Offer,
        journal: Journal,
        logs_dir: PathBuf,
        workshop: Arc<Workshop>,
        events: mpsc::UnboundedSender<AttemptEvent>,
    ) -> io::Result<Self> {
        let log_changed = Arc::new(Notify::new());
        let memory = journal.memory().clone();
        let mut logs = BTreeMap::new();
        let mut kept = Vec::new();
        for (lease, _) in memory.results.values() {
            let path = log_path(&logs_dir, lease);
            logs.insert(lease.clone(), SentLog { log: Arc::new(AttemptLog::reopen(path.clone(), log_changed.clone())), sent_bytes: 0 });
            kept.push(path);
        }
        for entry in std::fs::read_dir(&logs_dir)? {
            let path = entry?.path();
            if !kept.contains(&path) {
                std::fs::remove_file(path)?;
            }
        }
        let agent = Agent::restore(worker, offer, memory.leader_seen, memory.results.into_values().collect());
        let running = BTreeMap::new();
        Ok(Self { agent, journal, workshop, running, logs, logs_dir, log_changed, events, accepting: true })
    }

    /// Returns what opens a session; log bytes are said again from where the welcome will name.
    pub fn hello(&mut self) -> Hello {
        self.logs.values_mut().for_each(|log| log.sent_bytes = 0);
        self.agent.hello()
    }

    /// Takes a message of the coordinator; returns what is to be sent.
    ///
    /// # Errors
    /// [`StaleLeader`] if the coordinator was deposed: the session is of no use.
    pub fn receive(&mut self, message: ToWorker) -> Result<Vec<FromWorker>, StaleLeader> {
        // A worker that is about to stop gives new work back at once. Nothing is kept: after a break its next hello does not name it.
        if let (false, ToWorker::Dispatch(Assignment { lease, .. })) = (self.accepting, &message)
            && self.agent.at_work().all(|known| known != lease)
        {
            let failure = failure(FailureClass::Cancelled, "the worker finishes what it has and takes nothing new");
            return Ok(vec![FromWorker::Finished { lease: lease.clone(), outcome: Outcome::Failed { failure, usage: Usage::default() } }]);
        }
        if let ToWorker::Welcome { log_bytes, .. } = &message {
            self.logs.iter_mut().for_each(|(lease, log)| log.sent_bytes = log_bytes.get(&lease.attempt).copied().unwrap_or(0));
        }
        let actions = self.agent.receive(message);
        self.act(actions)
    }

    /// Takes an event; returns what is to be sent.
    ///
    /// # Errors
    /// As [`Shell::receive`].
    pub fn take(&mut self, event: AttemptEvent) -> Result<Vec<FromWorker>, StaleLeader> {
        let actions = match event {
            AttemptEvent::Started(lease) => self.agent.started(&lease),
            AttemptEvent::Wound(lease) => self.agent.wound(&lease),
            AttemptEvent::Ended(lease, outcome) => {
                let end = match &outcome {
                    Outcome::Built { .. } => "built".to_owned(),
                    Outcome::Failed { failure, .. } => failure.class.to_string(),
                };
                let Lease { derivation, attempt, worker, .. } = &lease;
                let term = self.agent.leader_seen().term;
                tracing::debug!(job = %derivation, attempt = attempt.0, %worker, term, end, "attempt ended");
                self.running.remove(&lease);
                self.agent.ended(&lease, outcome)
            }
        };
        self.act(actions)
    }

    /// Notes whether the machine can take more, and why not; returns what is to be sent.
    ///
    /// # Errors
    /// As [`Shell::receive`].
    pub fn strained(&mut self, strain: Option<Strain>) -> Result<Vec<FromWorker>, StaleLeader> {
        let actions = self.agent.strained(strain);
        self.act(actions)
    }

    /// Notes that there is no session.
    pub fn disconnected(&mut self) {
        self.agent.disconnected();
    }

    /// Whether a leader has welcomed the worker in the present session.
    pub fn is_connected(&self) -> bool {
        self.agent.session().is_some()
    }

    /// Takes no new attempts from here on.
    pub fn stop_accepting(&mut self) {
        self.accepting = false;
    }

    /// Kills every attempt that runs.
    pub fn kill_all(&mut self) {
        self.running.values().for_each(Stop::stop);
    }

    /// Whether attempts run.
    pub fn is_busy(&self) -> bool {
        !self.running.is_empty()
    }

    /// Whether results wait for their acknowledgement.
    pub fn owes_results(&self) -> bool {
        self.agent.unacknowledged().next().is_some()
    }

    /// Waits until some log has grown. Cancel safe.
    pub async fn log_changed(&self) {
        self.log_changed.notified().await;
    }

    /// Returns the next piece of log that the session was not given: of `lease`, or of any attempt.
    pub fn next_log(&mut self, lease: Option<&Lease>) -> Option<FromWorker> {
        match lease {
            Some(lease) => self.logs.get_mut(lease).and_then(|log| log.next(lease)),
            None => self.logs.iter_mut().find_map(|(lease, log)| log.next(lease)),
        }
    }

    fn act(&mut self, actions: Vec<Action>) -> Result<Vec<FromWorker>, StaleLeader> {
        let mut messages = Vec::new();
        for action in actions {
            match action {
                Action::Start(assignment) => {
                    let Lease { derivation, attempt, worker, .. } = &assignment.lease;
                    let (term, leader) = (assignment.leader.term, assignment.leader.node);
                    tracing::debug!(job = %derivation, attempt = attempt.0, %worker, term, %leader, "attempt begins");
                    self.start(*assignment);
                }
                Action::Kill(lease) => {
                    let Lease { derivation, attempt, worker, .. } = &lease;
                    let term = self.agent.leader_seen().term;
                    tracing::debug!(job = %derivation, attempt = attempt.0, %worker, term, "attempt is stopped");
                    if let Some(stop) = self.running.get(&lease) {
                        stop.stop();
                    }
                }
                Action::Send(message) => messages.push(message),
                Action::Keep { lease, outcome } => log_journal(self.journal.finished(&lease, &outcome)),
                Action::Forget(lease) => {
                    log_journal(self.journal.forget(lease.attempt));
                    if let Some(log) = self.logs.remove(&lease) {
                        log.log.remove();
                    }
                }
                Action::Remember(leader) => log_journal(self.journal.leader(leader)),
                Action::Disconnect(stale) => return Err(stale),
            }
        }
        Ok(messages)
    }

    fn start(&mut self, assignment: Assignment) {
        let lease = assignment.lease.clone();
        let log = Arc::new(AttemptLog::new(log_path(&self.logs_dir, &lease), self.log_changed.clone()));
        self.logs.insert(lease.clone(), SentLog { log: log.clone(), sent_bytes: 0 });
        let events = self.events.clone();
        match Stop::new() {
            Ok(stop) => {
                self.running.insert(lease, stop.clone());
                tokio::spawn(attempt::run(self.workshop.clone(), Order { assignment, log, stop, events }));
            }
            Err(err) => {
                let failure = failure(FailureClass::Infrastructure, &format!("start attempt {}: {err}", lease.attempt));
                // Nobody listens any more only when the whole worker ends.
                let _ = events.send(AttemptEvent::Ended(lease, Outcome::Failed { failure, usage: Usage::default() }));
            }
        }
    }
}

impl SentLog {
    fn next(&mut self, lease: &Lease) -> Option<FromWorker> {
        let bytes = match self.log.read(self.sent_bytes, CHUNK_BYTES) {
            Ok(bytes) if bytes.is_empty() => return None,
            Ok(bytes) => bytes,
            Err(err) => {
                let Lease { derivation, attempt, worker, .. } = lease;
                tracing::warn!(job = %derivation, attempt = attempt.0, %worker, %err, "read the log of an attempt; the rest of it is not sent");
                self.sent_bytes = u64::MAX;
                return None;
            }
        };
        let offset_bytes = self.sent_bytes;
        self.sent_bytes += bytes.len() as u64;
        Some(FromWorker::Log { lease: lease.clone(), offset_bytes, bytes })
    }
}

/// A journal that cannot be written costs repeated work after a crash, and nothing while the worker lives.
fn log_journal(written: Result<(), JournalError>) {
    if let Err(err) = written {
        tracing::error!(error = %chain(&err), "the journal cannot be written: a restart of this worker would lose results");
    }
}

fn log_path(dir: &std::path::Path, lease: &Lease) -> PathBuf {
    dir.join(format!("{}.log", lease.attempt))
}
