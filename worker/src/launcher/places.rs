//! The directories of one worker, and whose they are.
//!
//! The worker's own directory and those of running builds belong to the launcher, so that nothing there can be exchanged; what the worker
//! writes lies in directories of its own below. Where worker and launcher are one user, all of it is that user's.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Gid, Mode, OFlags, Uid, chownat, fchmod, fchown, flock, fstat, open, openat, statat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::sandbox::HostId;
use crate::trash::{Trash, TrashError, c_name, names, open_dir};

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
pub const PRIVATE: [&str; 7] = ["builtin", "incoming", "links", "logs", "spool", "state", "trash"];

/// Of those, what holds nothing that is worth handing over when the worker's user was changed.
const PASSING: [&str; 4] = ["builtin", "incoming", "spool", "trash"];

/// A directory that cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The kernel refuses.
    #[error("{operation} `{path}`")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Which directory.
        path: PathBuf,
        /// Why not.
        #[source]
        err: io::Error,
    },
    /// Somebody else made it, who may have put anything there.
    #[error("use `{path}`: it belongs to user {uid}; remove it, give it to the user who starts the worker, or choose another `dir`")]
    Stranger {
        /// Which directory.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// What is to go cannot be moved away.
    #[error(transparent)]
    Trash(#[from] TrashError),
}

/// Held by the launcher that works in a directory.
const LOCK: &str = "launcher.lock";
/// Longest wait for the launcher of a worker that has just died: it kills its builds, finishes with outputs that it was handing over, and
/// removes control groups, which takes a busy machine its time.
const PREDECESSOR_MAX: Duration = Duration::from_secs(300);
/// After this long, people are told that there is something to wait for.
const PREDECESSOR_QUIET: Duration = Duration::from_secs(2);

/// Waits until no other launcher works in `dir`, and keeps others out of it while the result lives.
pub(super) fn lock(dir: &Path, owner: Owner) -> Result<OwnedFd, PlaceError> {
    let path = dir.join(LOCK);
    let failed = |operation, err: io::Error| PlaceError::Io { operation, path: path.clone(), err };
    fs::create_dir_all(dir).map_err(|err| failed("make the directory of", err))?;
    known(dir, owner)?;
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(|err| failed("open the lock", err.into()))?;
    let start = Instant::now();
    let until = start + PREDECESSOR_MAX;
    let mut told = false;
    loop {
        if !told && start.elapsed() > PREDECESSOR_QUIET {
            tracing::warn!(dir = %dir.display(), "waits for the launcher of another worker in this directory to end");
            told = true;
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => thread::sleep(Duration::from_millis(10)),
            Err(Errno::WOULDBLOCK) => return Err(failed("wait for the lock", io::Error::other("another worker runs in this directory"))),
            Err(err) => return Err(failed("take the lock", err.into())),
        }
    }
}

/// Makes what is missing below `dir`, gives the worker what is its own, and returns where what is left of builds goes.
pub(super) fn prepare(dir: &Path, owner: Owner) -> Result<Trash, PlaceError> {
    // The worker passes through by its group; a build's first process, which has the launcher's ids and no rights, by the launcher's.
    let (own, group) = (Owner::own(), Gid::from_raw(owner.gid));
    let launchers = if owner.is_launcher() { 0o700 } else { 0o710 };
    set(dir, own.uid, group, launchers).map_err(failed("take the directory", dir))?;
    for name in [BUILDS, REMAINS] {
        let path = dir.join(name);
        make(&path).map_err(failed("make the directory", &path))?;
        known(&path, owner)?;
        set(&path, own.uid, group, if name == BUILDS { launchers } else { 0o700 }).map_err(failed("take the directory", &path))?;
    }
    let remains = Trash::open(&dir.join(REMAINS))?;
    for name in PRIVATE.into_iter().chain([STORE]) {
        let path = dir.join(name);
        make(&path).map_err(failed("make the directory", &path))?;
        let former = known(&path, owner)?;
        if former != owner.uid && PASSING.contains(&name) {
            remains.discard_all(&path)?;
        } else if former != owner.uid {
            hand_over(&path, former, owner, &remains)?;
        }
        let (group, mode) = if name == STORE { (Gid::from_raw(own.gid), 0o710) } else { (group, 0o700) };
        set(&path, owner.uid, group, mode).map_err(failed("hand over the directory", &path))?;
    }
    Ok(remains)
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PlaceError {
    let path = path.to_owned();
    move |err| PlaceError::Io { operation, path, err }
}

/// Returns whose a directory is, if it was made by this worker under any user: what others made may hold anything.
fn known(path: &Path, owner: Owner) -> Result<u32, PlaceError> {
    let uid = fs::metadata(path).map_err(failed("look at", path))?.uid();
    let ours = uid == Owner::own().uid || uid == owner.uid || HostId::is_of_worker(uid);
    if ours { Ok(uid) } else { Err(PlaceError::Stranger { path: path.to_owned(), uid }) }
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

/// Gives what the `former` user has in `dir` to `owner`: the worker's user was changed. What is somebody else's goes, because the worker
/// could not remove it, and because the former user may have linked a stranger's file. `dir` itself is given last, by the caller, so
/// that what was interrupted is begun again.
fn hand_over(dir: &Path, former: u32, owner: Owner, remains: &Trash) -> Result<(), PlaceError> {
    let io_failed = failed("hand over the directory", dir);
    let given = c_name(dir).and_then(|name| Ok(open_dir(CWD, &name)?)).and_then(|fd| Ok((names(fd.as_fd(), usize::MAX)?, fd)));
    let (entries, fd) = given.map_err(io_failed)?;
    for name in entries {
        if !give(fd.as_fd(), &name, former, owner).map_err(failed("hand over what is in", dir))? {
            remains.discard(&fd, &name)?;
        }
    }
    Ok(())
}

/// Gives one entry with all that is in it, contents first; whether it is the owner's now. Trees here are as deep as a store object may be.
fn give(parent: BorrowedFd<'_>, name: &CStr, former: u32, owner: Owner) -> io::Result<bool> {
    let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if stat.st_uid != former && stat.st_uid != owner.uid {
        return Ok(false);
    }
    let (uid, gid) = (Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)));
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        let inside = open_dir(parent, name)?;
        for name in names(inside.as_fd(), usize::MAX)? {
            if !give(inside.as_fd(), &name, former, owner)? {
                return Ok(false);
            }
        }
        fchown(&inside, uid, gid)?;
    } else {
        // Not what the name may mean by now.
        let file = openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let opened = fstat(&file)?;
        if opened.st_uid != former && opened.st_uid != owner.uid {
            return Ok(false);
        }
        chownat(&file, c"", uid, gid, AtFlags::EMPTY_PATH)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    /// The users of two workers.
    fn users() -> [Owner; 2] {
        [3, 4].map(HostId::of_worker).map(|HostId { uid, gid, .. }| Owner { uid, gid })
    }

    #[test]
    fn the_worker_gets_what_is_its_own_and_nothing_else() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let dir = dir.path().join("w");
        let [Owner { uid, gid }, _] = users();
        fs::create_dir(&dir).expect("mkdir");
        prepare(&dir, Owner { uid, gid }).expect("these tests run as root");
        let table =
            [(".", 0, gid, 0o710), (BUILDS, 0, gid, 0o710), (REMAINS, 0, gid, 0o700), (STORE, uid, 0, 0o710), ("state", uid, gid, 0o700)];
        for (name, uid, gid, mode) in table {
            let meta = fs::metadata(dir.join(name)).expect(name);
            assert_eq!((meta.uid(), meta.gid(), meta.permissions().mode() & 0o7777), (uid, gid, mode), "{name}");
        }
    }

    #[test]
    fn a_change_of_user_hands_over_what_the_former_had_and_no_strangers_file() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let dir = dir.path().join("w");
        let [first, second] = users();
        fs::create_dir(&dir).expect("mkdir");
        prepare(&dir, first).expect("these tests run as root");
        let secret = dir.join("secret");
        fs::write(&secret, "of root").expect("write");
        let made = |path: &str| {
            let path = dir.join(path);
            fs::create_dir_all(&path).expect("mkdir");
            fs::write(path.join("mine"), "of the first").expect("write");
            for path in [path.join("mine"), path] {
                std::os::unix::fs::lchown(path, Some(first.uid), Some(first.gid)).expect("chown");
            }
        };
        // More directories than a process has descriptors.
        (0..1500).for_each(|number| made(&format!("store/{number}")));
        made("logs/good");
        made("logs/bad");
        made("spool/rest");
        fs::hard_link(&secret, dir.join("logs/bad/linked")).expect("link");
        symlink(&secret, dir.join("logs/good/pointer")).expect("link");
        std::os::unix::fs::lchown(dir.join("logs/good/pointer"), Some(first.uid), Some(first.gid)).expect("chown");
        prepare(&dir, second).expect("these tests run as root");
        for name in ["store/0", "store/1499/mine", "logs/good", "logs/good/mine", "logs/good/pointer"] {
            assert_eq!(fs::symlink_metadata(dir.join(name)).expect(name).uid(), second.uid, "{name}");
        }
        assert_eq!(fs::symlink_metadata(&secret).expect("it stays").uid(), 0);
        for name in ["logs/bad", "spool/rest"] {
            assert!(!dir.join(name).exists(), "{name}");
        }
    }

    #[test]
    fn what_a_stranger_has_made_is_not_used() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let [owner, _] = users();
        prepare(dir.path(), owner).expect("these tests run as root");
        for place in [dir.path().to_owned(), dir.path().join("store")] {
            std::os::unix::fs::chown(&place, Some(1234), None).expect("chown");
            let refused = lock(dir.path(), owner).map(drop).and_then(|()| prepare(dir.path(), owner).map(drop));
            assert!(matches!(refused, Err(PlaceError::Stranger { uid: 1234, .. })), "{}: {refused:?}", place.display());
            std::os::unix::fs::chown(&place, Some(0), None).expect("chown");
        }
    }
}
