//! How an attempt ended, and the facts about what it made.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::{AttemptId, Blake3Hash, DrvPath, Epoch, OutputName, Sha256Hash, StorePath, WorkerId};

/// A worker's right to run one attempt. Only its holder may report, upload or extend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lease {
    /// What is built.
    pub derivation: DrvPath,
    /// Which try it is.
    pub attempt: AttemptId,
    /// Who runs it.
    pub worker: WorkerId,
    /// The worker's registration that the lease was given to.
    pub epoch: Epoch,
}

/// A stored byte object: a NAR, compressed with zstd, written once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Size of the stored bytes.
    pub size_bytes: u64,
    /// BLAKE3 of the stored bytes; a stream of them is verified against it while it flows.
    pub blake3: Blake3Hash,
    /// SHA-256 of the stored bytes, which a narinfo calls `FileHash`.
    pub sha256: Sha256Hash,
}

/// What is known of a store object. The same facts as a narinfo, without signatures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathInfo {
    /// The object.
    pub path: StorePath,
    /// SHA-256 of its uncompressed NAR.
    pub nar_hash: Sha256Hash,
    /// Size of its uncompressed NAR.
    pub nar_size_bytes: u64,
    /// Objects that it refers to, itself included if it does.
    pub references: BTreeSet<StorePath>,
    /// The derivation that made it.
    pub deriver: Option<DrvPath>,
    /// Nix's content address (`fixed:r:sha256:…`, `text:sha256:…`) if the path follows from the content.
    pub content_address: Option<String>,
    /// The stored bytes. Named by `nar_hash` in the store.
    pub blob: Blob,
}

/// One output that an attempt made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltOutput {
    /// Its name in the derivation.
    pub name: OutputName,
    /// What was made.
    pub info: PathInfo,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The whole output set, uploaded and verified.
    Built {
        /// Every output of the derivation.
        outputs: Vec<BuiltOutput>,
        /// What it took.
        usage: Usage,
    },
    /// Nothing was made.
    Failed {
        /// Why.
        failure: Failure,
        /// What it took.
        usage: Usage,
    },
}

/// Why an attempt made nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Decides what follows.
    pub class: FailureClass,
    /// One line for a person: what was done, to what, what went wrong.
    pub message: String,
}

/// What kind of failure it was. Decides whether the job is tried again and who is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FailureClass {
    /// The builder exited non-zero or made something wrong. Permanent.
    BuildFailure,
    /// Killed by its memory limit. Tried again with a doubled limit.
    OutOfMemory,
    /// Ran into its wall time, silence, log or output size limit. Permanent.
    LimitExceeded,
    /// Not the job's fault: worker lost, disk full, fetch or upload failed, sandbox did not start. Tried again elsewhere.
    Infrastructure,
    /// Nobody wants it any more. Of an attempt that is wanted: its worker gives it back, for it finishes what it has and takes nothing
    /// new; tried again elsewhere at once, and the worker gets no more until it registers anew.
    Cancelled,
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BuildFailure => "build failure",
            Self::OutOfMemory => "out of memory",
            Self::LimitExceeded => "limit exceeded",
            Self::Infrastructure => "infrastructure failure",
            Self::Cancelled => "cancelled",
        })
    }
}

/// What an attempt took of its worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// From the start of the builder to its end, in milliseconds.
    pub wall_ms: u64,
    /// Processor time of the build's group, in milliseconds.
    pub cpu_ms: u64,
    /// Highest memory use of the build's group; 0 if the kernel did not tell.
    pub memory_peak_bytes: u64,
    /// Log bytes that the builder wrote.
    pub log_bytes: u64,
    /// Milliseconds for which its processor quota kept the group from running; none if the kernel did not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_throttled_ms: Option<u64>,
    /// Bytes written to files on a disk, or to the disk itself where the kernel counts more of these; none if it counts neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_write_bytes: Option<u64>,
}
