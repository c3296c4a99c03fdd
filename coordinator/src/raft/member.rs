//! Who a coordinator is and where it listens, as the group has it on record.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A coordinator's directory: drawn once, with its log. A wiped directory is another one, so that a node that has forgotten what
/// it promised is never mistaken for the one that promised it. Zero is that of a member from before directories were on record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DirectoryId(pub u64);

impl DirectoryId {
    /// Returns whether two records may mean the same directory.
    pub fn may_be(self, other: Self) -> bool {
        self == other || self == Self(0) || other == Self(0)
    }
}

impl fmt::Display for DirectoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What the group has on record of a coordinator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "AnyMember")]
pub struct Member {
    /// `host:port` where coordinators, workers and clients reach it.
    pub link: String,
    /// `host:port` of its binary cache and metrics.
    pub http: String,
    /// Its directory.
    pub directory: DirectoryId,
}

/// Version 1 of the log wrote an address only, which was empty: farms had one coordinator.
#[derive(Deserialize)]
#[serde(untagged)]
enum AnyMember {
    Address(String),
    Member { link: String, http: String, directory: DirectoryId },
}

impl From<AnyMember> for Member {
    fn from(any: AnyMember) -> Self {
        match any {
            AnyMember::Address(link) => Self { link, ..Self::default() },
            AnyMember::Member { link, http, directory } => Self { link, http, directory },
        }
    }
}
