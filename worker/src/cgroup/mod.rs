//! Control groups: what a build may use, what it used, and a way to kill all of it.
//!
//! Which kind the host has is decided at run time ([`Mode`]) and advertised. Every group lies below the worker's own group, so
//! that a limit on the worker bounds its builds too. `cgroups-rs` writes the limits; what it lacks (`cgroup.kill`,
//! `memory.oom.group`, peaks, out-of-memory events) is written here.
//!
//! Absences: does not start processes and does not decide limits.

mod alarm;
mod delegate;
mod error;
mod group;
mod host;
mod limits;
mod procfs;
mod used;

pub use alarm::{Alarm, Alert};
pub use error::CgroupError;
pub use group::Group;
pub(crate) use host::is_name;
pub use host::{Cgroups, Mode};
pub use limits::{Limits, MEMORY_BYTES_MIN, Policy};
pub(crate) use procfs::unescape;
pub use used::Used;
