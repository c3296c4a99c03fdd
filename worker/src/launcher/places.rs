//! The directories of one worker, and whose they are.
//!
//! The worker's own directory and those of running builds belong to the launcher, so that nothing there can be exchanged; what the worker
//! writes lies in directories of its own below. Where worker and launcher are one user, all of it is that user's.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Gid, Mode, OFlags, Uid, chownat, fchmod, fchown, flock, fstat, open, statat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::trash::{c_name, names, open_dir};

/// The user that a worker runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User of the host.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

impl Owner {
    /// Returns the user of this process.
    pub fn own() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    fn is_launcher(self) -> bool {
        self == Self::own()
    }
}

/// Directories of running builds, below the worker's own.
pub(super) const BUILDS: &str = "build";
/// What is left of builds, on its way to nothing.
pub(super) const REMAINS: &str = "remains";
/// Where builds find their inputs: the worker's store cache.
pub const STORE: &str = "store";
/// Everything else of the worker's: its files lie in these directories and nowhere else.
pub const PRIVATE: [&str; 6] = ["builtin", "incoming", "logs", "spool", "state", "trash"];

/// A directory that cannot be prepared.
#[derive(Debug, thiserror::Error)]
#[error("{operation} `{path}`")]
pub struct PlaceError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    err: io::Error,
}

/// Held by the launcher that works in a directory.
const LOCK: &str = "launcher.lock";
/// Longest wait for the launcher of a worker that has just died: it kills its builds and removes their control groups.
const PREDECESSOR_MAX: Duration = Duration::from_secs(30);

/// Waits until no other launcher works in `dir`, and keeps others out of it while the result lives.
pub(super) fn lock(dir: &Path) -> Result<OwnedFd, PlaceError> {
    let path = dir.join(LOCK);
    let failed = |operation, err: io::Error| PlaceError { operation, path: path.clone(), err };
    fs::create_dir_all(dir).map_err(|err| failed("make the directory of", err))?;
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(|err| failed("open the lock", err.into()))?;
    let until = Instant::now() + PREDECESSOR_MAX;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => thread::sleep(Duration::from_millis(10)),
            Err(Errno::WOULDBLOCK) => return Err(failed("wait for the lock", io::Error::other("another worker runs in this directory"))),
            Err(err) => return Err(failed("take the lock", err.into())),
        }
    }
}

/// Makes what is missing below `dir`, and gives the worker what is its own.
pub(super) fn prepare(dir: &Path, owner: Owner) -> Result<(), PlaceError> {
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |err| PlaceError { operation, path, err }
    };
    fs::create_dir_all(dir).map_err(failed("make the directory", dir))?;
    // The worker passes through by its group; a build's first process, which has the launcher's ids and no rights, by the launcher's.
    let (own, group) = (Owner::own(), Gid::from_raw(owner.gid));
    let launchers = if owner.is_launcher() { 0o700 } else { 0o710 };
    set(dir, own.uid, group, launchers).map_err(failed("take the directory", dir))?;
    for name in [BUILDS, REMAINS] {
        let path = dir.join(name);
        make(&path).map_err(failed("make the directory", &path))?;
        set(&path, own.uid, group, if name == BUILDS { launchers } else { 0o700 }).map_err(failed("take the directory", &path))?;
    }
    for name in PRIVATE.into_iter().chain([STORE]) {
        let path = dir.join(name);
        make(&path).map_err(failed("make the directory", &path))?;
        hand_over(&path, owner).map_err(failed("hand over the directory", &path))?;
        let (group, mode) = if name == STORE { (Gid::from_raw(own.gid), 0o710) } else { (group, 0o700) };
        set(&path, owner.uid, group, mode).map_err(failed("hand over the directory", &path))?;
    }
    Ok(())
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Sets owner and mode of a directory; a link there is refused.
fn set(path: &Path, uid: u32, group: Gid, mode: u32) -> io::Result<()> {
    let dir = open_dir(CWD, &c_name(path)?)?;
    fchown(&dir, Some(Uid::from_raw(uid)), Some(group))?;
    Ok(fchmod(&dir, Mode::from_raw_mode(mode))?)
}

/// Gives everything in `dir` to `owner`, if it was somebody else's: the worker's user was changed. Only what belonged to the former
/// owner of `dir` is given, because that one may have linked a stranger's file into it.
fn hand_over(dir: &Path, owner: Owner) -> io::Result<()> {
    let former = fs::symlink_metadata(dir)?.uid();
    if former == owner.uid {
        return Ok(());
    }
    let mut pending = VecDeque::from([open_dir(CWD, &c_name(dir)?)?]);
    while let Some(dir) = pending.pop_front() {
        for name in names(dir.as_fd(), usize::MAX)? {
            let stat = statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            if stat.st_uid != former {
                continue;
            }
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let inside = open_dir(&dir, &name)?;
                give(inside.as_fd(), former, owner)?;
                pending.push_back(inside);
            } else {
                chownat(&dir, &name, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)), AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
    }
    Ok(())
}

fn give(dir: BorrowedFd<'_>, former: u32, owner: Owner) -> io::Result<()> {
    if fstat(dir)?.st_uid == former {
        fchown(dir, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn the_worker_gets_what_is_its_own_and_nothing_else() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let dir = dir.path().join("w");
        let other = Owner { uid: 4_000_001, gid: 4_000_002 };
        prepare(&dir, other).expect("these tests run as root");
        let table = [
            (".", 0, 4_000_002, 0o710),
            (BUILDS, 0, 4_000_002, 0o710),
            (REMAINS, 0, 4_000_002, 0o700),
            (STORE, 4_000_001, 0, 0o710),
            ("state", 4_000_001, 4_000_002, 0o700),
        ];
        for (name, uid, gid, mode) in table {
            let meta = fs::metadata(dir.join(name)).expect(name);
            assert_eq!((meta.uid(), meta.gid(), meta.permissions().mode() & 0o7777), (uid, gid, mode), "{name}");
        }
    }

    #[test]
    fn a_change_of_user_hands_over_what_the_former_had_and_no_strangers_file() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let dir = dir.path().join("w");
        let (first, second) = (Owner { uid: 4_000_001, gid: 4_000_001 }, Owner { uid: 4_000_003, gid: 4_000_003 });
        prepare(&dir, first).expect("these tests run as root");
        let secret = dir.join("secret");
        fs::write(&secret, "of root").expect("write");
        let below = dir.join("logs/below");
        fs::create_dir(&below).expect("mkdir");
        fs::write(below.join("mine"), "of the first").expect("write");
        fs::hard_link(&secret, below.join("linked")).expect("link");
        symlink(&secret, below.join("pointer")).expect("link");
        for name in ["logs/below", "logs/below/mine", "logs/below/pointer"] {
            std::os::unix::fs::lchown(dir.join(name), Some(first.uid), Some(first.gid)).expect("chown");
        }
        prepare(&dir, second).expect("these tests run as root");
        for (name, uid) in [("logs/below", second.uid), ("logs/below/mine", second.uid), ("logs/below/pointer", second.uid), ("secret", 0)]
        {
            assert_eq!(fs::symlink_metadata(dir.join(name)).expect(name).uid(), uid, "{name}");
        }
    }
}
