//! Runs one builder in a sandbox of our own: namespaces, per-path read-only mounts, one user, a control group, a system call
//! filter. Nothing is executed per build but the builder itself.
//!
//! Absences: knows nothing of derivations (`crate::builder` makes the [`Spec`]), of leases, or of outputs, which are imported
//! from [`Spec::outputs_dir`] after the run. Blocking: call it on a thread that may wait.
//! Invariant: when [`run`] returns, no process of the build exists.

mod arrivals;
mod attributes;
mod birth;
mod cancel;
mod child;
pub mod disk;
mod egress;
mod error;
mod filter;
mod inputs;
mod launch;
mod networks;
mod plan;
mod prepared;
mod range;
mod raw;
mod skeleton;
mod sources;
mod spec;
mod stage;
mod steps;
mod stock;
mod tree;
mod watch;

use std::os::fd::AsFd;
use std::path::Path;

pub use cancel::Cancel;
pub use egress::{Egress, LINK_LOCAL};
pub use error::SandboxError;
pub use range::UID_RANGE;
pub use spec::{Ended, HostId, Limits, Network, RANGE_IDS, Spec, Status, Stop, env_pairs};

use crate::cgroup::Cgroups;
use disk::Room;

/// Runs the builder of `spec` to its end and returns how it ended. Blocks; use a thread of its own.
///
/// `room` is that of [`Spec::root_dir`].
///
/// `log` gets the builder's output as it comes, at most 64 KiB at a time, on the calling thread. While it blocks, limits and
/// cancellation are not watched, so it must only pass the bytes on. The run is stopped once `cancel` can be read from, or its other end
/// is closed: a [`Cancel`], or a socket.
///
/// # Errors
/// [`SandboxError`] if the sandbox could not be set up. A builder that could not be executed is an [`Ended`], not an error.
pub fn run(spec: &Spec, cgroups: &Cgroups, room: &Room, cancel: &impl AsFd, log: &mut dyn FnMut(&[u8])) -> Result<Ended, SandboxError> {
    launch::run(spec, cgroups, room, cancel.as_fd(), log)
}

/// Removes what runs in directories below `dir` left there to be used again, and waits until it is gone. None may run there meanwhile.
pub fn clear(dir: &Path) {
    launch::clear(dir);
}
