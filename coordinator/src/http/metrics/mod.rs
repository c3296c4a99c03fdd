//! The farm in numbers, as Prometheus reads them. Rendered from a snapshot at scrape time: nothing is counted twice.
//!
//! Names and units are those of Prometheus' conventions. Labels have few values: those that come from submissions are bounded by
//! [`crate::kinds`], and nothing is labelled by job, build, tenant or worker.

mod answers;
mod page;
mod recent;
mod render;

use std::collections::BTreeMap;

use kiln_wire::client::JobCounts;

pub use self::answers::{Answers, AnswersSeen};
pub use self::recent::Recent;
use crate::kinds::QueueLine;
use crate::process::{Disk, Process};
use crate::raft::Latencies;
use crate::tally::Counted;

/// The farm in numbers, at one moment. Counts are of this process, from its start on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Jobs of live builds, by state.
    pub jobs: JobCounts,
    /// Ready jobs, by system, features and why they wait.
    pub queue: BTreeMap<QueueLine, u64>,
    /// Ready jobs that no worker of the farm, connected or not, could ever run.
    pub jobs_unplaceable: u64,
    /// Attempts that run, by system.
    pub running: BTreeMap<String, u64>,
    /// Builds that have not ended.
    pub builds_active: u64,
    /// What applied entries did.
    pub counted: Counted,
    /// The workers.
    pub fleet: Fleet,
    /// Plans made.
    pub plans: u64,
    /// Time spent planning, in microseconds.
    pub plan_us: u64,
    /// Bytes of build logs that workers sent.
    pub log_bytes: u64,
    /// When the last backup was taken from this coordinator, in milliseconds since 1970; 0 if none ever was.
    pub backed_up_at_ms: u64,
    /// This coordinator among the others.
    pub raft: Raft,
    /// What came and went.
    pub traffic: Traffic,
    /// What was asked of the binary cache.
    pub answers: AnswersSeen,
    /// What was asked of upstream caches.
    pub upstream: Upstream,
    /// Tries of messages to receivers of webhooks, and messages that were given up, since this process started, by result.
    pub webhooks: BTreeMap<&'static str, u64>,
    /// Spans of traces that nobody received: those that found no room, and those that the receiver did not take.
    pub trace_spans_lost: (u64, u64),
    /// The file system of the coordinator's directory.
    pub disk: Option<Disk>,
    /// This process.
    pub process: Option<Process>,
}

/// The workers. Who is connected, and who strained, the leader knows alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fleet {
    /// Workers with a live session.
    pub connected: u64,
    /// Registered workers.
    pub registered: u64,
    /// Registered workers that get less than they have room for, by why.
    pub ailing: BTreeMap<&'static str, u64>,
    /// Workers that take nothing new, by what their machine is short of.
    pub strained: BTreeMap<&'static str, u64>,
    /// Live leases.
    pub leases: u64,
    /// Slots of connected workers.
    pub slots: u64,
    /// Slots of connected workers that a lease holds.
    pub slots_used: u64,
}

/// A coordinator among the others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Raft {
    /// Highest log index that was applied.
    pub log_index: u64,
    /// Bytes of the log on disk.
    pub log_bytes: u64,
    /// Files of the log on disk.
    pub log_segments: u64,
    /// Raft's term.
    pub term: u64,
    /// Whether this coordinator leads.
    pub is_leader: bool,
    /// Whether it knows of one that does, and that has spoken lately.
    pub has_leader: bool,
    /// How often it heard of another leadership.
    pub leader_changes: u64,
    /// When it last did, in milliseconds since 1970; 0 if it never has.
    pub leader_changed_at_ms: u64,
    /// Whether this coordinator votes.
    pub is_voter: bool,
    /// Whether a full disk keeps this coordinator from taking part in full.
    pub disk_full: bool,
    /// Members of the group.
    pub members: u64,
    /// Those of them that vote.
    pub voters: u64,
    /// Log entries that each other member lags behind, by its number; known to the leader only.
    pub member_lags: BTreeMap<u64, u64>,
    /// Milliseconds since each other member last answered, by its number; known to the leader only.
    pub member_silences_ms: BTreeMap<u64, u64>,
    /// Whether each other member votes, by its number.
    pub member_votes: BTreeMap<u64, bool>,
    /// Proposals that wait for their answer.
    pub proposals: u64,
    /// From proposals to their answers: committed, and applied here.
    pub commits: Latencies,
    /// Writes of the log with their sync; each may hold many entries.
    pub syncs: Latencies,
}

/// Bytes of blobs, as they are compressed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Verified and stored, of those that workers made.
    pub from_workers_bytes: u64,
    /// Verified and stored, of all others. Each of these is a count of its own: a difference of two could go backwards.
    pub from_others_bytes: u64,
    /// Sent to workers.
    pub to_workers_bytes: u64,
    /// Sent to others.
    pub to_others_bytes: u64,
    /// Of outputs that somebody was about to send, whose bytes the store had.
    pub spared_bytes: u64,
}

/// What was asked of upstream caches, and taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Upstream {
    /// Paths that one of them had.
    pub found: u64,
    /// Paths that none had, or none in time.
    pub absent: u64,
    /// Paths that were taken.
    pub taken: u64,
    /// Their bytes, as NARs.
    pub taken_bytes: u64,
    /// Paths that one had and did not give, or gave wrongly.
    pub failed: u64,
}
