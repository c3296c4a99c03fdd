//! One coordinator: what its disk keeps, and what its process knows until it crashes.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::{Answer, Contacts, Farm, Lead, StampClock, Steady};
use kiln_wire::{AttemptId, BuiltOutput, DrvPath, Leader, NodeId, Timestamp, WorkerId};

use crate::log::Disk;

/// A coordinator.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub id: NodeId,
    pub up: bool,
    /// It never became a voter and never comes back.
    pub gone: bool,
    /// Counts its processes: what was meant for an earlier one is not for this one.
    pub life: u32,
    pub disk: Disk,
    pub memory: Memory,
    /// How far its wall clock is ahead of the world's, in milliseconds.
    pub wall_ahead_ms: i64,
    /// How fast its clocks run, in thousandths of the world's.
    pub rate: u64,
    /// Its disk needs up to so many microseconds for a sync.
    pub sync_us_max: u64,
}

/// What a process knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    pub started_us: u64,
    /// The last entry that is known to be committed.
    pub commit: u64,
    pub farm: Farm,
    /// The last entry that the farm has seen.
    pub applied: u64,
    /// When it last heard of a leader.
    pub heard_us: u64,
    /// The leader that it heard of.
    pub leader: Option<Leader>,
    /// When the last was sent that it heard of that leader.
    pub acked_us: u64,
    pub leading: Option<Leading>,
    pub lead: Lead,
    pub contacts: Contacts,
    pub stamps: StampClock,
    /// Proposals of leases whose fate is open.
    pub leases_open: u64,
    /// The number of the next look at deadlines; an earlier one is void.
    pub wake: u64,
    /// When that look comes.
    pub wake_at_us: u64,
    /// When the last one that was asked for is due; not before.
    pub wake_due_us: u64,
    /// Outputs of running attempts whose bytes it checked when they were uploaded.
    pub verified: BTreeMap<(DrvPath, AttemptId), Vec<BuiltOutput>>,
    /// The last entry that is known to be the leader's as well.
    pub agreed: u64,
}

/// What a leader knows of its followers and its proposals.
#[derive(Clone, Debug)]
pub(crate) struct Leading {
    pub leader: Leader,
    /// Its first entry: once that is applied, everything of earlier terms is.
    pub blank: u64,
    pub followers: BTreeMap<NodeId, Follower>,
    /// Proposals whose fate is open, by their last entry.
    pub waiting: BTreeMap<u64, Waiting>,
}

/// What a leader knows of one follower.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Follower {
    pub next: u64,
    pub matched: u64,
    pub heard_us: u64,
    /// When the last was sent that it is known to have heard.
    pub acked_us: u64,
}

/// A proposal whose fate is open.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub first: u64,
    pub answers: Vec<Answer>,
    pub then: Then,
}

/// Who wants to know what became of a proposal.
#[derive(Clone, Debug)]
pub(crate) enum Then {
    Nobody,
    Leases(Leader),
    Deadlines(Leader),
    /// To be proposed again if the queue was full.
    Again(kiln_core::Command),
    /// A step of a client's request; what follows it, and the question.
    Client {
        question: u64,
        rest: Vec<kiln_core::Command>,
    },
}

/// What became of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Applied,
    /// It never entered a log.
    NotLeader,
    /// Leadership changed meanwhile.
    Unknown,
    /// The queue is full.
    Busy,
}

impl Memory {
    /// Returns the registered workers that hear nothing of this leader, or want nothing new.
    pub fn away(&self) -> BTreeSet<WorkerId> {
        let registered = self.farm.registrations().map(|(worker, _)| worker);
        registered.filter(|worker| !self.contacts.takes_jobs(worker)).cloned().collect()
    }
}

impl Node {
    /// Returns the moment by its own clock.
    pub fn steady(&self, now_us: u64) -> Steady {
        Steady((now_us - self.memory.started_us) * self.rate / 1_000_000)
    }

    /// Returns the stamp for a command.
    pub fn stamp(&mut self, now_us: u64) -> Timestamp {
        let wall = (EPOCH_MS + now_us / 1000).saturating_add_signed(self.wall_ahead_ms);
        let steady = self.steady(now_us);
        self.memory.stamps.now(Timestamp(wall), steady)
    }

    /// Returns its leadership once everything of earlier terms is applied.
    pub fn leadership(&self) -> Option<Leader> {
        let leading = self.memory.leading.as_ref().filter(|_| self.up)?;
        (self.memory.applied >= leading.blank).then_some(leading.leader)
    }
}

/// Returns the moment of the run at which a command was proposed, where clocks neither drift nor jump.
pub(crate) fn proposed_us(command: &kiln_core::Command) -> u64 {
    command.now().0.saturating_sub(EPOCH_MS) * 1000
}

/// The world's wall clock at the start of a run.
pub(crate) const EPOCH_MS: u64 = 1_800_000_000_000;
