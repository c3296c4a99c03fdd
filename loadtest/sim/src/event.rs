//! What happens, in order of time. Events at the same time happen in the order in which they were planned.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::rc::Rc;

use kiln_core::{BuildRecord, Command};
use kiln_wire::client::Submission;
use kiln_wire::worker::{FromWorker, ToWorker};
use kiln_wire::{BuildId, BuiltOutput, DrvPath, JobLimits, Leader, Lease, NodeId, Outcome, PathInfo, Resources};

use crate::log::{Entry, Snapshot};

/// Something that happens. Indices name coordinators, workers and clients by their place in the world.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A coordinator's log looks at its clock.
    Tick { node: usize, life: u32 },
    /// A message of the log.
    Log { to: usize, message: Rc<LogMessage> },
    /// A sync ended.
    Synced { node: usize, life: u32, upto: u64, cuts: u64 },
    /// A coordinator looks at its deadlines.
    Wake { node: usize, life: u32, wake: u64 },
    /// A coordinator's task goes on.
    Task { node: usize, life: u32, task: Box<Task> },
    /// A worker dials.
    Dial { host: usize, life: u32 },
    /// A message of a worker arrives.
    FromWorker { conn: usize, message: Box<FromWorker> },
    /// A message for a worker arrives.
    ToWorker { conn: usize, message: Box<ToWorker> },
    /// An end of a session notices that it is over.
    Broken { conn: usize, at_worker: bool },
    /// A worker says that it lives, or finds that it was never welcomed.
    Beat { conn: usize },
    /// An attempt goes on.
    Attempt { host: usize, life: u32, lease: Box<Lease>, step: Step },
    /// A client acts.
    Client { client: usize, turn: u64 },
    /// A question of a client arrives.
    Question { node: usize, question: u64, ask: Box<Ask> },
    /// An answer arrives.
    Answer { question: u64, reply: Box<Reply> },
    /// A fault.
    Fault,
    /// A fault of a while is over.
    Mend(Mend),
    /// Faults are over for good.
    Heal,
}

/// A message between coordinators.
#[derive(Clone, Debug)]
pub(crate) enum LogMessage {
    Append {
        leader: Leader,
        /// When it was sent.
        sent_us: u64,
        previous: (u64, u64),
        entries: Vec<Rc<Entry>>,
        commit: u64,
    },
    Install {
        leader: Leader,
        /// When it was sent.
        sent_us: u64,
        snapshot: Rc<Snapshot>,
    },
    /// What a follower has, or from where on it lacks something.
    Has {
        from: NodeId,
        term: u64,
        matched: u64,
        lacks: Option<u64>,
        /// When the last was sent that it heard of this leader: for a lease from then on it lets nobody else lead.
        acked_us: u64,
    },
}

/// What a coordinator does beside its loop.
#[derive(Clone, Debug)]
pub(crate) enum Task {
    Dispatch {
        leader: Leader,
        lease: Lease,
        resources: Resources,
        limits: JobLimits,
    },
    Report {
        lease: Lease,
        outcome: Outcome,
    },
    Publish {
        derivation: DrvPath,
        outputs: Vec<PathInfo>,
    },
    Archive {
        record: BuildRecord,
    },
    Resolve {
        derivation: DrvPath,
    },
    /// A proposal that found the queue full.
    Propose {
        command: Command,
    },
}

/// How far an attempt has come.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Its inputs are there.
    Fetched,
    /// Its builder ended.
    Ran,
    /// Another of its outputs is to be uploaded.
    Upload(Vec<BuiltOutput>, usize),
    /// It was killed and has ended.
    Killed,
}

/// What a client asks.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Submit(Submission),
    Watch(BuildId),
    Cancel(BuildId),
}

/// What a coordinator answers.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    NotLeader(Option<NodeId>),
    Unavailable,
    Refused,
    Submitted(BuildId),
    /// It goes on.
    Active,
    Ended(Box<BuildRecord>),
    NoBuild,
    Done,
}

/// What is mended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mend {
    Node(usize),
    Host(usize),
    Link(usize, usize),
    HostLink(usize, usize),
    Disk(usize),
    Strain(usize),
    Store,
}

#[derive(Clone, Debug)]
struct Planned {
    at_us: u64,
    number: u64,
    event: Event,
}

/// Planned events.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heap {
    planned: BinaryHeap<Reverse<Planned>>,
    number: u64,
}

impl Heap {
    /// Plans an event.
    pub fn plan(&mut self, at_us: u64, event: Event) {
        self.number += 1;
        self.planned.push(Reverse(Planned { at_us, number: self.number, event }));
    }

    /// Takes the next event, with its time and number.
    pub fn next(&mut self) -> Option<(u64, u64, Event)> {
        self.planned.pop().map(|Reverse(Planned { at_us, number, event })| (at_us, number, event))
    }
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at_us, self.number).cmp(&(other.at_us, other.number))
    }
}
