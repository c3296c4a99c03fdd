//! A launcher without root: it makes a user namespace in which it is root, and a mount namespace beside it. What belongs to others is out
//! of its reach there, and so out of its builds'.
//!
//! Build users come from the user's subordinate ids where the machine has given it some (`/etc/subuid`, `newuidmap`); else every build
//! is, outside of its sandbox, the user itself: kept from the user's files and processes by namespaces alone.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Uid, User};

use crate::sandbox::HostId;

/// Whose ids builds have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Users {
    /// Kiln's pool of the machine's.
    Pool,
    /// The user's subordinate ones, which are 1 and up in the launcher's namespace.
    Subordinate,
    /// The launcher's own, all.
    One,
}

impl Users {
    /// Returns the ids of build user number `slot`, the first of which is `first`, as the launcher names them.
    pub(super) fn host_id(self, slot: u32, first: u32) -> HostId {
        match self {
            Self::Pool => HostId::of_slot(slot),
            Self::Subordinate => HostId::one(1 + slot.saturating_sub(first)),
            Self::One => HostId::one(0),
        }
    }

    /// Returns the ids of a build that requires `uid-range`. Only root has so many to give.
    pub(super) fn range(self, slot: u32) -> Option<HostId> {
        match self {
            Self::Pool => Some(HostId::range_of_slot(slot)),
            Self::Subordinate | Self::One => None,
        }
    }

    /// Returns the word by which it is handed on to the same program.
    fn word(self) -> &'static str {
        match self {
            Self::Pool => "pool",
            Self::Subordinate => "subordinate",
            Self::One => "one",
        }
    }

    /// Returns what was handed on.
    pub(super) fn from_word(word: &str) -> Option<Self> {
        [Self::Pool, Self::Subordinate, Self::One].into_iter().find(|users| users.word() == word)
    }

    /// Says it, for the farm and its people.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Pool => "one for each build",
            Self::Subordinate => "one for each build, of the worker's subordinate ids",
            Self::One => "the worker's own for all builds: without root, and without subordinate ids for each",
        }
    }
}

/// A launcher that cannot be without root on this machine.
#[derive(Debug, thiserror::Error)]
#[error("{operation} as user {uid}; {advice}")]
pub struct RootlessError {
    operation: &'static str,
    uid: u32,
    advice: &'static str,
    #[source]
    err: io::Error,
}

/// Makes this process root of a namespace of its own, with ids for `slots` builds if the machine has them, and executes its program again as
/// `launcher --users …`: its memory, which its children share, must belong to that namespace too, or the kernel refuses to let them be
/// looked at, and their ids mapped, once one of them has changed its user. It must have one thread. Returns only an error.
pub(super) fn enter(slots: u32) -> RootlessError {
    match in_namespace(slots) {
        Ok(users) => {
            let err = Command::new("/proc/self/exe").args(["launcher", "--users", users.word()]).exec();
            RootlessError { operation: "execute the launcher again", uid: 0, advice: "run the worker as root", err }
        }
        Err(err) => err,
    }
}

fn in_namespace(slots: u32) -> Result<Users, RootlessError> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let failed = |operation, advice| move |err| RootlessError { operation, uid, advice, err };
    let mapper = Mapper::start(uid, gid, slots);
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(io::Error::from)
        .map_err(failed("make a user namespace", "allow unprivileged user namespaces on this machine, or run the worker as root"))?;
    let mapped = failed("map the ids of a user namespace", "run the worker as root");
    let users = match mapper.and_then(Mapper::map) {
        Some(()) => Users::Subordinate,
        None => {
            // One id each can be mapped without help, but for groups nothing must then be gained by leaving one.
            let written = fs::write("/proc/self/setgroups", "deny")
                .and_then(|()| fs::write("/proc/self/uid_map", format!("0 {uid} 1")))
                .and_then(|()| fs::write("/proc/self/gid_map", format!("0 {gid} 1")));
            written.map_err(mapped)?;
            Users::One
        }
    };
    private_mounts().map_err(failed("prepare mounts", "run the worker as root"))?;
    Ok(users)
}

/// Terminals of its own: those of the machine can be given to no build user.
fn private_mounts() -> io::Result<()> {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let options = c"newinstance,mode=0620,ptmxmode=0666";
    Ok(mount("devpts", "/dev/pts", "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, options)?)
}

/// A process outside of the namespace, which alone may ask for subordinate ids to be mapped into it.
struct Mapper {
    process: std::process::Child,
}

impl Mapper {
    /// Starts it, if the user has enough subordinate ids.
    fn start(uid: u32, gid: u32, slots: u32) -> Option<Self> {
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
        let range = |file| find_range(&fs::read_to_string(file).unwrap_or_default(), user.as_deref(), uid, slots);
        let (uids, gids) = (range("/etc/subuid")?, range("/etc/subgid")?);
        let pid = std::process::id();
        let script = format!("read go && newuidmap {pid} 0 {uid} 1 1 {uids} {slots} && newgidmap {pid} 0 {gid} 1 1 {gids} {slots}");
        let process = Command::new("/bin/sh").args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().ok()?;
        Some(Self { process })
    }

    /// Lets it map; whether it could.
    fn map(mut self) -> Option<()> {
        let told = self.process.stdin.take()?.write_all(b"go\n");
        let ended = self.process.wait().ok()?;
        (told.is_ok() && ended.success()).then_some(())
    }
}

/// Returns the first id of a range of at least `count` that `/etc/subuid` or `/etc/subgid` gives to a user.
fn find_range(text: &str, name: Option<&str>, uid: u32, count: u32) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (owner, start, length) = (fields.next()?, fields.next()?.parse::<u32>().ok()?, fields.next()?.trim().parse::<u32>().ok()?);
        let own = Some(owner) == name || owner.parse() == Ok(uid);
        (own && length >= count).then_some(start)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ids_are_found_by_name_or_number() {
        let text = "root:1:2\nada:100000:65536\n1001:300000:8\n1001:400000:65536\nbroken\nx:y:z\n";
        let table = [
            (Some("ada"), 1000, 16, Some(100_000)),
            (None, 1001, 16, Some(400_000)),
            (None, 1001, 8, Some(300_000)),
            (Some("ada"), 1000, 70_000, None),
            (Some("bob"), 1002, 1, None),
        ];
        for (name, uid, count, want) in table {
            assert_eq!(find_range(text, name, uid, count), want, "{name:?} {uid} {count}");
        }
    }
}
