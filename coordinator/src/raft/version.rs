//! What this program can read and write, and what other coordinators say that they can.
//!
//! A farm is at one version, which its log holds. Whatever is written is written in the oldest form that can hold it, and what only a
//! later form holds is not written before the farm is at its version: so the farm's version alone keeps everybody readable.
//!
//! | version | release | log records | snapshot files | adds |
//! |---|---|---|---|---|
//! | 1 | 0.1 | 1, 2 | 1, 2 | |
//! | 2 | 0.2 | 3 | 3 | the farm's version in the log and in snapshots; a greeting says which program it comes from |
//! | 3 | 0.3 | 4 | 4 | commands, and fields of commands, for which `Command::version` says so |
//! | 4 | 0.4 | 5 | 5 | the same, and what farms learn of durations and sizes |
//! | 5 | 0.5 | 6 | 6 | the same, and whose turn it is: shares, and how workers do |
//! | 6 | 0.6 | 7 | 7 | the same, and jobs that run in two places |
//!
//! Source: ADR 0025.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_wire::{NodeId, Program, Version};

use super::state_machine::StateMachine;

/// The newest version that this program reads and writes.
pub const NEWEST: Version = Version(6);
/// The oldest version that it reads and writes: where every farm begins, a new one too. Being able to take part in a farm at any version
/// since costs nothing as long as later versions only add.
pub const OLDEST: Version = Version(1);

/// Returns what this program says of itself.
pub fn this_program() -> Program {
    Program { release: env!("CARGO_PKG_VERSION").to_owned(), oldest: OLDEST, newest: NEWEST }
}

/// What this coordinator speaks, what its farm is at, and what others have said that they speak. Clones share it.
#[derive(Clone, Debug)]
pub struct Versions {
    own: Program,
    machine: StateMachine,
    heard: Arc<Mutex<BTreeMap<NodeId, Program>>>,
}

impl Versions {
    /// Begins with nobody heard.
    pub fn new(own: Program, machine: StateMachine) -> Self {
        Self { own, machine, heard: Arc::default() }
    }

    /// Returns this coordinator's program.
    pub fn own(&self) -> &Program {
        &self.own
    }

    /// Returns the version that the farm is at, as far as its log is applied here.
    pub fn farm(&self) -> Version {
        self.machine.state().version
    }

    /// Notes what a coordinator said when it was last greeted.
    pub fn note(&self, node: NodeId, program: Program) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(node, program);
    }

    /// Returns whether this coordinator, or another when it was last greeted, speaks a version; of one that was never greeted it is not
    /// known.
    pub fn speaks(&self, node: Option<NodeId>, version: Version) -> bool {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let program = node.map_or(Some(&self.own), |node| heard.get(&node));
        program.is_some_and(|program| program.objection(version).is_none())
    }
}
