//! The launcher: the small privileged part of a worker, which does what needs root (namespaces, mounts, control groups, build users)
//! and nothing else, so that the part that talks to the network needs no privilege.
//!
//! A process of its own (`kiln launcher`), or a thread where there is nobody to be protected from. The worker holds one end of a socket;
//! for each build it sends a new socket over it, on which the two converse ([`message`]). What the launcher may do is fixed by the
//! [`Policy`] that it gets first, from the process that started it, before that gives up its own privileges.
//!
//! Absences: reads nothing from the network, opens no path that a message names, knows nothing of leases. See ADR 0015.

mod client;
mod conversation;
mod message;
mod network;
mod places;
mod policy;
mod rootless;
mod serve;
mod socket;
mod trial;

pub use client::{Launcher, LauncherError, Run};
pub use message::{Answer, Ask, Claim, MESSAGE_BYTES_MAX, Reach, TalkError, Task, decode, read_message, write_message};
pub use network::host_addresses;
pub use places::Owner;
pub use policy::Policy;
pub use rootless::RootlessError;
pub use serve::{ServeError, serve_stdin};
