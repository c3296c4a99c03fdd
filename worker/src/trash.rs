//! The trash: trees that nobody needs any more, removed in the background.
//!
//! A tree is renamed into one directory (at once, whatever its size) and taken apart there by one thread, through directory
//! descriptors only: no path is ever resolved below a name that a builder chose, no link is followed, and what lies deep is first
//! moved up, so that a tree of any depth needs some thirty descriptors. Does not know what it removes.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fchmod, fstat, openat, renameat, unlinkat};
use rustix::io::Errno;

/// The trash of one worker. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Trash {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: OwnedFd,
    next: AtomicU64,
    wake: mpsc::Sender<Wake>,
}

/// What wakes the thread that empties the trash.
enum Wake {
    Sweep,
    Then(Box<dyn FnOnce() + Send>),
}

/// A tree that cannot be moved to the trash, or a trash that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("{operation} `{path}`")]
pub struct TrashError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    err: io::Error,
}

impl Trash {
    /// Opens the trash directory (made if missing) and starts removing what is in it.
    ///
    /// # Errors
    /// [`TrashError`] if the directory cannot be made or opened, or no thread can be started.
    pub fn open(dir: &Path) -> Result<Self, TrashError> {
        let error = |operation, err| TrashError { operation, path: dir.into(), err };
        private_dir(dir).map_err(|err| error("make trash directory", err))?;
        let fd = open_dir(rustix::fs::CWD, &c_name(dir).map_err(|err| error("open trash directory", err))?)
            .map_err(|err| error("open trash directory", err.into()))?;
        let cleaner = fd.try_clone().map_err(|err| error("open trash directory", err))?;
        let first =
            names(fd.as_fd(), usize::MAX).map_err(|err| error("list trash directory", err.into()))?.iter().filter_map(|n| number(n)).max();
        let (wake, woken) = mpsc::channel();
        std::thread::Builder::new()
            .name("kiln-trash".into())
            .spawn(move || {
                while let Ok(first) = woken.recv() {
                    // Several wake-ups at once want one sweep.
                    let wakes: Vec<_> = std::iter::once(first).chain(woken.try_iter()).collect();
                    if let Err(err) = empty(cleaner.as_fd()) {
                        tracing::warn!(%err, "empty the trash");
                    }
                    for wake in wakes {
                        match wake {
                            Wake::Sweep => {}
                            Wake::Then(work) => work(),
                        }
                    }
                }
            })
            .map_err(|err| error("start the thread that empties", err))?;
        let shared = Shared { dir: fd, next: AtomicU64::new(first.map_or(0, |n| n + 1)), wake };
        let trash = Self { shared: Arc::new(shared) };
        trash.sweep();
        Ok(trash)
    }

    /// Moves `name` out of `parent` and lets the background remove it. Nothing there is no error.
    ///
    /// # Errors
    /// [`TrashError`] if the rename fails, as between file systems.
    pub fn discard(&self, parent: impl AsFd, name: &CStr) -> Result<(), TrashError> {
        let target = self.fresh();
        match move_tree(parent.as_fd(), name, self.shared.dir.as_fd(), &target) {
            Ok(()) => self.sweep(),
            Err(Errno::NOENT) => {}
            Err(err) => {
                let path = PathBuf::from(name.to_string_lossy().into_owned());
                return Err(TrashError { operation: "move to the trash", path, err: err.into() });
            }
        }
        Ok(())
    }

    /// Does [`Trash::discard`] with everything in the directory `dir`.
    ///
    /// # Errors
    /// [`TrashError`] if the directory cannot be listed, or a rename fails.
    pub fn discard_all(&self, dir: &Path) -> Result<(), TrashError> {
        let error = |err| TrashError { operation: "list", path: dir.into(), err };
        let fd = open_dir(rustix::fs::CWD, &c_name(dir).map_err(error)?).map_err(|err| error(err.into()))?;
        for name in names(fd.as_fd(), usize::MAX).map_err(|err| error(err.into()))? {
            self.discard(fd.as_fd(), &name)?;
        }
        Ok(())
    }

    /// Does `work` in the background once everything that was discarded before is gone, or could not be removed.
    pub fn then(&self, work: impl FnOnce() + Send + 'static) {
        // As below.
        let _ = self.shared.wake.send(Wake::Then(Box::new(work)));
    }

    fn sweep(&self) {
        // The thread ends only after the last sender is gone, so that a failed send means shutdown.
        let _ = self.shared.wake.send(Wake::Sweep);
    }

    fn fresh(&self) -> CString {
        numbered(self.shared.next.fetch_add(1, Ordering::Relaxed), "t")
    }
}

/// Makes a directory that only its owner, who we are, may enter, with its parents; one that is there must be ours, nobody else may be able
/// to write it, or to put another in its place.
///
/// # Errors
/// The kernel's, or `PermissionDenied` if someone else owns or may write it, or all may write a directory above it.
pub fn private_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = owned_dir(dir)?;
    if mode & 0o077 != 0 {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Makes a directory, with its parents, and returns its mode; one that is there must be ours, and nobody else may be able to write it.
///
/// # Errors
/// As [`private_dir`].
pub fn owned_dir(dir: &Path) -> io::Result<u32> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let meta = std::fs::symlink_metadata(dir)?;
    let own = rustix::process::geteuid().as_raw();
    if !meta.is_dir() || meta.uid() != own || meta.mode() & 0o022 != 0 {
        let text = format!("`{}` must be a directory of user {own} that nobody else can write", dir.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    for above in std::fs::canonicalize(dir)?.ancestors().skip(1) {
        // With the sticky bit only their owners rename or remove what is in it.
        if std::fs::metadata(above)?.mode() & 0o1002 == 0o0002 {
            let text = format!("`{}` lies in `{}`, where everybody may rename it; use another place", dir.display(), above.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
    }
    Ok(meta.mode())
}

/// Renames a tree into another directory. Its top may be read-only, as store objects are: root does not mind, others must be able to
/// write what they move, because its `..` changes; it gets its mode back.
///
/// # Errors
/// The kernel's.
pub fn move_tree(from: BorrowedFd<'_>, name: &CStr, to: BorrowedFd<'_>, target: &CStr) -> rustix::io::Result<()> {
    match renameat(from, name, to, target) {
        Err(Errno::ACCESS) => {}
        other => return other,
    }
    let top = open_dir(from, name)?;
    let mode = Mode::from_raw_mode(fstat(&top)?.st_mode);
    fchmod(&top, mode | Mode::WUSR)?;
    renameat(from, name, to, target)?;
    fchmod(&top, mode)
}

/// Opens a directory below `parent` without following a link.
///
/// # Errors
/// The kernel's.
pub fn open_dir(parent: impl AsFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Returns a path as the kernel takes it.
///
/// # Errors
/// `InvalidInput` if it holds a NUL byte.
pub fn c_name(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).map_err(|err| io::Error::new(io::ErrorKind::InvalidInput, err))
}

/// Levels that are taken apart where they are; the directories below are moved up. Each holds a descriptor.
const LEVELS_MAX: u32 = 32;

/// Removes everything in `dir`.
fn empty(dir: BorrowedFd<'_>) -> io::Result<()> {
    let mut moved = 0u64;
    loop {
        let found = entries(dir, BATCH)?;
        if found.is_empty() {
            return Ok(());
        }
        let mut removed = 0usize;
        for entry in &found {
            match remove_tree(dir, entry, dir, LEVELS_MAX, &mut moved) {
                Ok(()) => removed += 1,
                Err(err) => tracing::warn!(name = %entry.name.to_string_lossy(), %err, "remove from the trash"),
            }
        }
        if removed == 0 {
            return Err(io::Error::other(format!("{} entries cannot be removed", found.len())));
        }
    }
}

/// Removes one entry of `parent` with all that is in it; what lies more than `levels` deeper is moved into the trash. What cannot be
/// removed does not keep its neighbours; the first error is returned in the end.
fn remove_tree(parent: BorrowedFd<'_>, entry: &Entry, trash: BorrowedFd<'_>, levels: u32, moved: &mut u64) -> rustix::io::Result<()> {
    if remove(parent, entry)? == Removal::Done {
        return Ok(());
    }
    if levels == 0 {
        return lift(parent, &entry.name, trash, moved);
    }
    let inside = open_dir(parent, &entry.name)?;
    if !rustix::process::geteuid().is_root() {
        // Store objects are read-only to their owner too.
        fchmod(&inside, Mode::RWXU)?;
    }
    loop {
        let children = entries(inside.as_fd(), BATCH)?;
        if children.is_empty() {
            return unlinkat(parent, &entry.name, AtFlags::REMOVEDIR);
        }
        let mut failed = None;
        let mut removed = 0usize;
        for child in children {
            match remove_tree(inside.as_fd(), &child, trash, levels - 1, moved) {
                Ok(()) => removed += 1,
                Err(err) => failed = failed.or(Some(err)),
            }
        }
        if let Some(err) = failed.filter(|_| removed == 0) {
            return Err(err);
        }
    }
}

#[derive(PartialEq, Eq)]
enum Removal {
    Done,
    /// It is a directory with something in it.
    NotEmpty,
}

/// Removes a file or an empty directory.
fn remove(dir: BorrowedFd<'_>, entry: &Entry) -> rustix::io::Result<Removal> {
    let mut refused = None;
    // Not asked of a directory; where the file system does not tell the kind, it is found out.
    if entry.kind != FileType::Directory {
        match unlinkat(dir, &entry.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(Removal::Done),
            Err(err @ (Errno::ISDIR | Errno::PERM)) => refused = Some(err),
            Err(err) => return Err(err),
        }
    }
    match unlinkat(dir, &entry.name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(Removal::Done),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(Removal::NotEmpty),
        Err(err) => Err(refused.unwrap_or(err)),
    }
}

/// Moves a directory up into the trash.
fn lift(inside: BorrowedFd<'_>, child: &CStr, trash: BorrowedFd<'_>, moved: &mut u64) -> rustix::io::Result<()> {
    loop {
        *moved += 1;
        match move_tree(inside, child, trash, numbered(*moved, "m").as_c_str()) {
            Ok(()) => return Ok(()),
            // The name is taken by a directory that an earlier sweep could not remove.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            Err(err) => return Err(err),
        }
    }
}

/// Names read from a directory at a time, so that one with ten million entries does not fill the memory. Each level of a tree may
/// hold so many.
const BATCH: usize = 4096;

/// Something in a directory.
struct Entry {
    name: CString,
    /// What the file system says that it is; some do not say.
    kind: FileType,
}

/// Up to `max` names in a directory, without `.` and `..`.
pub(crate) fn names(dir: BorrowedFd<'_>, max: usize) -> rustix::io::Result<Vec<CString>> {
    Ok(entries(dir, max)?.into_iter().map(|entry| entry.name).collect())
}

fn entries(dir: BorrowedFd<'_>, max: usize) -> rustix::io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if found.len() == max {
            break;
        }
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            found.push(Entry { name: entry.file_name().to_owned(), kind: entry.file_type() });
        }
    }
    Ok(found)
}

fn numbered(number: u64, prefix: &str) -> CString {
    CString::new(format!("{prefix}{number}")).expect("digits hold no NUL")
}

fn number(name: &CStr) -> Option<u64> {
    name.to_str().ok()?.strip_prefix('t')?.parse().ok()
}

#[cfg(test)]
mod race;

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::mkdirat;

    #[test]
    fn a23_a_tree_deeper_than_any_path_is_removed_and_a_link_is_not_followed() {
        let root = tempfile::tempdir().expect("temporary directory");
        let canary = root.path().join("canary");
        std::fs::write(&canary, "alive").expect("write canary");
        let trash_dir = root.path().join("trash");
        std::fs::create_dir(&trash_dir).expect("mkdir");
        let fd = open_dir(rustix::fs::CWD, &c_name(&trash_dir).expect("no NUL")).expect("open");
        let mut deep = fd.try_clone().expect("dup");
        for _ in 0..6000 {
            mkdirat(&deep, c"d", Mode::RWXU).expect("mkdir");
            rustix::fs::symlinkat(canary.as_path(), &deep, c"link").expect("symlink");
            deep = open_dir(&deep, c"d").expect("open");
        }
        empty(fd.as_fd()).expect("emptied");
        assert_eq!(names(fd.as_fd(), usize::MAX).expect("list"), Vec::<CString>::new());
        assert_eq!(std::fs::read_to_string(&canary).expect("read"), "alive");
    }

    #[test]
    fn what_cannot_be_removed_does_not_keep_its_neighbours() {
        let root = tempfile::tempdir().expect("temporary directory");
        let mut inside = root.path().to_owned();
        for level in ["t0", "a", "b"] {
            inside.push(level);
            std::fs::create_dir(&inside).expect("mkdir");
            (0..5000).for_each(|number| std::fs::write(inside.join(format!("file{number}")), "").expect("write"));
        }
        // A mount point cannot be removed, whoever asks.
        std::fs::create_dir(inside.join("busy")).expect("mkdir");
        let mount = rustix::mount::mount("tmpfs", inside.join("busy"), "tmpfs", rustix::mount::MountFlags::empty(), None);
        mount.expect("these tests run as root");
        let fd = open_dir(rustix::fs::CWD, &c_name(root.path()).expect("no NUL")).expect("open");
        let emptied = empty(fd.as_fd());
        rustix::mount::unmount(inside.join("busy"), rustix::mount::UnmountFlags::DETACH).expect("unmount");
        emptied.expect_err("a mount point is left");
        assert_eq!(
            names(open_dir(rustix::fs::CWD, &c_name(&inside).expect("no NUL")).expect("open").as_fd(), 10).expect("list"),
            [c"busy".to_owned()]
        );
        empty(fd.as_fd()).expect("emptied");
    }

    #[test]
    fn a07_a_directory_that_others_can_write_replace_or_prepare_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().expect("temporary directory");
        let open = root.path().join("open");
        std::fs::create_dir(&open).expect("mkdir");
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).expect("chmod");
        assert_eq!(private_dir(&open).expect_err("world-writable").kind(), io::ErrorKind::PermissionDenied);
        let below = open.join("above/dir");
        let refused = private_dir(&below).expect_err("below what is world-writable");
        assert!(refused.kind() == io::ErrorKind::PermissionDenied && refused.to_string().contains("everybody may rename it"), "{refused}");
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o1777)).expect("chmod");
        private_dir(&below).expect("a sticky directory keeps others from it");
        std::os::unix::fs::chown(&below, Some(65534), None).expect("chown");
        assert_eq!(private_dir(&below).expect_err("somebody else's").kind(), io::ErrorKind::PermissionDenied);
        std::fs::remove_dir(&below).expect("rmdir");
        std::os::unix::fs::symlink("/etc", &below).expect("symlink");
        private_dir(&below).expect_err("a link that was prepared");
    }
}
