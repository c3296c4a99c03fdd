//! Who leads, and where: what workers and clients need in order to find the coordinator that answers them.
//!
//! Any coordinator answers `Request::Leader`. What only a leader can answer, another refuses with [`NotLeader`]. Both are hints: a
//! leader may be deposed while the answer travels, so of two that say they lead the later one is believed.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::Leader;

/// A leader and its address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderAt {
    /// Which leader.
    pub leader: Leader,
    /// Its address for workers and clients, `host:port`.
    pub link: String,
}

/// The coordinator that was asked does not lead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotLeader {
    /// Who leads as far as it knows; none while there is no leader.
    pub leader: Option<LeaderAt>,
}

/// Who leads, as one coordinator sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoLeads {
    /// The coordinator that was asked leads itself.
    pub is_self: bool,
    /// Who leads; none while there is no leader.
    pub leader: Option<Leader>,
    /// The addresses of all coordinators for workers and clients, `host:port` each.
    pub coordinators: Vec<String>,
}
