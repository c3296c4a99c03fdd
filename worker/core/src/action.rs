//! Actions: what the shell must do.

use alloc::boxed::Box;

use kiln_wire::worker::{Assignment, FromWorker};
use kiln_wire::{Leader, Lease, Outcome};

/// What the shell must do, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run an attempt. The shell then calls `started` and, in the end, `ended`.
    Start(Box<Assignment>),
    /// Kill an attempt's group. The shell then calls `ended` with whatever came of it.
    Kill(Lease),
    /// Send to the leader. What cannot be sent may be dropped: all that matters is sent again after the next `Welcome`.
    Send(FromWorker),
    /// Write a result to the journal, durably, before any `Send` that follows.
    Keep {
        /// Whose result.
        lease: Lease,
        /// What came of it.
        outcome: Outcome,
    },
    /// Delete what the journal and the disk hold of an attempt.
    Forget(Lease),
    /// Write the highest leader seen to the journal.
    Remember(Leader),
    /// Close the session and look for the leader elsewhere.
    Disconnect(StaleLeader),
}

/// A message of a leader that was deposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("obey leader of term {}: a leader of term {} was seen", .offered.term, .seen.term)]
pub struct StaleLeader {
    /// Who sent it.
    pub offered: Leader,
    /// The highest leader seen.
    pub seen: Leader,
}
