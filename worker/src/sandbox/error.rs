//! Why a sandbox could not be set up. Never a failure of the build: the attempt is tried elsewhere.

use std::io;
use std::path::PathBuf;

/// A sandbox that could not be set up, or was lost.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The specification breaks a rule.
    #[error("set up the sandbox: {what} `{value}`: {rule}")]
    Spec {
        /// Which part.
        what: &'static str,
        /// The refused value.
        value: String,
        /// The rule.
        rule: &'static str,
    },
    /// A step on the host's side failed.
    #[error("set up the sandbox: {step} `{path}`")]
    Host {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        err: io::Error,
    },
    /// A step inside the new namespaces failed, before the builder ran.
    #[error("set up the sandbox: {step}{subject}")]
    Inside {
        /// What was being done.
        step: &'static str,
        /// To what, with a leading space, or nothing.
        subject: String,
        /// Why it failed.
        #[source]
        err: io::Error,
    },
    /// The launcher died without a word, before the builder ran.
    #[error("set up the sandbox: the launcher ended ({how}) before the builder ran")]
    Lost {
        /// What became of it.
        how: String,
    },
    /// The build's control group could not be made, read or removed.
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::CgroupError),
}

impl SandboxError {
    pub(super) fn host(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |err| Self::Host { step, path, err }
    }
}
