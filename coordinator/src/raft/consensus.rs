//! The handle that the rest of the coordinator holds. Works from any runtime; raft itself runs on a thread of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kiln_core::{Command, Farm};
use kiln_link::Connection;
use kiln_wire::{Leader, LogIndex, NodeId, Program, Version};
use tokio::sync::{mpsc, oneshot, watch};

use super::api::{
    Applied, ConsensusConfig, ConsensusError, ConsensusMetrics, EffectReceiver, Leadership, PROPOSALS_IN_FLIGHT_MAX, Standing,
};
use super::cluster::{ClusterError, Order, Ordered};
use super::feed::Proposed;
use super::follow::Progress;
use super::happened::Happened;
use super::latency::Recorder;
use super::member::Member;
use super::node::{self, Inbox};
use super::state_machine::StateMachine;
use super::wal::{Room, WalStats};
use crate::history::History;
use crate::tally::Tally;

/// A running member of the farm's consensus. Clones are handles of the same member; it stops when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Consensus {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    node: NodeId,
    program: Program,
    proposals: mpsc::UnboundedSender<Proposed>,
    connections: mpsc::UnboundedSender<Connection>,
    orders: mpsc::UnboundedSender<Ordered>,
    machine: StateMachine,
    leadership: watch::Receiver<Leadership>,
    progress: watch::Receiver<Progress>,
    heard: watch::Receiver<Option<tokio::time::Instant>>,
    /// How long a leader may say nothing before it counts as gone: twice the longest election wait.
    silence_max: Duration,
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
    settled: oneshot::Receiver<Result<Applied, ConsensusError>>,
    leader: Leader,
    since: Instant,
    slot: Slot,
}

/// One of the proposals in flight.
#[derive(Debug)]
struct Slot(Arc<Inner>);

impl Consensus {
    /// Opens or makes the directory and recovers log and snapshot. A group of one is returned once this node leads it and has
    /// applied everything that was committed; a member of a larger one, or one that waits to be added to one, at once. A fresh
    /// directory becomes a group with this node as its only voter, unless the configuration says that it joins one.
    ///
    /// # Errors
    /// [`ConsensusError`] if the directory is in use, belongs to another node, or holds a damaged log or snapshot.
    pub async fn start(config: ConsensusConfig) -> Result<(Self, EffectReceiver), ConsensusError> {
        let (node, program) = (config.node, config.program.clone());
        let silence_max = Duration::from_millis(2 * config.election_ms[1]);
        let (started, ready) = oneshot::channel();
        let (proposals, proposed) = mpsc::unbounded_channel();
        let (connections, connected) = mpsc::unbounded_channel();
        let (orders, ordered) = mpsc::unbounded_channel();
        let (stop, stopping) = watch::channel(false);
        let (ending, ended) = watch::channel(false);
        let inbox = Inbox { proposals: proposed, connections: connected, orders: ordered, stop: stopping };
        #[cfg(feature = "simulation")]
        tokio::task::spawn_local(async move {
            node::run(config, started, inbox).await;
            ending.send_replace(true);
        });
        #[cfg(not(feature = "simulation"))]
        {
            let dir = config.dir.clone();
            let run = move || {
                node::run(&config, started, inbox);
                ending.send_replace(true);
            };
            let spawned = std::thread::Builder::new().name("raft".into()).spawn(run);
            spawned.map_err(|err| ConsensusError::Open { path: dir, err })?;
        }
        let ended_early = |_| ConsensusError::Stopped { reason: "its thread ended while starting".into() };
        let started = ready.await.map_err(ended_early)??;
        let inner = Inner {
            node,
            program,
            proposals,
            connections,
            orders,
            machine: started.machine,
            leadership: started.leadership,
            progress: started.progress,
            heard: started.heard,
            silence_max,
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
    /// goes into one write together, so that batches are of size 1 when idle and grow under load. They are written under the
    /// leadership that is known now or not at all; should another begin in the very moment, their fate is [`ConsensusError::Unknown`].
    ///
    /// # Errors
    /// [`ConsensusError::NotLeader`], [`ConsensusError::Busy`], [`ConsensusError::Stopped`] or [`ConsensusError::Empty`].
    pub fn propose_nowait(&self, commands: Vec<Command>) -> Result<Pending, ConsensusError> {
        if commands.is_empty() {
            return Err(ConsensusError::Empty);
        }
        self.inner.leads()?;
        let slot = self.slot().ok_or(ConsensusError::Busy)?;
        self.propose_in(slot, commands)
    }

    /// As [`Consensus::propose`], of what must not be forgotten while this node leads: a queue that is full is waited for.
    ///
    /// # Errors
    /// As [`Consensus::propose`], but for [`ConsensusError::Busy`].
    pub async fn propose_patiently(&self, commands: Vec<Command>) -> Result<Applied, ConsensusError> {
        if commands.is_empty() {
            return Err(ConsensusError::Empty);
        }
        let slot = loop {
            self.inner.leads()?;
            match self.slot() {
                Some(slot) => break slot,
                None => tokio::time::sleep(BUSY_PAUSE).await,
            }
        };
        self.propose_in(slot, commands)?.applied().await
    }

    fn slot(&self) -> Option<Slot> {
        let in_flight = self.inner.in_flight.fetch_add(1, Ordering::Relaxed);
        let slot = Slot(Arc::clone(&self.inner));
        (in_flight < PROPOSALS_IN_FLIGHT_MAX).then_some(slot)
    }

    fn propose_in(&self, slot: Slot, commands: Vec<Command>) -> Result<Pending, ConsensusError> {
        let leader = self.inner.leads()?;
        let since = Instant::now();
        let (settle, settled) = oneshot::channel();
        self.inner.proposals.send(Proposed { leader, commands, settled: settle }).map_err(|_| self.inner.stopped())?;
        Ok(Pending { settled, leader, since, slot })
    }

    /// Looks at the farm. Nothing is applied meanwhile: `look` must be short and must not propose or block.
    pub fn read<R>(&self, look: impl FnOnce(&Farm) -> R) -> R {
        look(&self.inner.machine.state().farm)
    }

    /// Returns where it is heard what entries do that are applied here, whoever leads; the first who asks has it.
    pub fn heard(&self) -> Option<mpsc::Receiver<Happened>> {
        self.inner.machine.heard()
    }

    /// Returns the same once more, for traces.
    pub fn heard_for_traces(&self) -> Option<mpsc::Receiver<Happened>> {
        self.inner.machine.heard_for_traces()
    }

    /// Returns who leads, and tells of every change. When it says that this node leads, everything of earlier terms is applied.
    /// Before any leader is known its term is 0.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// Returns the leadership of this node if it leads at this moment: what it reads of the farm then is what everybody was told. A
    /// process that was stopped for a while finds here that its time has run out, before anything else has told it.
    pub fn leads(&self) -> Option<Leader> {
        let Leadership { leader, is_self } = *self.inner.leadership.borrow();
        let is_current = is_self && self.inner.progress.borrow().leads_until.is_some_and(|until| Instant::now() < until.into_std());
        is_current.then_some(leader)
    }

    /// Returns who leads in this term and where it listens, if anybody is known to.
    pub fn leader(&self) -> Option<(Leader, Member)> {
        let progress = self.inner.progress.borrow();
        let node = progress.leader?;
        Some((Leader { term: progress.term, node }, progress.members.get(&node)?.clone()))
    }

    /// Returns whether somebody leads, for all that this node knows: itself, or whoever has spoken to it lately. A node that stands for
    /// election does not forget who led before, for it asks beforehand whether it would be elected.
    pub fn is_led(&self) -> bool {
        match self.leader() {
            None => false,
            Some((leader, _)) if leader.node == self.inner.node => self.leads().is_some(),
            Some(_) => self.inner.heard.borrow().is_some_and(|heard| heard.elapsed() < self.inner.silence_max),
        }
    }

    /// Returns the members of the group; of a coordinator that waits to be added to one, none.
    pub fn members(&self) -> Vec<Standing> {
        let progress = self.inner.progress.borrow();
        let leads = progress.leader == Some(self.inner.node);
        let of = |(node, member): (&NodeId, &Member)| {
            let is_self = *node == self.inner.node;
            let silent = || Some(u64::try_from(progress.silence(*node)?.as_millis()).unwrap_or(u64::MAX));
            Standing {
                node: *node,
                member: member.clone(),
                votes: progress.voters.contains(node),
                matched: if leads && is_self { Some(progress.last_log) } else { progress.matched.get(node).copied() }.map(LogIndex),
                silent_ms: if leads && is_self { Some(0) } else { silent() },
            }
        };
        progress.members.iter().map(of).collect()
    }

    /// Returns what keeps this coordinator from taking part in full, in words.
    pub fn trouble(&self) -> Option<String> {
        match *self.inner.log.room.borrow() {
            Room::Enough => None,
            Room::Short => Some("the disk is full: there is no room for the log's next segment, so this coordinator does not lead".into()),
            Room::None => Some("the disk is full: the log cannot be written, so this coordinator takes no part until there is room".into()),
        }
    }

    /// Returns what was told lately of attempts.
    pub fn history(&self) -> &History {
        self.inner.machine.history()
    }

    /// Returns the last entry that the disk held when this process began: what comes up to it was applied before, or is of others' making.
    pub fn held_at_start(&self) -> LogIndex {
        self.inner.machine.held_at_start()
    }

    /// Returns what applied entries did, counted.
    pub fn tally(&self) -> &Tally {
        self.inner.machine.tally()
    }

    /// Returns the farm's state machine.
    pub(super) fn machine(&self) -> &StateMachine {
        &self.inner.machine
    }

    /// Returns this coordinator's number.
    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    /// Returns what this coordinator says that it speaks.
    pub fn program(&self) -> &Program {
        &self.inner.program
    }

    /// Returns the version that the farm is at, as far as its log is applied here. What only a later one has must not be proposed.
    pub fn version(&self) -> Version {
        self.inner.machine.state().version
    }

    /// Answers another coordinator on a connection that speaks of consensus.
    pub fn serve(&self, connection: Connection) {
        // Once consensus has stopped there is nobody to answer: the connection ends.
        let _ = self.inner.connections.send(connection);
    }

    /// Takes a coordinator into the group, as a learner first; or notes that a member listens somewhere else.
    ///
    /// # Errors
    /// [`ClusterError`] says why not.
    pub async fn add(&self, node: NodeId, link: String) -> Result<(), ClusterError> {
        self.order(Order::Add { node, link }).await
    }

    /// Lets a coordinator go for good: its number is never used again.
    ///
    /// # Errors
    /// [`ClusterError`] says why not.
    pub async fn remove(&self, node: NodeId) -> Result<(), ClusterError> {
        self.order(Order::Remove { node }).await
    }

    /// Has another voter lead: the one named, or whoever is most in step.
    ///
    /// # Errors
    /// [`ClusterError`] says why not.
    pub async fn hand_over(&self, to: Option<NodeId>) -> Result<(), ClusterError> {
        self.order(Order::HandOver { to }).await
    }

    async fn order(&self, order: Order) -> Result<(), ClusterError> {
        let (done, outcome) = oneshot::channel();
        self.inner.orders.send(Ordered { order, done }).map_err(|_| ClusterError::Stopped)?;
        outcome.await.unwrap_or(Err(ClusterError::Stopped))
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
        let mut leadership = inner.leadership.clone();
        let settled = tokio::select! {
            biased;
            settled = self.settled => settled.map_err(|_| inner.stopped())?,
            // A leader that hears no quorum may wait for ever, while others commit it or throw it away.
            Ok(_) = leadership.wait_for(|known| !known.is_self || known.leader != self.leader) => return Err(ConsensusError::Unknown),
        };
        match settled {
            Ok(applied) => {
                inner.commit.record(self.since.elapsed());
                Ok(applied)
            }
            Err(err) => {
                // Raft knows a moment before it is told to all that this node leads no more. Who hears it from here must find it so.
                let lost = leadership.wait_for(|known| !known.is_self || known.leader != self.leader);
                let _told_or_leads_again = tokio::time::timeout(TELL_MAX, lost).await;
                Err(err)
            }
        }
    }
}

impl Inner {
    /// Returns the leadership of this node.
    fn leads(&self) -> Result<Leader, ConsensusError> {
        let Leadership { leader, is_self } = *self.leadership.borrow();
        match is_self {
            true => Ok(leader),
            false if *self.ended.borrow() => Err(self.stopped()),
            false => Err(self.not_leader()),
        }
    }

    fn not_leader(&self) -> ConsensusError {
        ConsensusError::NotLeader { leader: self.progress.borrow().leader }
    }

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

/// How long a proposal waits that found the queue full.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// Longest wait until a loss of leadership that raft knows of is told.
const TELL_MAX: Duration = Duration::from_secs(1);
