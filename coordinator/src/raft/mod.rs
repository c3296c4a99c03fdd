//! Consensus: the farm's replicated log. The only module that names openraft, and no type of openraft leaves it.
//!
//! Where to look: `consensus` is the handle, `node` the thread behind it, `state_machine` applies entries to the farm, `log_store`
//! and `wal` keep them, `snapshot` lets old ones go, `network` carries them to other coordinators, `cluster` changes who these are,
//! `follow` tells who leads, `happened` what entries did, `version` what it can read and write.
//! Does not decide anything about builds, and does none of the effects that it hands on.

mod api;
mod backup;
mod cluster;
mod consensus;
#[cfg(test)]
mod copy_tests;
mod disk;
#[cfg(test)]
mod fairness_tests;
mod feed;
mod follow;
mod happened;
mod latency;
mod log_state;
mod log_store;
mod member;
mod network;
mod node;
#[cfg(feature = "simulation")]
pub mod planted;
mod record;
mod snapshot;
mod state_machine;
#[cfg(test)]
mod storage_tests;
mod trace;
mod types;
mod version;
mod wal;

pub use api::{
    Applied, ConsensusConfig, ConsensusError, ConsensusMetrics, EffectReceiver, Leadership, Owed, PROPOSALS_IN_FLIGHT_MAX, Standing,
};
pub use backup::{About, Backup, BackupError, FoundError};
pub use cluster::ClusterError;
pub use consensus::{Consensus, Pending};
#[cfg(feature = "simulation")]
pub use disk::ill;
pub use happened::{Asked, Fact, Happened};
pub use latency::{BOUNDS_US, Latencies};
pub use member::{DirectoryId, Member};
pub use network::Common;
pub use snapshot::SnapshotError;
pub use version::this_program;
pub use wal::WalError;
