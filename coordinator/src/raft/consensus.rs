//! The handle that the rest of the coordinator holds. Works from any runtime; raft itself runs on a thread of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use kiln_core::{Command, Farm};
use kiln_wire::{LogIndex, NodeId};
use openraft::errors::ClientWriteError;
use tokio::sync::{mpsc, oneshot, watch};

use super::api::{Applied, ConsensusConfig, ConsensusError, ConsensusMetrics, EffectReceiver, Leadership, PROPOSALS_IN_FLIGHT_MAX};
use super::latency::Recorder;
use super::node::{self, Progress, Proposed};
use super::state_machine::StateMachine;
use super::types::{Answers, Change, Responder, TypeConfig};
use super::wal::WalStats;

/// A running member of the farm's consensus. Clones are handles of the same member; it stops when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Consensus {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    proposals: mpsc::UnboundedSender<Vec<Proposed>>,
    machine: StateMachine,
    leadership: watch::Receiver<Leadership>,
    progress: watch::Receiver<Progress>,
    log: Arc<WalStats>,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<bool>,
    in_flight: AtomicU64,
    commit: Recorder,
}

/// A proposal under way. Dropping it does not take the proposal back.
#[derive(Debug)]
#[must_use = "a proposal's fate is known only to whoever waits for it"]
pub struct Pending {
    answers: Vec<Answers>,
    since: Instant,
    slot: Slot,
}

/// One of the proposals in flight.
#[derive(Debug)]
struct Slot(Arc<Inner>);

impl Consensus {
    /// Opens or makes the directory, recovers log and snapshot, and returns once this node leads and has applied everything that
    /// was committed. A fresh directory becomes a farm with this node as its only voter.
    ///
    /// # Errors
    /// [`ConsensusError`] if the directory is in use, belongs to another node, or holds a damaged log or snapshot.
    pub async fn start(config: ConsensusConfig) -> Result<(Self, EffectReceiver), ConsensusError> {
        let dir = config.dir.clone();
        let (started, ready) = oneshot::channel();
        let (proposals, inbox) = mpsc::unbounded_channel();
        let (stop, stopping) = watch::channel(false);
        let (ending, ended) = watch::channel(false);
        let run = move || {
            node::run(&config, started, inbox, stopping);
            ending.send_replace(true);
        };
        let spawned = std::thread::Builder::new().name("raft".into()).spawn(run);
        spawned.map_err(|err| ConsensusError::Open { path: dir, err })?;
        let ended_early = |_| ConsensusError::Stopped { reason: "its thread ended while starting".into() };
        let started = ready.await.map_err(ended_early)??;
        let inner = Inner {
            proposals,
            machine: started.machine,
            leadership: started.leadership,
            progress: started.progress,
            log: started.log,
            stop,
            ended,
            in_flight: AtomicU64::new(0),
            commit: Recorder::default(),
        };
        Ok((Self { inner: Arc::new(inner) }, started.effects))
    }

    /// Proposes commands and waits until all are durable on a quorum and applied here. Each becomes one log entry, in order and
    /// without another proposal's between them; they need not be applied all if leadership is lost in their midst.
    ///
    /// # Errors
    /// [`ConsensusError::NotLeader`] if this node does not lead, [`ConsensusError::Unknown`] if it lost leadership meanwhile,
    /// [`ConsensusError::Busy`], [`ConsensusError::Stopped`], [`ConsensusError::Empty`].
    pub async fn propose(&self, commands: Vec<Command>) -> Result<Applied, ConsensusError> {
        self.propose_nowait(commands)?.applied().await
    }

    /// Proposes commands without waiting. Proposals are written in the order of the calls; what is proposed while the disk writes
    /// goes into one write together, so that batches are of size 1 when idle and grow under load.
    ///
    /// # Errors
    /// [`ConsensusError::Busy`], [`ConsensusError::Stopped`] or [`ConsensusError::Empty`].
    pub fn propose_nowait(&self, commands: Vec<Command>) -> Result<Pending, ConsensusError> {
        if commands.is_empty() {
            return Err(ConsensusError::Empty);
        }
        let in_flight = self.inner.in_flight.fetch_add(1, Ordering::Relaxed);
        let slot = Slot(Arc::clone(&self.inner));
        if in_flight >= PROPOSALS_IN_FLIGHT_MAX {
            return Err(ConsensusError::Busy);
        }
        let since = Instant::now();
        let (proposed, answers) = commands.into_iter().map(propose_one).unzip();
        self.inner.proposals.send(proposed).map_err(|_| self.inner.stopped())?;
        Ok(Pending { answers, since, slot })
    }

    /// Looks at the farm. Nothing is applied meanwhile: `look` must be short and must not propose or block.
    pub fn read<R>(&self, look: impl FnOnce(&Farm) -> R) -> R {
        look(&self.inner.machine.state().farm)
    }

    /// Returns who leads, and tells of every change. When it says that this node leads, everything of earlier terms is applied.
    /// Before any leader is known its term is 0.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// Waits until consensus has stopped and says why. A failed disk stops it: the process must end then, not try again.
    pub async fn stopped(&self) -> ConsensusError {
        // Its sender lives as long as the thread; an error says the same as `true`.
        let _ = self.inner.ended.clone().wait_for(|ended| *ended).await;
        self.inner.stopped()
    }

    /// Stops, and returns once everything written is durable and the directory is free. Proposals in flight may or may not be
    /// committed. Every other handle fails from then on, except for reads of the farm as it was.
    pub async fn shutdown(&self) {
        self.inner.stop.send_replace(true);
        let _ = self.inner.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Returns figures for `/metrics`.
    pub fn metrics(&self) -> ConsensusMetrics {
        let progress = self.inner.progress.borrow().clone();
        ConsensusMetrics {
            term: progress.term,
            last_log_index: LogIndex(progress.last_log),
            applied_index: LogIndex(self.inner.machine.state().last.map_or(0, |last| last.index)),
            snapshot_index: LogIndex(progress.snapshot),
            log_bytes: self.inner.log.bytes.load(Ordering::Relaxed),
            log_segments: self.inner.log.segments.load(Ordering::Relaxed),
            proposals_in_flight: self.inner.in_flight.load(Ordering::Relaxed),
            commit: self.inner.commit.read(),
            sync: self.inner.log.sync.read(),
        }
    }
}

impl Pending {
    /// Waits for the proposal's fate.
    ///
    /// # Errors
    /// As [`Consensus::propose`].
    pub async fn applied(self) -> Result<Applied, ConsensusError> {
        let inner = &self.slot.0;
        let mut applied = Applied { index: LogIndex(0), answers: Vec::new() };
        for answer in self.answers {
            let mut response = answer.await.map_err(|_| inner.stopped())?.map_err(refused)?;
            applied.index = LogIndex(response.log_id.index);
            applied.answers.append(&mut response.data);
        }
        inner.commit.record(self.since.elapsed());
        Ok(applied)
    }
}

impl Inner {
    fn stopped(&self) -> ConsensusError {
        let reason = self.progress.borrow().failed.clone().unwrap_or_else(|| "it was shut down".into());
        ConsensusError::Stopped { reason }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

fn propose_one(command: Command) -> (Proposed, Answers) {
    let (responder, answer) = Responder::complete_only();
    (Proposed { change: Change(command), responder }, answer)
}

fn refused(err: ClientWriteError<TypeConfig>) -> ConsensusError {
    match err {
        ClientWriteError::ForwardToLeader(to) => ConsensusError::NotLeader { leader: to.leader_id.map(NodeId) },
        ClientWriteError::LogEntryDiscarded(_) => ConsensusError::Unknown,
        // Asked for by changes of membership and by guarded writes only, neither of which is proposed here.
        ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_) => ConsensusError::Unknown,
    }
}
