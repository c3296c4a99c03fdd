//! The launcher's side: takes conversations off the control socket and runs the build of each on a thread of its own.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use landlock::{CompatLevel, Compatible as _, Ruleset, RulesetAttr as _, Scope};
use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};

use super::conversation::Conversation;
use super::message::{TalkError, decode};
use super::network::{FixedNetwork, NoStack};
use super::places::{self, BUILDS, Owner, PlaceError};
use super::policy::Policy;
use super::rootless::{self, RootlessError, Users};
use super::socket::{Received, peek_start, receive_conversation, receive_start, send_start};
use super::trial;
use crate::cgroup::{CgroupError, Cgroups};
use crate::failure::chain;
use crate::sandbox::disk::{Disk, DiskError};
use crate::sandbox::{RANGE_IDS, UID_RANGE};
use crate::trash::{Trash, TrashError};

/// What a launcher says once it can run builds, or that it cannot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Start {
    /// It can run builds.
    Ready {
        /// What it gives to builds, by name, in words for people.
        guarantees: Vec<(String, String)>,
        /// Features that the worker is configured to offer, and this machine does not have.
        lacking: BTreeSet<String>,
    },
    /// Why it cannot.
    Failed(String),
}

/// A launcher that cannot start, or lost its worker's socket.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The control socket failed.
    #[error("use the launcher's control socket; `kiln worker` starts its launcher itself")]
    Control(#[source] io::Error),
    /// What came first is no policy.
    #[error("read the launcher's policy")]
    Policy(#[source] TalkError),
    /// The worker's directories cannot be prepared.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The worker's directory cannot be found.
    #[error("find the worker's directory `{path}`")]
    Dir {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        err: io::Error,
    },
    /// The shell for builds is missing.
    #[error("find the static shell `{path}` for builds; install busybox-static or set `busybox`")]
    Shell {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        #[source]
        err: io::Error,
    },
    /// There can be no launcher without root here.
    #[error(transparent)]
    Rootless(#[from] RootlessError),
    /// A thread cannot have a namespace for itself.
    #[error("launch builds on a thread: only root can")]
    Thread,
    /// The network of fixed-output builds cannot be had.
    #[error(transparent)]
    Network(#[from] NoStack),
    /// What is left of builds cannot be removed.
    #[error(transparent)]
    Trash(#[from] TrashError),
    /// Builds cannot be held to their part of the disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Without root, what the launcher mounts is seen by nobody else.
    #[error("hold builds to their part of the disk by a file system of their own: without root the worker would not see what they made")]
    Unseen,
    /// Control groups of an earlier process cannot be removed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

/// Serves the worker at the other end of standard input until that is closed. What `kiln launcher` does, in its first thread.
///
/// The signals that people or a service manager send to all of a worker's processes are the worker's to act on: they are kept from this
/// one, which ends when its worker does. `users` is what a launcher without root hands on to itself.
///
/// # Errors
/// [`ServeError`] if it cannot start; the worker was told why.
pub fn serve_stdin(users: Option<&str>) -> Result<(), ServeError> {
    let kept: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    kept.thread_block().map_err(|err| ServeError::Control(err.into()))?;
    let control = io::stdin().as_fd().try_clone_to_owned().map_err(ServeError::Control)?;
    if let Some(users) = users.and_then(Users::from_word) {
        return serve(&control, users);
    }
    if rustix::process::geteuid().is_root() {
        // A builder's first process has them until it becomes the build user.
        nix::unistd::setgroups(&[]).map_err(|err| ServeError::Control(err.into()))?;
        return serve(&control, Users::Pool);
    }
    // Looked at, not taken: the program that follows this one in its process reads it again.
    let policy = decode::<Policy>(&peek_start(&control).map_err(ServeError::Control)?).map_err(ServeError::Policy)?;
    fail(&control, rootless::enter(policy.slots).into())
}

/// Serves the worker at the other end of `control`, in a process that does other things too.
pub(super) fn serve_in_thread(control: &OwnedFd) -> Result<(), ServeError> {
    if rustix::process::geteuid().is_root() { serve(control, Users::Pool) } else { fail(control, ServeError::Thread) }
}

/// Tells the worker why there is no launcher.
fn fail(control: &OwnedFd, err: ServeError) -> Result<(), ServeError> {
    say(control, &Start::Failed(chain(&err)))?;
    Err(err)
}

fn say(control: &OwnedFd, start: &Start) -> Result<(), ServeError> {
    let said = kiln_wire::frame::to_bytes(start).map_err(|err| ServeError::Policy(err.into()))?;
    send_start(control, &said).map_err(ServeError::Control)
}

/// Serves the worker at the other end of `control` until that is closed, and every build is over.
fn serve(control: &OwnedFd, users: Users) -> Result<(), ServeError> {
    let start = receive_start(control).map_err(ServeError::Control)?;
    let policy = decode::<Policy>(&start).map_err(ServeError::Policy);
    let host = match policy.and_then(|policy| Host::open(users, policy)) {
        Ok(host) => host,
        Err(err) => return fail(control, err),
    };
    say(control, &Start::Ready { guarantees: host.guarantees(), lacking: host.lacking() })?;
    let conversations_max = usize::try_from(host.policy.slots).unwrap_or(1) * 2 + 16;
    let open = AtomicUsize::new(0);
    thread::scope(|scope| -> Result<(), ServeError> {
        loop {
            let stream = match receive_conversation(control).map_err(ServeError::Control)? {
                Received::Conversation(descriptor) => UnixStream::from(descriptor),
                Received::Nothing => continue,
                Received::End => return Ok(()),
            };
            // Closed by this: a worker that keeps its own bounds never comes here.
            if open.fetch_add(1, Ordering::Relaxed) >= conversations_max {
                open.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (host, open) = (&host, &open);
            let started = thread::Builder::new().name("kiln-launch".into()).spawn_scoped(scope, move || {
                if let Err(err) = Conversation::hold(host, &stream) {
                    tracing::debug!(err = %chain(&err), "a conversation with the worker broke");
                }
                // Not by closing alone: the first process of another build holds a copy until it executes its builder.
                let _ = stream.shutdown(std::net::Shutdown::Both);
                open.fetch_sub(1, Ordering::Relaxed);
            });
            if let Err(err) = started {
                open.fetch_sub(1, Ordering::Relaxed);
                tracing::warn!(%err, "start a thread for a build");
            }
        }
    })?;
    crate::sandbox::clear(&host.builds);
    host.cgroups.remove_home()?;
    Ok(())
}

/// What the builds of one launcher share.
pub(super) struct Host {
    pub(super) users: Users,
    pub(super) policy: Policy,
    pub(super) cgroups: Cgroups,
    pub(super) disk: Disk,
    pub(super) network: FixedNetwork,
    /// Whether builds can have a range of ids; nothing where the worker does not offer it.
    range: Option<Result<(), String>>,
    pub(super) remains: Trash,
    pub(super) builds: PathBuf,
    pub(super) busy: Mutex<BTreeSet<u32>>,
    /// Until the last group is gone.
    _lock: OwnedFd,
}

impl Host {
    fn open(users: Users, mut policy: Policy) -> Result<Arc<Self>, ServeError> {
        if users != Users::Pool {
            // The worker, as it is called in this namespace.
            policy.owner = Owner::own();
        }
        let lock = places::lock(&policy.dir, policy.owner)?;
        policy.dir = policy.dir.canonicalize().map_err(|err| ServeError::Dir { path: policy.dir.clone(), err })?;
        let remains = places::prepare(&policy.dir, policy.owner)?;
        std::fs::metadata(&policy.shell).map_err(|err| ServeError::Shell { path: policy.shell.clone(), err })?;
        let cgroups = Cgroups::detect(&policy.group)?;
        let builds = policy.dir.join(BUILDS);
        let disk = Disk::open(policy.disk, &builds, policy.disk_limits, policy.disk_free_bytes_min)?;
        if users != Users::Pool && disk.mounts() {
            return Err(ServeError::Unseen);
        }
        remains.discard_all(&builds)?;
        let network = FixedNetwork::open(&policy.network)?;
        let range = policy.uid_range.then(|| trial::range(&policy, users, &cgroups, &disk, &builds, &remains));
        policy.uid_range = range == Some(Ok(()));
        Ok(Arc::new(Self { users, policy, cgroups, disk, network, range, remains, builds, busy: Mutex::default(), _lock: lock }))
    }

    fn guarantees(&self) -> Vec<(String, String)> {
        let range = self.range.as_ref().map(|range| match range {
            Ok(()) => (UID_RANGE.to_owned(), format!("{RANGE_IDS} ids, and root of them, for each build that asks")),
            Err(why) => (UID_RANGE.to_owned(), format!("none: {why}")),
        });
        let guarantees = [
            ("cgroup".to_owned(), self.cgroups.describe()),
            ("disk".to_owned(), self.disk.describe()),
            ("fixed-output network".to_owned(), self.network.describe()),
            ("build users".to_owned(), self.users.describe().to_owned()),
            // A build whose filter cannot be loaded does not start.
            ("system calls".to_owned(), "no set-id bits, extended attributes, keyrings, io_uring, hypervisor sockets".to_owned()),
            ("landlock".to_owned(), landlock().to_owned()),
        ];
        guarantees.into_iter().chain(range).collect()
    }

    fn lacking(&self) -> BTreeSet<String> {
        self.range.iter().filter(|range| range.is_err()).map(|_| UID_RANGE.to_owned()).collect()
    }

    /// Takes a build user, unless another build has it.
    pub(super) fn take(&self, slot: u32) -> Option<Taken<'_>> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.insert(slot).then_some(Taken { host: self, slot })
    }
}

/// What Landlock adds to builds: it matters to those that share the host's network, whose abstract sockets no other namespace hides.
fn landlock() -> &'static str {
    let demanded = Ruleset::default().set_compatibility(CompatLevel::HardRequirement).scope(Scope::AbstractUnixSocket);
    match demanded.and_then(Ruleset::create) {
        Ok(_) => "the host's abstract sockets out of reach",
        Err(_) => "none: this kernel has no Landlock of version 6 or newer",
    }
}

/// A build user that is in use.
pub(super) struct Taken<'a> {
    host: &'a Host,
    slot: u32,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.host.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.slot);
    }
}
