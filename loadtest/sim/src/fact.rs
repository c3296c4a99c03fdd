//! Facts: what invariants see of a run. Each is told at the moment at which it becomes one.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use kiln_core::{Command, Effect, Farm, PlanReport};
use kiln_wire::client::Submission;
use kiln_wire::worker::{Assignment, FromWorker, Offer, ToWorker};
use kiln_wire::{DrvPath, JobSpec, Leader, Lease, NodeId, PathInfo, Timestamp, WorkerId};

use crate::client::Client;
use crate::event::Reply;
use crate::host::Running;
use crate::log::Entry;

/// Something that is so.
pub(crate) enum Fact<'a> {
    /// A coordinator won an election.
    Elected { leader: Leader },
    /// A coordinator proposed a command that entered its log.
    Proposed { node: NodeId, command: &'a Command },
    /// A leader found an entry committed; `truth` is what was found committed at its position before.
    Committed { entry: &'a Rc<Entry>, truth: Option<&'a Rc<Entry>> },
    /// An entry was committed for the first time: the farm before and after it, and what it owes.
    Applied { entry: &'a Entry, command: &'a Command, before: &'a Farm, effects: &'a [Effect], farm: &'a Farm },
    /// A coordinator applied an entry.
    AppliedAt { node: NodeId, entry: &'a Rc<Entry> },
    /// A coordinator made a snapshot.
    Snapshot { node: NodeId, index: u64, bytes: &'a [u8] },
    /// A leader planned, for the farm as it has it.
    Planned { farm: &'a Farm, placements: &'a [Command], report: &'a PlanReport },
    /// A leader has done all it has to do.
    Rests { farm: &'a Farm, away: &'a BTreeSet<WorkerId>, now: Timestamp },
    /// A client's submission arrived at a leader.
    Submits { submission: &'a Submission },
    /// A submission's jobs were chosen.
    Selected { jobs: &'a [JobSpec] },
    /// A coordinator sends to a worker.
    Told { message: &'a ToWorker },
    /// A coordinator hears from a worker.
    Heard { node: NodeId, worker: &'a WorkerId, message: &'a FromWorker },
    /// A worker sends to a coordinator.
    Says { worker: &'a WorkerId, message: &'a FromWorker },
    /// An end of a session was noticed by its coordinator: which session was the worker's live one before and after.
    SessionEnds { worker: &'a WorkerId, ended: u64, live_before: &'a Option<u64>, live_after: &'a Option<u64> },
    /// A worker acted on a message: the highest leader that it has seen.
    Obeys { worker: &'a WorkerId, seen: Leader },
    /// A worker starts an attempt.
    Starts { worker: &'a WorkerId, assignment: &'a Assignment, running: &'a BTreeMap<Lease, Running>, offer: &'a Offer },
    /// A worker looked for an attempt's inputs.
    Fetched { worker: &'a WorkerId, assignment: &'a Assignment, there: bool },
    /// An attempt ended.
    Ended { lease: &'a Lease },
    /// A worker's journal keeps a result.
    Keeps { worker: &'a WorkerId, lease: &'a Lease },
    /// A worker's journal may forget a result.
    Forgets { worker: &'a WorkerId, lease: &'a Lease },
    /// A worker's process died.
    WorkerDied { worker: &'a WorkerId, journal_lost: bool },
    /// Narinfos became readable.
    Published { derivation: &'a DrvPath, outputs: &'a [PathInfo] },
    /// A client got an answer.
    Answered { client: &'a Client, reply: &'a Reply },
    /// Everything has ended.
    Over,
}
