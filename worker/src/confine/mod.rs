//! Gives up what the network-facing part of a worker does not need: root, every right to gain more, most system calls, most files.
//!
//! Done once, by a process that has a single thread, after its launcher was started and before it reads a byte from the network. What the
//! kernel lacks is left out and said ([`Launcher::guarantees`]); what it has and refuses is an error. See ADR 0015.

mod calls;
mod files;

use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::thread::{CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities};

use crate::config::{Config, UnknownUser};
use crate::launcher::{Launcher, LauncherError, Owner, Policy};

/// A worker that cannot be split from its launcher.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// There is no such user.
    #[error(transparent)]
    User(#[from] UnknownUser),
    /// The launcher does not start.
    #[error(transparent)]
    Launcher(#[from] LauncherError),
    /// A privilege cannot be given up.
    #[error("give up {what} as user {uid}")]
    GiveUp {
        /// What.
        what: &'static str,
        /// As whom.
        uid: u32,
        /// Why not.
        #[source]
        err: io::Error,
    },
    /// The worker's user cannot get to its directory.
    #[error(
        "enter the worker's directory `{dir}` as user {uid}, which the worker runs as: a directory above it is closed to that user; choose another `dir`, or set `user`"
    )]
    Closed {
        /// The directory.
        dir: PathBuf,
        /// The user.
        uid: u32,
        /// Why not.
        #[source]
        err: io::Error,
    },
}

/// Starts the launcher of a worker with this configuration as `program launcher`, and makes of this process the worker that it launches
/// for: of the configured user, without a privilege. Call it before any other thread is started.
///
/// # Errors
/// [`SettleError`].
pub fn settle(config: &Config, program: &Path) -> Result<Launcher, SettleError> {
    let owner = config.owner()?;
    let launcher = Launcher::in_process(&Policy::new(config, owner), program)?;
    let words = confine(config, owner)?;
    Ok(launcher.promising("worker", &words))
}

/// Returns what was given up, in words for people.
fn confine(config: &Config, owner: Owner) -> Result<String, SettleError> {
    let uid = owner.uid;
    let give_up = |what| move |err| SettleError::GiveUp { what, uid, err };
    let user = become_user(owner).map_err(give_up("the user's rights"))?;
    nix::sys::prctl::set_no_new_privs().map_err(io::Error::from).map_err(give_up("the right to gain privileges"))?;
    let state = config.dir.join("state");
    std::fs::read_dir(&state).map_err(|err| SettleError::Closed { dir: config.dir.clone(), uid, err })?;
    let files = files::restrict(&config.dir).map_err(give_up("files"))?;
    calls::restrict().map_err(give_up("system calls"))?;
    Ok(format!("{user}, system calls by list, {files}"))
}

fn become_user(owner: Owner) -> io::Result<String> {
    if owner != Owner::own() {
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        setgroups(&[])?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
    }
    // They go with the user, unless whoever started us arranged for them to stay.
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Ok(match owner.uid {
        0 => "root without capabilities, whose files are the machine's".to_owned(),
        uid => format!("user {uid} without capabilities"),
    })
}
