//! Makes the tree that a builder left behind safe to keep: known types, the build's own inodes only, the worker's ownership, two modes,
//! one time, no extended attributes.
//!
//! Walks by directory descriptors and never follows a link, so that no name the builder chose is resolved twice. Runs only after
//! the build's group is empty. Does not read contents and does not move anything.
//! Source: Nix's `posix-fs-canonicalise.cc` and `registerOutputs`; SANDBOX.md items 33, 34.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kiln_wire::OutputName;
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chownat, fchmod, fchown, fgetxattr, flistxattr,
    fremovexattr, futimens, openat, statat, utimensat,
};
use rustix::io::Errno;

use crate::launcher::Owner;
use crate::trash::open_dir;

/// Directories below an output's root, as deep as a NAR may be (Nix's own bound since 2.34).
pub const DEPTH_MAX: usize = 64;

/// Extended attributes that the machine puts on files by itself and that no build can set. Nix leaves them too.
const XATTRS_IGNORED: [&[u8]; 3] = [b"security.selinux", b"system.nfs4_acl", b"security.csm"];

/// The outputs of one attempt while they are made canonical. Hard links are allowed among them and nowhere else.
#[derive(Debug)]
pub struct Canonical {
    uids: RangeInclusive<u32>,
    owner: Owner,
    seen: BTreeSet<(u64, u64)>,
    content_bytes: u64,
    content_bytes_max: u64,
}

/// A tree that is not taken. All but `Io` are the builder's fault.
#[derive(Debug, thiserror::Error)]
pub enum CanonicalError {
    /// There is nothing at the output's path.
    #[error("builder failed to produce output `{output}`")]
    Missing {
        /// Which output.
        output: OutputName,
    },
    /// The output's root belongs to someone else, or others may write it.
    #[error("suspicious ownership or permission on output `{output}` (owner {uid}, mode {mode:04o}); rejecting this build output")]
    Suspicious {
        /// Which output.
        output: OutputName,
        /// Who owns it.
        uid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// Something else than a file, directory or link.
    #[error("output `{output}`: `{path}` has unsupported type `{kind}`; only files, directories and symbolic links can be kept")]
    Unsupported {
        /// Which output.
        output: OutputName,
        /// Where in it.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// An inode that the build did not make, such as a hard link to an input.
    #[error("output `{output}`: invalid ownership of `{path}` (user {uid} is not the build's)")]
    Foreign {
        /// Which output.
        output: OutputName,
        /// Where in it.
        path: String,
        /// Who owns it.
        uid: u32,
    },
    /// Deeper than a NAR can be.
    #[error("output `{output}`: `{path}` lies more than {DEPTH_MAX} directories deep")]
    TooDeep {
        /// Which output.
        output: OutputName,
        /// Where in it.
        path: String,
    },
    /// More bytes than the job may make.
    #[error("outputs hold more than {limit_bytes} bytes, the job's output size limit")]
    TooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// The kernel refused.
    #[error("{operation} `{path}` of output `{output}`")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Which output.
        output: OutputName,
        /// Where in it.
        path: String,
        /// Why not.
        #[source]
        err: std::io::Error,
    },
}

/// A directory that is being walked: its listing and its name.
struct Level {
    fd: OwnedFd,
    entries: Dir,
    name: CString,
}

impl Canonical {
    /// Starts with the ids that the build ran under, who gets its outputs, and the job's output size limit.
    pub fn new(uids: RangeInclusive<u32>, owner: Owner, content_bytes_max: u64) -> Self {
        Self { uids, owner, seen: BTreeSet::new(), content_bytes: 0, content_bytes_max }
    }

    /// Makes the tree `name` in `dir` canonical.
    ///
    /// # Errors
    /// [`CanonicalError`] names the output, the place in it and the rule.
    pub fn output(&mut self, dir: BorrowedFd<'_>, name: &CStr, output: &OutputName) -> Result<(), CanonicalError> {
        let mut walk = Walk { output, stack: Vec::new() };
        let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Err(CanonicalError::Missing { output: output.clone() }),
            Err(err) => return Err(walk.io("stat", name, err)),
        };
        let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        let mine = self.uids.contains(&stat.st_uid) || self.seen.contains(&inode(&stat));
        if !mine || (!is_link && stat.st_mode & 0o022 != 0) {
            return Err(CanonicalError::Suspicious { output: output.clone(), uid: stat.st_uid, mode: stat.st_mode & 0o7777 });
        }
        self.entry(&mut walk, dir, name)?;
        while let Some(level) = walk.stack.last_mut() {
            let parent = match level.entries.next() {
                Some(entry) => entry.and_then(|entry| {
                    let found = entry.file_name().to_owned();
                    level.fd.as_fd().try_clone_to_owned().map(|fd| (fd, found)).map_err(|_| Errno::MFILE)
                }),
                None => {
                    walk.stack.pop();
                    continue;
                }
            };
            let (fd, found) = parent.map_err(|err| walk.io("list", c"", err))?;
            if !matches!(found.to_bytes(), b"." | b"..") {
                self.entry(&mut walk, fd.as_fd(), &found)?;
            }
        }
        Ok(())
    }

    /// Makes one entry canonical; a directory is put on the stack.
    fn entry(&mut self, walk: &mut Walk<'_>, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), CanonicalError> {
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|err| walk.io("stat", name, err))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let unsupported = match kind {
            FileType::RegularFile | FileType::Directory | FileType::Symlink => None,
            FileType::Fifo => Some("fifo"),
            FileType::Socket => Some("socket"),
            FileType::CharacterDevice => Some("character device"),
            FileType::BlockDevice => Some("block device"),
            _ => Some("unknown"),
        };
        if let Some(kind) = unsupported {
            return Err(CanonicalError::Unsupported { output: walk.output.clone(), path: walk.path(name), kind });
        }
        if self.seen.contains(&inode(&stat)) {
            return self.count(&stat, kind);
        }
        if !self.uids.contains(&stat.st_uid) {
            return Err(CanonicalError::Foreign { output: walk.output.clone(), path: walk.path(name), uid: stat.st_uid });
        }
        self.count(&stat, kind)?;
        if kind == FileType::Symlink {
            set_link(dir, name, self.owner).map_err(|err| walk.io("make canonical", name, err))?;
        } else {
            let fd = open_entry(dir, name, kind).map_err(|err| walk.io("open", name, err))?;
            let opened = rustix::fs::fstat(&fd).map_err(|err| walk.io("stat", name, err))?;
            // Nothing of the build lives any more, so that a difference means an attack and not a race to be tried again.
            if inode(&opened) != inode(&stat) {
                return Err(CanonicalError::Foreign { output: walk.output.clone(), path: walk.path(name), uid: opened.st_uid });
            }
            set_inode(fd.as_fd(), kind, stat.st_mode, self.owner).map_err(|err| walk.io("make canonical", name, err))?;
            if kind == FileType::Directory {
                walk.enter(fd, name)?;
            }
        }
        if stat.st_nlink > 1 && kind != FileType::Directory {
            self.seen.insert(inode(&stat));
        }
        Ok(())
    }

    /// Adds to the size of all outputs, by what the NAR will hold: a sparse file counts whole.
    fn count(&mut self, stat: &Stat, kind: FileType) -> Result<(), CanonicalError> {
        if kind == FileType::RegularFile {
            self.content_bytes = self.content_bytes.saturating_add(u64::try_from(stat.st_size).unwrap_or(u64::MAX));
        }
        if self.content_bytes > self.content_bytes_max {
            return Err(CanonicalError::TooLarge { limit_bytes: self.content_bytes_max });
        }
        Ok(())
    }
}

struct Walk<'a> {
    output: &'a OutputName,
    stack: Vec<Level>,
}

impl Walk<'_> {
    fn enter(&mut self, fd: OwnedFd, name: &CStr) -> Result<(), CanonicalError> {
        if self.stack.len() >= DEPTH_MAX {
            return Err(CanonicalError::TooDeep { output: self.output.clone(), path: self.path(name) });
        }
        let entries = Dir::read_from(&fd).map_err(|err| self.io("list", name, err))?;
        self.stack.push(Level { fd, entries, name: name.to_owned() });
        Ok(())
    }

    /// Where an entry lies, for people. Cut, because the names are the builder's.
    fn path(&self, name: &CStr) -> String {
        let parts = self.stack.iter().map(|level| level.name.as_c_str()).chain([name]);
        let text: Vec<_> = parts.map(|part| part.to_string_lossy()).collect();
        text.join("/").chars().take(300).collect()
    }

    fn io(&self, operation: &'static str, name: &CStr, err: Errno) -> CanonicalError {
        CanonicalError::Io { operation, output: self.output.clone(), path: self.path(name), err: err.into() }
    }
}

fn inode(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn open_entry(dir: BorrowedFd<'_>, name: &CStr, kind: FileType) -> rustix::io::Result<OwnedFd> {
    if kind == FileType::Directory {
        return open_dir(dir, name);
    }
    // Should the entry be a device after all, opening it must neither wait nor make it our terminal.
    openat(dir, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
}

fn set_link(dir: BorrowedFd<'_>, name: &CStr, owner: Owner) -> rustix::io::Result<()> {
    chownat(dir, name, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)), AtFlags::SYMLINK_NOFOLLOW)?;
    utimensat(dir, name, &MTIME, AtFlags::SYMLINK_NOFOLLOW)
}

/// Ownership first: the kernel clears setuid bits then, and an owner could set them again afterwards.
fn set_inode(fd: BorrowedFd<'_>, kind: FileType, mode: u32, owner: Owner) -> rustix::io::Result<()> {
    fchown(fd, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
    strip_xattrs(fd)?;
    let executable = kind == FileType::Directory || mode & 0o100 != 0;
    fchmod(fd, Mode::from_raw_mode(if executable { 0o555 } else { 0o444 }))?;
    futimens(fd, &MTIME)
}

fn strip_xattrs(fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let mut buffer = [0u8; 4096];
    let names = match flistxattr(fd, &mut buffer) {
        Ok(size) => buffer[..size].to_vec(),
        Err(Errno::NOTSUP) => return Ok(()),
        Err(Errno::RANGE) => {
            // The kernel's bound on a list.
            let mut large = vec![0u8; 64 << 10];
            let size = flistxattr(fd, &mut large[..])?;
            large.truncate(size);
            large
        }
        Err(err) => return Err(err),
    };
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty() && !XATTRS_IGNORED.contains(name)) {
        match fremovexattr(fd, name) {
            Ok(()) | Err(Errno::NODATA) => {}
            // A file system may list what it does not let go; only what can be read matters.
            Err(err) if fgetxattr(fd, name, &mut [0u8; 0]).is_ok() => return Err(err),
            Err(_) => {}
        }
    }
    Ok(())
}

/// The epoch plus one second, as every store object has it.
pub const MTIME: Timestamps =
    Timestamps { last_access: Timespec { tv_sec: 1, tv_nsec: 0 }, last_modification: Timespec { tv_sec: 1, tv_nsec: 0 } };

#[cfg(test)]
mod tests;
