//! Every coordinator that applied the same entries is in the same state, to the byte; what a snapshot carries is all of it (7: retry
//! counts and back-off among it).

use std::collections::BTreeMap;
use std::rc::Rc;

use super::{Invariant, Look};
use crate::fact::Fact;
use crate::log::Entry;

#[derive(Default)]
pub(super) struct ReplicasAgree {
    applied: BTreeMap<u64, Rc<Entry>>,
    snapshots: BTreeMap<u64, Vec<u8>>,
}

impl Invariant for ReplicasAgree {
    fn name(&self) -> &'static str {
        "coordinators that applied the same entries are in the same state"
    }

    fn see(&mut self, fact: &Fact<'_>, look: &Look<'_>) -> Result<(), String> {
        match fact {
            Fact::Applied { entry, .. } => {
                // Where coordinators make snapshots, each after its own number of entries.
                if entry.index.is_multiple_of(8) {
                    self.snapshots.insert(entry.index, look.farm.to_snapshot());
                }
                Ok(())
            }
            Fact::AppliedAt { node, entry } => {
                let known = self.applied.entry(entry.index).or_insert_with(|| Rc::clone(entry));
                if Rc::ptr_eq(known, entry) || **known == ***entry {
                    return Ok(());
                }
                Err(format!("node {node} applied another entry {} than others", entry.index))
            }
            Fact::Snapshot { node, index, bytes } => match self.snapshots.get(index) {
                Some(known) if known != bytes => Err(format!("the snapshot of node {node} at entry {index} differs")),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}
