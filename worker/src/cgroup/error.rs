//! What can go wrong with a control group. Always the host's fault, never the build's.

use std::io;
use std::path::PathBuf;

/// A control group that could not be made, read, emptied or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file of the group could not be read or written.
    #[error("{step} control group `{path}`")]
    Io {
        /// What was being done.
        step: &'static str,
        /// The directory or file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        err: io::Error,
    },
    /// A limit could not be set.
    #[error("set {limit} of control group `{path}`")]
    Limit {
        /// Which limit.
        limit: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        err: cgroups_rs::fs::error::Error,
    },
    /// Killed processes did not go away.
    #[error("empty control group `{path}`: processes are left after {rounds} rounds of SIGKILL")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// Rounds tried.
        rounds: u32,
    },
    /// A name that could leave the group's directory.
    #[error("name a control group `{name}`: want letters, digits, `-`, `_` and `.`, at most 200, not first a dot")]
    Name {
        /// The refused name.
        name: String,
    },
}

impl CgroupError {
    pub(super) fn io(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |err| Self::Io { step, path, err }
    }
}
