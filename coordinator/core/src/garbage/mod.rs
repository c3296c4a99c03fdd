//! Garbage: which objects of the farm's store nobody keeps, and in which order they go beside builds and uploads that go on.
//!
//! Pure, and no part of the replicated state: a collection is the work of one leader, and what it leaves half done the next one
//! begins again. [`Graph`] and [`Marks`] say what is kept and why; [`Sweep`] and [`BlobSweep`] hand out what goes, in batches, users
//! before what they use; the [`Gate`] is where whoever relies on an object meets the collection.
//!
//! Invariant: what was touched at the gate before its batch was condemned stays, with all that it needs; whoever touches it later
//! waits until the batch is gone, and finds it missing. Source: ADR 0028.

mod gate;
mod graph;
mod retention;
mod roots;
mod sweep;

use kiln_wire::{Sha256Hash, StorePath};

pub use gate::{Gate, Pass, Unready};
pub use graph::{Facts, Graph, Marks, Roots, Rules};
pub use retention::{EndedBuild, Retention};
pub use roots::Work;
pub use sweep::{BlobSweep, Doomed, Sweep};

/// The 32 characters that a store path starts with. No two paths of a store have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HashPart([u8; 32]);

impl HashPart {
    /// Reads the hash part of a narinfo's name; none if it is no such text.
    pub fn parse(text: &str) -> Option<Self> {
        text.as_bytes().try_into().ok().map(Self)
    }

    /// Returns the characters.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl From<&StorePath> for HashPart {
    fn from(path: &StorePath) -> Self {
        Self(path.hash_part().as_bytes().try_into().expect("the hash part of a store path has 32 characters"))
    }
}

/// What can be touched, and condemned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// What is said of a store path: its narinfo, and the file of a derivation.
    Path(HashPart),
    /// The blob of this SHA-256.
    Blob(Sha256Hash),
}

impl From<&StorePath> for Key {
    fn from(path: &StorePath) -> Self {
        Self::Path(path.into())
    }
}
