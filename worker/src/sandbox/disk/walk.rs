//! Adds up what a directory holds on its disk, as `du` does: blocks, not sizes, so that a hole counts for nothing; a file with several
//! names once; and files that were deleted and are still open.
//!
//! The tree belongs to a running build, which may do anything to it meanwhile: everything goes by directory descriptor, no link is
//! followed, nothing is opened but directories. What lies deep is remembered by the kernel's own handle and not by its path, so that a
//! tree of any depth needs some sixty descriptors.
#![allow(unsafe_code)]

use std::collections::HashSet;
use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};

use super::Used;

/// Levels that are gone down by descriptor.
const LEVELS_MAX: u32 = 64;
/// The kernel's most bytes of a handle.
const HANDLE_BYTES_MAX: usize = 128;

/// Returns what the tree at `root` holds. Stops counting once it has more than `inodes_max` files and directories.
///
/// # Errors
/// The kernel's, if the root itself cannot be looked at. What vanishes meanwhile is no error.
pub(super) fn measure(root: BorrowedFd<'_>, inodes_max: u64, processes: Option<&Path>) -> io::Result<Used> {
    let stat = fstat(root)?;
    let mut count = Count { device: stat.st_dev, inodes_max, linked: HashSet::new(), used: Used::default(), deep: Vec::new() };
    count.add(&stat);
    count.directory(root, 0)?;
    while let Some(handle) = count.deep.pop() {
        // It was removed meanwhile.
        let Ok(dir) = handle.open(root) else { continue };
        let _ = count.directory(dir.as_fd(), 0);
    }
    processes.iter().for_each(|list| count.deleted(list));
    Ok(count.used)
}

struct Count {
    device: u64,
    inodes_max: u64,
    /// Files with several names, by inode number.
    linked: HashSet<u64>,
    used: Used,
    deep: Vec<Handle>,
}

impl Count {
    fn add(&mut self, stat: &Stat) {
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !directory && stat.st_nlink > 1 && !self.linked.insert(stat.st_ino) {
            return;
        }
        self.used.inodes += 1;
        self.used.bytes = self.used.bytes.saturating_add(stat.st_blocks.unsigned_abs().saturating_mul(BLOCK_BYTES));
    }

    fn is_full(&self) -> bool {
        self.used.inodes > self.inodes_max
    }

    fn directory(&mut self, dir: BorrowedFd<'_>, level: u32) -> io::Result<()> {
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(stat) = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if stat.st_dev != self.device {
                continue;
            }
            self.add(&stat);
            if self.is_full() {
                return Ok(());
            }
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                self.below(dir, name, level);
            }
        }
        Ok(())
    }

    fn below(&mut self, dir: BorrowedFd<'_>, name: &CStr, level: u32) {
        if level < LEVELS_MAX {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let Ok(dir) = openat(dir, name, flags, Mode::empty()) {
                let _ = self.directory(dir.as_fd(), level + 1);
            }
        } else if let Ok(handle) = Handle::of(dir, name) {
            self.deep.push(handle);
        }
        // Without handles, as on overlayfs, what lies deeper is not counted; the floor of the whole disk remains.
    }

    /// Adds what the processes listed in `list` hold open although it has no name any more.
    fn deleted(&mut self, list: &Path) {
        let pids = fs::read_to_string(list).unwrap_or_default();
        for pid in pids.lines().filter(|pid| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit())) {
            let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
            for link in open.flatten() {
                // Follows the kernel's own link to the open file, without opening it.
                let Ok(file) = fs::metadata(link.path()) else { continue };
                let deleted = file.is_file() && file.nlink() == 0 && file.dev() == self.device;
                if deleted && self.linked.insert(file.ino()) {
                    self.used.inodes += 1;
                    self.used.bytes = self.used.bytes.saturating_add(file.blocks().saturating_mul(BLOCK_BYTES));
                }
            }
        }
    }
}

/// What `st_blocks` counts.
const BLOCK_BYTES: u64 = 512;

/// The kernel's name for a directory, whatever its path.
struct Handle {
    bytes: [u64; (HANDLE_BYTES_MAX + 8) / 8],
}

impl Handle {
    fn of(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Self> {
        let mut handle = Self { bytes: [0; (HANDLE_BYTES_MAX + 8) / 8] };
        // The first four bytes tell the room behind the head, which is of eight bytes.
        handle.bytes[0] = u64::from_ne_bytes({
            let mut head = [0; 8];
            head[..4].copy_from_slice(&(HANDLE_BYTES_MAX as u32).to_ne_bytes());
            head
        });
        let mut mount = 0;
        // SAFETY: the name ends with NUL; the handle has the head and as much room behind it as the head says, aligned as the head is.
        let done = unsafe { libc::name_to_handle_at(dir.as_raw_fd(), name.as_ptr(), handle.bytes.as_mut_ptr().cast(), &raw mut mount, 0) };
        if done == 0 { Ok(handle) } else { Err(io::Error::last_os_error()) }
    }

    /// Opens it on the file system that `on` lies on.
    fn open(mut self, on: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: the handle is one that the kernel wrote.
        let fd = unsafe { libc::open_by_handle_at(on.as_raw_fd(), self.bytes.as_mut_ptr().cast(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor, which nobody else knows.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, SeekFrom, Write as _};

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        fs::File::open(path).expect("open").into()
    }

    #[test]
    fn blocks_are_counted_once_whatever_the_names_holes_and_depth() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (root, inside) = (open(dir.path()), dir.path().join("d"));
        let used = || measure(root.as_fd(), u64::MAX, None).expect("measure");
        let empty = used();
        assert_eq!(empty.inodes, 1);
        fs::create_dir(&inside).expect("mkdir");
        fs::write(inside.join("a"), vec![1; 1 << 20]).expect("write");
        fs::hard_link(inside.join("a"), dir.path().join("b")).expect("link");
        std::os::unix::fs::symlink("/etc", dir.path().join("c")).expect("link");
        let mut sparse = fs::File::create(inside.join("hole")).expect("create");
        sparse.seek(SeekFrom::Start(1 << 40)).and_then(|_| sparse.write_all(b"x")).expect("write");
        sparse.sync_all().expect("sync");
        let after = used();
        assert_eq!(after.inodes, 5, "the root, a directory, two files, a link");
        assert!((1 << 20..1 << 21).contains(&(after.bytes - empty.bytes)), "{after:?}");
        // Deeper than any path, and than all descriptors of a process.
        let mut at = open(&inside);
        for _ in 0..1500 {
            rustix::fs::mkdirat(&at, "deep", Mode::RWXU).expect("mkdir");
            at = openat(&at, "deep", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).expect("open");
        }
        rustix::fs::openat(&at, "last", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).expect("create");
        assert_eq!(used().inodes, after.inodes + 1501);
        assert_eq!(measure(root.as_fd(), 100, None).expect("measure").inodes, 101, "no more than it takes to know");
        crate::trash::Trash::open(&dir.path().join("trash")).expect("a trash").discard(&root, c"d").expect("discard");
    }

    #[test]
    fn a_deleted_file_counts_while_somebody_has_it_open() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = open(dir.path());
        let mut file = fs::File::create(dir.path().join("gone")).expect("create");
        file.write_all(&vec![1; 1 << 20]).and_then(|()| file.sync_all()).expect("write");
        fs::remove_file(dir.path().join("gone")).expect("remove");
        let list = tempfile::NamedTempFile::new().expect("temporary file");
        fs::write(list.path(), format!("{}\nself\n../1\n", std::process::id())).expect("write");
        let without = measure(root.as_fd(), u64::MAX, None).expect("measure");
        let with = measure(root.as_fd(), u64::MAX, Some(list.path())).expect("measure");
        assert_eq!(with.inodes, without.inodes + 1);
        assert!(with.bytes >= without.bytes + (1 << 20), "{with:?}");
    }
}
