//! What happens to jobs, as whoever watches a build is told.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::{AttemptId, DrvPath, FailureClass, Timestamp, WorkerId};

/// Something happened to a job.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// To which job.
    pub derivation: DrvPath,
    /// What.
    pub kind: EventKind,
}

/// What happened to a job.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EventKind {
    /// Every input is realised.
    Ready,
    /// A worker has it.
    Started {
        /// Which try.
        attempt: AttemptId,
        /// Which worker.
        worker: WorkerId,
    },
    /// Its outputs are committed.
    Built {
        /// What it took.
        wall_ms: u64,
        /// Bytes of its outputs, as NARs.
        nar_bytes: u64,
    },
    /// An attempt failed and another will follow.
    Retried {
        /// Why it failed.
        class: FailureClass,
        /// In words.
        message: String,
    },
    /// It failed for good.
    Failed {
        /// Why.
        class: FailureClass,
        /// In words.
        message: String,
    },
    /// It is not built because this input of it failed.
    DependencyFailed {
        /// The job that failed itself.
        cause: DrvPath,
    },
    /// Nobody wants it any more.
    Cancelled,
}

impl EventKind {
    /// Returns whether nothing more happens to the job in this build.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Built { .. } | Self::Failed { .. } | Self::DependencyFailed { .. } | Self::Cancelled => true,
            Self::Ready | Self::Started { .. } | Self::Retried { .. } => false,
        }
    }
}
