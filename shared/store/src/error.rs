//! What can go wrong in the store. Each variant names the operation and what it was about.

use std::path::PathBuf;

use kiln_nix::nar::NarError;
use kiln_nix::narinfo::NarInfoError;
use kiln_wire::{DrvPath, PathInfo, StorePath};

use crate::lie::Lie;

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be opened.
    #[error("open store at `{location}`")]
    Open {
        /// Where it should be.
        location: String,
        /// Why it cannot.
        #[source]
        err: object_store::Error,
    },
    /// A directory cannot be made.
    #[error("make directory `{}`", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// Why it cannot.
        #[source]
        err: std::io::Error,
    },
    /// The store at this place belongs to a farm with another store directory.
    #[error("open store: its objects live in `{found}`, this farm's in `{wanted}`; give the farm a store of its own")]
    OtherStoreDir {
        /// What `nix-cache-info` says.
        found: String,
        /// What the farm's configuration says.
        wanted: String,
    },
    /// The store belongs to another farm, or another key signs in it.
    #[error(
        "open store: it belongs to a farm `{found}`, this coordinator is of `{wanted}`; give every farm a prefix of its own, and every \
         coordinator of a farm the same signing key"
    )]
    OtherFarm {
        /// Name and key that the store names.
        found: String,
        /// Those of this coordinator.
        wanted: String,
    },
    /// An object cannot be read or written.
    #[error("{operation} object `{key}`")]
    Object {
        /// `read`, `write`, `list`, `look up` or `delete`.
        operation: &'static str,
        /// The object.
        key: String,
        /// What the object store says.
        #[source]
        err: object_store::Error,
    },
    /// An object that is always small is not.
    #[error("read object `{key}`: it has {size_bytes} bytes, at most {bytes_max} are possible")]
    Oversize {
        /// The object.
        key: String,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// A narinfo in the store cannot be read.
    #[error("read object `{key}`: it is damaged: {reason}")]
    DamagedNarinfo {
        /// The object.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A stored derivation's bytes do not belong to its path.
    #[error("read derivation `{path}`: object `{key}` is damaged: {reason}")]
    DamagedDerivation {
        /// The derivation.
        path: DrvPath,
        /// The object.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Bytes that are offered as a derivation do not have the offered path.
    #[error("store derivation `{path}`: {reason}")]
    WrongDerivation {
        /// The offered path.
        path: DrvPath,
        /// The rule that is broken.
        reason: String,
    },
    /// The path is not in the store.
    #[error("`{path}` is not in the store")]
    Absent {
        /// The path.
        path: StorePath,
    },
    /// The NAR of a path is gone.
    #[error("read the NAR of `{path}`: object `{key}` is missing")]
    MissingBlob {
        /// The path.
        path: StorePath,
        /// The object.
        key: String,
    },
    /// The bytes of a NAR in the store are not what its facts say.
    #[error("read the NAR of `{path}`: object `{key}` is damaged")]
    DamagedBlob {
        /// The path.
        path: StorePath,
        /// The object.
        key: String,
        /// What differs.
        #[source]
        lie: Box<Lie>,
    },
    /// The NAR of a path cannot be listed.
    #[error("list `{path}`")]
    Listing {
        /// The path.
        path: StorePath,
        /// Why not.
        #[source]
        err: NarError,
    },
    /// A path must not be published before everything that it refers to.
    #[error("publish `{path}`: it refers to `{reference}`, which is not in the store")]
    MissingReference {
        /// The path.
        path: StorePath,
        /// What it refers to.
        reference: StorePath,
    },
    /// Paths that are to be published together refer to each other in a circle.
    #[error("publish `{path}`: it refers to itself through others of the same set")]
    Cycle {
        /// One of them.
        path: StorePath,
    },
    /// The facts of a path cannot be written as a narinfo.
    #[error("publish `{path}`")]
    Unwritable {
        /// The path.
        path: StorePath,
        /// The rule that is broken.
        #[source]
        err: NarInfoError,
    },
    /// A task of the store died.
    #[error("{operation}: the task died")]
    Task {
        /// What it was doing.
        operation: &'static str,
        /// Why.
        #[source]
        err: tokio::task::JoinError,
    },
    /// Bytes in transit cannot be kept in the spool directory.
    #[error("{operation} spooled bytes of `{path}`")]
    Spool {
        /// `write` or `read`.
        operation: &'static str,
        /// Whose bytes.
        path: StorePath,
        /// Why.
        #[source]
        err: std::io::Error,
    },
    /// A log cannot be packed or unpacked.
    #[error("{operation} log of `{derivation}`")]
    Log {
        /// `pack` or `unpack`.
        operation: &'static str,
        /// Whose log.
        derivation: DrvPath,
        /// Why.
        #[source]
        err: std::io::Error,
    },
    /// An upload is not what it was said to be. Nothing of it was kept.
    #[error("receive `{path}`")]
    Refused {
        /// The path.
        path: StorePath,
        /// What differs.
        #[source]
        lie: Box<Lie>,
    },
}

impl StoreError {
    /// Returns the failure of an upload of `info`.
    pub(crate) fn refused(info: &PathInfo, lie: impl Into<Lie>) -> Self {
        Self::Refused { path: info.path.clone(), lie: Box::new(lie.into()) }
    }

    /// Returns whether the same may succeed a while later: the store is away or busy, and nothing is wrong with what was asked.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Object { err, .. } => !matches!(
                err,
                object_store::Error::PermissionDenied { .. }
                    | object_store::Error::Unauthenticated { .. }
                    | object_store::Error::NotSupported { .. }
            ),
            Self::Task { .. } | Self::Spool { .. } => true,
            _ => false,
        }
    }

    /// Returns whether the peer's bytes or claims are at fault, and not the store.
    pub fn is_peers_fault(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::WrongDerivation { .. })
    }
}
