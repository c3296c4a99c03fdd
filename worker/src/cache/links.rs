//! Shared files: regular files of the cache's trees that hold the same bytes are one file on disk, as Nix's `optimise-store` makes them.
//!
//! A directory beside the store holds one name for each of them, made of the hash of the bytes and of whether it is executable: a link to
//! the file itself. A tree is shared before it is put in place, while nobody else sees it. What is linked to is read and compared
//! first, whatever its name says, so that a file which a disk or a power loss damaged is replaced here and spreads to no other tree;
//! therefore a restart has nothing to read. What cannot be linked (a file may have so many names only; a full directory) stays a file of its
//! own. Does not know which paths there are, and never fails a tree.
//! Source: Nix's `optimise-store.cc`.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fchmod, fstat, futimens, linkat, openat, renameat, statat, unlinkat};
use rustix::io::{Errno, pread};

use crate::outputs::canonical::{DEPTH_MAX, MTIME};
use crate::trash::{names, open_dir};

/// The directory of shared files.
#[derive(Debug)]
pub struct Links {
    dir: OwnedFd,
    temporary_next: AtomicU64,
    /// Held where a file gets its second name, or loses its last but ours.
    counting: Mutex<()>,
}

/// What sharing made of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    /// Bytes of those files of the tree that are shared, or may be by later ones.
    pub bytes: u64,
    /// How many of these nobody had before.
    pub new_bytes: u64,
}

/// What a sweep found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Bytes of files that some tree has.
    pub kept_bytes: u64,
    /// Bytes of those that none had any more, which are gone.
    pub freed_bytes: u64,
}

/// Files below this are left alone. They take a block each; in a Debian system they are two thirds of the files and a twentieth of what
/// sharing saves.
const FILE_BYTES_MIN: u64 = 4096;
/// Bytes read at a time.
const READ_BYTES: usize = 128 << 10;

impl Links {
    /// Takes over the directory, removes what no tree has, and says how many bytes are left.
    ///
    /// # Errors
    /// The kernel's, if the directory cannot be listed.
    pub fn open(dir: OwnedFd) -> io::Result<(Self, Swept)> {
        let links = Self { dir, temporary_next: AtomicU64::new(0), counting: Mutex::new(()) };
        let swept = links.sweep_all(|name| {
            // What an earlier process was about to put in a tree.
            let _ = unlinkat(&links.dir, name, AtFlags::empty());
        })?;
        Ok((links, swept))
    }

    /// Shares the files of the tree `name` in `parent`, which nobody else uses. Blocks, reading each of them.
    pub fn share(&self, parent: BorrowedFd<'_>, name: &CStr) -> Shared {
        let mut work = Work { links: self, found: Shared::default(), one: vec![0; READ_BYTES], other: vec![0; READ_BYTES] };
        if let Err(err) = work.entry(&mut Parent { fd: parent, canonical: None, changed: false }, name, 0) {
            tracing::debug!(name = %name.to_string_lossy(), %err, "share files of the store cache");
        }
        work.found
    }

    /// Removes the files that no tree has. Looks at each name, and reads none.
    ///
    /// # Errors
    /// The kernel's, if the directory cannot be listed.
    pub fn sweep(&self) -> io::Result<Swept> {
        self.sweep_all(|_| ())
    }

    fn sweep_all(&self, strange: impl Fn(&CStr)) -> io::Result<Swept> {
        let mut swept = Swept::default();
        for entry in Dir::read_from(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if !is_link_name(name) {
                strange(name);
                continue;
            }
            let _counting = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(stat) = statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if stat.st_nlink <= 1 && unlinkat(&self.dir, name, AtFlags::empty()).is_ok() {
                swept.freed_bytes += size(&stat);
            } else {
                swept.kept_bytes += size(&stat);
            }
        }
        Ok(swept)
    }
}

/// The sharing of one tree.
struct Work<'a> {
    links: &'a Links,
    found: Shared,
    one: Vec<u8>,
    other: Vec<u8>,
}

/// A directory whose entries are shared.
struct Parent<'a> {
    fd: BorrowedFd<'a>,
    /// Its mode, if it belongs to the tree.
    canonical: Option<Mode>,
    changed: bool,
}

impl Work<'_> {
    fn entry(&mut self, parent: &mut Parent<'_>, name: &CStr, depth: usize) -> rustix::io::Result<()> {
        let stat = statat(parent.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile if size(&stat) >= FILE_BYTES_MIN => self.file(parent, name),
            FileType::Directory if depth <= DEPTH_MAX => {
                let fd = open_dir(parent.fd, name)?;
                let mut inside = Parent { fd: fd.as_fd(), canonical: Some(Mode::from_raw_mode(stat.st_mode)), changed: false };
                let shared = names(fd.as_fd(), usize::MAX)?.iter().try_for_each(|name| self.entry(&mut inside, name, depth + 1));
                // Whatever happened, the tree stays canonical.
                inside.close().and(shared)
            }
            _ => Ok(()),
        }
    }

    fn file(&mut self, parent: &mut Parent<'_>, name: &CStr) -> rustix::io::Result<()> {
        let file = open_file(parent.fd, name)?;
        let stat = fstat(&file)?;
        let key = link_name(self.hash(&file)?, stat.st_mode & 0o100 != 0);
        // Twice, because what has the name may turn out to be damaged.
        for _ in 0..2 {
            match linkat(parent.fd, name, &self.links.dir, &key, AtFlags::empty()) {
                Ok(()) => {
                    self.found.bytes += size(&stat);
                    self.found.new_bytes += size(&stat);
                    return Ok(());
                }
                Err(Errno::EXIST) => {}
                // It stays a file of its own.
                Err(_) => return Ok(()),
            }
            let target = match open_file(self.links.dir.as_fd(), &key) {
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            let facts = fstat(&target)?;
            let same_inode = (facts.st_dev, facts.st_ino) == (stat.st_dev, stat.st_ino);
            if same_inode || (same_kind(&facts, &stat) && self.same_bytes(&file, &target)?) {
                if same_inode || self.replace(parent, name, &key, &facts)? {
                    self.found.bytes += size(&stat);
                }
                return Ok(());
            }
            tracing::warn!(link = %key.to_string_lossy(), "a shared file of the store cache is damaged; no other path gets it");
            // Who has it counts it until the cache is opened again.
            unlinkat(&self.links.dir, &key, AtFlags::empty())?;
        }
        Ok(())
    }

    /// Puts the shared file in the place of an equal one.
    fn replace(&self, parent: &mut Parent<'_>, name: &CStr, key: &CStr, facts: &Stat) -> rustix::io::Result<bool> {
        let dir = &self.links.dir;
        let number = self.links.temporary_next.fetch_add(1, Ordering::Relaxed);
        let temporary = CString::new(format!("new-{number}")).expect("digits hold no NUL");
        let linked = {
            let _counting = self.links.counting.lock().unwrap_or_else(PoisonError::into_inner);
            linkat(dir, key, dir, &temporary, AtFlags::empty())
        };
        // A file may have so many names only.
        if linked.is_err() {
            return Ok(false);
        }
        let compared = statat(dir, &temporary, AtFlags::SYMLINK_NOFOLLOW)?.st_ino == facts.st_ino;
        let moved = parent.open().and_then(|()| if compared { renameat(dir, &temporary, parent.fd, name) } else { Err(Errno::NOENT) });
        if moved.is_err() {
            unlinkat(dir, &temporary, AtFlags::empty())?;
        }
        Ok(moved.is_ok())
    }

    fn hash(&mut self, file: &OwnedFd) -> rustix::io::Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        let mut offset = 0;
        loop {
            match pread(file, &mut self.one[..], offset)? {
                0 => return Ok(hasher.finalize()),
                count => {
                    hasher.update(&self.one[..count]);
                    offset += count as u64;
                }
            }
        }
    }

    fn same_bytes(&mut self, file: &OwnedFd, target: &OwnedFd) -> rustix::io::Result<bool> {
        let mut offset = 0;
        loop {
            let count = pread(file, &mut self.one[..], offset)?;
            let mut filled = 0;
            while filled < count {
                match pread(target, &mut self.other[filled..count], offset + filled as u64)? {
                    0 => return Ok(false),
                    more => filled += more,
                }
            }
            if self.one[..count] != self.other[..count] {
                return Ok(false);
            }
            if count == 0 {
                return Ok(true);
            }
            offset += count as u64;
        }
    }
}

impl Parent<'_> {
    /// Lets entries be exchanged. Directories of the store are read-only to their owner too.
    fn open(&mut self) -> rustix::io::Result<()> {
        if let Some(mode) = self.canonical.filter(|_| !self.changed) {
            self.changed = true;
            fchmod(self.fd, mode | Mode::WUSR)?;
        }
        Ok(())
    }

    /// Makes the directory what it was.
    fn close(&self) -> rustix::io::Result<()> {
        match self.canonical.filter(|_| self.changed) {
            Some(mode) => fchmod(self.fd, mode).and_then(|()| futimens(self.fd, &MTIME)),
            None => Ok(()),
        }
    }
}

fn open_file(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    openat(dir, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

/// Whether two files differ in nothing but their bytes and names.
fn same_kind(one: &Stat, other: &Stat) -> bool {
    let facts = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    facts(one) == facts(other)
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn link_name(hash: blake3::Hash, executable: bool) -> CString {
    let kind = if executable { 'x' } else { '-' };
    CString::new(format!("{}{kind}", hash.to_hex())).expect("digits hold no NUL")
}

fn is_link_name(name: &CStr) -> bool {
    matches!(name.to_bytes().split_last(), Some((b'x' | b'-', hash)) if hash.len() == 64 && hash.iter().all(u8::is_ascii_hexdigit))
}

#[cfg(test)]
mod tests;
