//! What clients ask of the store as a whole: what is kept and why, that something be kept, and that what nobody keeps be deleted.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::StorePath;

/// A question or an order about the store as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GarbageRequest {
    /// What nobody keeps: told to any client, deleted for an admin. Answered by [`GarbageAnswer::Paths`] frames and a
    /// [`GarbageAnswer::Collected`].
    Collect(Collect),
    /// Why a path is kept. Answered by [`GarbageAnswer::Why`].
    Why(StorePath),
    /// What is kept by itself, and by whom. Answered by [`GarbageAnswer::Roots`] frames.
    Roots,
    /// Every path that the store has, derivations among them. Answered by [`GarbageAnswer::Paths`] frames.
    Paths,
    /// What refers to a path. Answered by [`GarbageAnswer::Paths`] frames.
    Referrers(StorePath),
    /// Keeps paths, and all that they refer to, under a name, beside what the name keeps already. Answered by `Done`.
    Pin {
        /// The name.
        name: String,
        /// The paths; the farm has them.
        paths: Vec<StorePath>,
    },
    /// Ends that. Answered by `Done`.
    Unpin {
        /// The name.
        name: String,
        /// Of which paths; of all that the name keeps, if none is named.
        paths: Vec<StorePath>,
    },
    /// What is pinned. Answered by a [`GarbageAnswer::Pins`].
    Pins,
    /// Keeps paths for whoever relies on them at the moment, in place of what that one held before; the farm need not have them. It has to
    /// be said again within half of `HELD_MS`. No paths: nothing is held any more. Answered by `Done`.
    Hold {
        /// Drawn by the client.
        holder: u64,
        /// The paths.
        paths: Vec<StorePath>,
    },
}

/// What is to be collected, and whether it is deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collect {
    /// Say what would be deleted, and delete nothing.
    pub dry_run: bool,
    /// List what is kept, and delete nothing.
    pub live: bool,
    /// Nothing but these paths.
    pub only: Option<Vec<StorePath>>,
    /// Stop when so many bytes are deleted.
    pub bytes_max: Option<u64>,
    /// Keep what was uploaded or asked for in the last so many seconds, whatever the configuration says; and let NARs follow their narinfos
    /// after as many.
    pub grace_seconds: Option<u64>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GarbageAnswer {
    /// Paths.
    Paths(Vec<StorePath>),
    /// What was, or would be, deleted.
    Collected(Collected),
    /// Why a path is kept: the root in words, and the paths from it to the one asked for. None: nobody keeps it.
    Why(Option<(String, Vec<StorePath>)>),
    /// Roots: by whom, and which.
    Roots(Vec<(String, StorePath)>),
    /// Pins: name and paths.
    Pins(Vec<(String, Vec<StorePath>)>),
}

/// What was, or would be, deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Paths that were valid.
    pub paths: u64,
    /// Derivations.
    pub derivations: u64,
    /// Blobs, those among them that belonged to no path any more.
    pub blobs: u64,
    /// Bytes of blobs and derivations.
    pub bytes: u64,
    /// Records of ended builds.
    pub builds: u64,
    /// Paths that are kept.
    pub kept: u64,
}
