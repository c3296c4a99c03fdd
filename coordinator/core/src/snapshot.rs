//! Snapshots: the replicated facts as canonical MessagePack with a version. What follows from the facts is rebuilt, not stored.
//!
//! Goals: two coordinators that applied the same log write the same bytes; bytes from anywhere either make a farm that keeps every
//! invariant, or an error. Non-goals: small size (fields go by name, so that a later version can add some).

use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;

use kiln_wire::frame;
use serde::{Deserialize, Serialize};

use crate::farm::{Facts, Farm};
use crate::index::Index;
use crate::invariant::{self, Violation};
use crate::job::Needs;

/// The version that this program writes.
pub const SNAPSHOT_VERSION: u32 = 1;

/// Bytes that are no snapshot of a farm.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// They are not the MessagePack of a snapshot.
    #[error("read snapshot")]
    Decode(#[source] frame::FrameError),
    /// They are of another version.
    #[error("read snapshot: version {found}, this program reads {SNAPSHOT_VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// They describe a farm that cannot be.
    #[error("read snapshot")]
    Broken(#[source] Violation),
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    facts: &'a Facts,
}

#[derive(Deserialize)]
struct Read {
    facts: Facts,
}

/// Read before the rest, which another version may hold in another form.
#[derive(Deserialize)]
struct Header {
    version: u32,
}

impl Farm {
    /// Returns the farm's snapshot. Equal farms give equal bytes.
    pub fn to_snapshot(&self) -> Vec<u8> {
        frame::to_bytes(&Written { version: SNAPSHOT_VERSION, facts: &self.facts }).expect("the farm's own types can be written")
    }

    /// Reads a snapshot and checks that its farm keeps every invariant.
    ///
    /// # Errors
    /// [`SnapshotError`] if the bytes are damaged, of another version, or describe a farm that cannot be.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let Header { version } = frame::from_bytes(bytes).map_err(SnapshotError::Decode)?;
        if version != SNAPSHOT_VERSION {
            return Err(SnapshotError::Version { found: version });
        }
        let Read { mut facts } = frame::from_bytes(bytes).map_err(SnapshotError::Decode)?;
        // Before the index is made: it follows edges and would trust them.
        invariant::check_references(&facts).map_err(SnapshotError::Broken)?;
        share_needs(&mut facts);
        let index = Index::of(&facts);
        let farm = Self { facts, index };
        farm.check_invariants().map_err(SnapshotError::Broken)?;
        Ok(farm)
    }
}

/// Lets jobs with equal needs hold them once, as they did before they were written.
fn share_needs(facts: &mut Facts) {
    let mut known: BTreeSet<Arc<Needs>> = BTreeSet::new();
    for job in facts.jobs.values_mut() {
        match known.get(&job.needs) {
            Some(shared) => job.needs = Arc::clone(shared),
            None => {
                known.insert(Arc::clone(&job.needs));
            }
        }
    }
}
