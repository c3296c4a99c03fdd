//! The file system as a build sees it, for builders that run in no sandbox: the store with the job's inputs, and little else.
//!
//! Names are resolved here, one component at a time, by directory descriptors that follow no link; the text of a link is resolved
//! by the same rules. So an input that links to `/etc/shadow` names a file that is not there, as it would in the sandbox, and
//! nothing of the host is read, listed or asked about. What else a sandbox shows is known by name only ([`SEEN`], [`SEEN_DIRS`]):
//! it can be linked to, but has no content here. Does not write.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use kiln_wire::{StoreDir, StorePath};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, readlinkat, statat};
use rustix::io::Errno;

use super::shown;

/// Files that every sandbox shows outside of the store.
const SEEN: [&[u8]; 14] = [
    b"/bin/sh",
    b"/dev/full",
    b"/dev/null",
    b"/dev/ptmx",
    b"/dev/random",
    b"/dev/stderr",
    b"/dev/stdin",
    b"/dev/stdout",
    b"/dev/tty",
    b"/dev/urandom",
    b"/dev/zero",
    b"/etc/group",
    b"/etc/hosts",
    b"/etc/passwd",
];
/// Directories that it shows, beside those on the way to the store.
const SEEN_DIRS: [&[u8]; 10] =
    [b"/bin", b"/build", b"/dev", b"/dev/fd", b"/dev/pts", b"/dev/shm", b"/etc", b"/proc", b"/proc/self", b"/tmp"];

/// Links that one name may lead through. The kernel has the same bound.
const LINKS_MAX: u32 = 40;
/// Longest path, in bytes, as the kernel has it.
const PATH_BYTES_MAX: usize = 4095;

/// The inputs of one job, by the names that they have in the store.
#[derive(Debug)]
pub struct Closure {
    /// Components of the store's directory.
    store: Vec<Vec<u8>>,
    inputs: BTreeMap<Vec<u8>, PathBuf>,
}

/// Something that is there.
#[derive(Debug)]
pub struct Place {
    /// Its own name, without links.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Open for reading; none if it is only known by name.
    fd: Option<OwnedFd>,
}

/// What a place is, after links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file.
    File,
}

/// A name that cannot be looked up.
#[derive(Debug, thiserror::Error)]
pub enum ClosureError {
    /// It could never be one.
    #[error("look up `{path}`: {rule}")]
    Name {
        /// The name, cut.
        path: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// It is no file or directory of an input.
    #[error("read `{path}`: it lies outside of the job's inputs")]
    Outside {
        /// The name.
        path: String,
    },
    /// It is longer than what it is read for allows.
    #[error("read `{path}`: it has more than {limit_bytes} bytes")]
    TooLarge {
        /// The name.
        path: String,
        /// The limit.
        limit_bytes: u64,
    },
    /// The kernel refuses, though the input should be there. Not the job's fault.
    #[error("read `{path}` in the store cache")]
    Read {
        /// The name.
        path: String,
        /// Why not.
        #[source]
        err: io::Error,
    },
}

impl Closure {
    /// Makes the view of a job whose inputs are `inputs`, each with the place where it really lies.
    pub fn new(store_dir: &StoreDir, inputs: impl IntoIterator<Item = (StorePath, PathBuf)>) -> Self {
        let store = store_dir.as_str().as_bytes().split(|byte| *byte == b'/').filter(|part| !part.is_empty()).map(<[u8]>::to_vec);
        let inputs = inputs.into_iter().map(|(path, place)| (path.as_str().as_bytes().to_vec(), place));
        Self { store: store.collect(), inputs: inputs.collect() }
    }

    /// Looks up an absolute path through all links. `None` if nothing is there.
    ///
    /// # Errors
    /// [`ClosureError`] for a path that is not absolute, too long or leads in circles, or if the disk fails.
    pub fn resolve(&self, path: &[u8]) -> Result<Option<Place>, ClosureError> {
        let refuse = |rule| ClosureError::Name { path: shown(path), rule };
        match path {
            [b'/', ..] if path.len() <= PATH_BYTES_MAX => {}
            [b'/', ..] => return Err(refuse("it is too long")),
            _ => return Err(refuse("it is not an absolute path")),
        }
        let mut way = Way { parts: Vec::new(), fds: Vec::new() };
        let mut file = None;
        let mut links = 0;
        let mut ahead = reversed(path);
        while let Some(part) = ahead.pop() {
            match part.as_slice() {
                // Even `file/` and `file/.` need a directory.
                _ if file.is_some() => return Ok(None),
                b"" | b"." => continue,
                b".." => {
                    way.leave();
                    continue;
                }
                part if part.contains(&0) => return Err(refuse("it holds a NUL byte")),
                _ => {}
            }
            match self.step(&way, &part)? {
                Step::Nothing => return Ok(None),
                Step::Directory(fd) => way.enter(part, fd),
                Step::File(fd) => {
                    way.enter(part, None);
                    file = Some(fd);
                }
                Step::Link(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(refuse("it leads through too many symbolic links"));
                    }
                    if target.starts_with(b"/") {
                        way = Way { parts: Vec::new(), fds: Vec::new() };
                    }
                    ahead.extend(reversed(&target));
                }
            }
        }
        let path = way.path();
        Ok(Some(match file {
            Some(fd) => Place { path, kind: Kind::File, fd },
            None => Place { path, kind: Kind::Directory, fd: way.fds.pop().flatten() },
        }))
    }

    /// Lists a directory, sorted, without `.` and `..`.
    ///
    /// # Errors
    /// [`ClosureError`] if it is not one of an input, or the disk fails.
    pub fn list(&self, place: &Place) -> Result<Vec<Vec<u8>>, ClosureError> {
        let fd = place.fd.as_ref().ok_or_else(|| ClosureError::Outside { path: shown(&place.path) })?;
        let read = |err: Errno| ClosureError::Read { path: shown(&place.path), err: err.into() };
        let mut names = Vec::new();
        for entry in Dir::read_from(fd).map_err(read)? {
            let entry = entry.map_err(read)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_bytes().to_vec());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Opens a file at its start.
    ///
    /// # Errors
    /// [`ClosureError`] if it is not one of an input.
    pub fn open(&self, place: Place) -> Result<File, ClosureError> {
        match (place.kind, place.fd) {
            (Kind::File, Some(fd)) => Ok(File::from(fd)),
            (Kind::File | Kind::Directory, _) => Err(ClosureError::Outside { path: shown(&place.path) }),
        }
    }

    /// Reads a small file whole.
    ///
    /// # Errors
    /// [`ClosureError`] if it is not one of an input, has more than `limit_bytes`, or the disk fails.
    pub fn read(&self, place: Place, limit_bytes: u64) -> Result<Vec<u8>, ClosureError> {
        let path = shown(&place.path);
        let mut bytes = Vec::new();
        let read = self.open(place)?.take(limit_bytes + 1).read_to_end(&mut bytes);
        read.map_err(|err| ClosureError::Read { path: path.clone(), err })?;
        match bytes.len() as u64 > limit_bytes {
            true => Err(ClosureError::TooLarge { path, limit_bytes }),
            false => Ok(bytes),
        }
    }

    /// Looks at `part` in the directory that `way` has come to.
    fn step(&self, way: &Way, part: &[u8]) -> Result<Step, ClosureError> {
        let failed = |err: Errno| ClosureError::Read { path: shown(&way.join(part)), err: err.into() };
        if let Some(fd) = way.fds.last().and_then(Option::as_ref) {
            return match look(fd.as_fd(), part) {
                Ok(step) => Ok(step),
                Err(Errno::NOENT) => Ok(Step::Nothing),
                Err(Errno::NAMETOOLONG) => Err(ClosureError::Name { path: shown(part), rule: "the name is too long" }),
                Err(err) => Err(failed(err)),
            };
        }
        if way.parts == self.store {
            let Some(place) = self.inputs.get(part) else { return Ok(Step::Nothing) };
            return look(CWD, place.as_os_str().as_bytes()).map_err(failed);
        }
        let path = way.join(part);
        let leads_to_store = self.store.get(way.parts.len()).is_some_and(|next| next == part) && self.store.starts_with(&way.parts);
        match () {
            () if leads_to_store || SEEN_DIRS.contains(&path.as_slice()) => Ok(Step::Directory(None)),
            () if SEEN.contains(&path.as_slice()) => Ok(Step::File(None)),
            () => Ok(Step::Nothing),
        }
    }
}

impl ClosureError {
    /// Whether the worker is at fault, and not the recipe.
    pub fn is_infrastructure(&self) -> bool {
        match self {
            Self::Read { .. } => true,
            Self::Name { .. } | Self::Outside { .. } | Self::TooLarge { .. } => false,
        }
    }
}

/// What one component leads to.
enum Step {
    Nothing,
    Directory(Option<OwnedFd>),
    File(Option<OwnedFd>),
    Link(Vec<u8>),
}

/// The directories from the root to where a lookup has come, each open if it belongs to an input.
struct Way {
    parts: Vec<Vec<u8>>,
    fds: Vec<Option<OwnedFd>>,
}

impl Way {
    fn enter(&mut self, part: Vec<u8>, fd: Option<OwnedFd>) {
        self.parts.push(part);
        self.fds.push(fd);
    }

    /// The root is its own parent.
    fn leave(&mut self) {
        self.parts.pop();
        self.fds.pop();
    }

    fn path(&self) -> Vec<u8> {
        if self.parts.is_empty() { b"/".to_vec() } else { self.parts.iter().flat_map(|part| [b"/", part.as_slice()].concat()).collect() }
    }

    fn join(&self, part: &[u8]) -> Vec<u8> {
        let mut path = self.path();
        if !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(part);
        path
    }
}

fn reversed(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect()
}

/// Opens one name without following it.
fn look(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Step> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match openat(dir, name, flags, Mode::empty()) {
        Ok(fd) => match FileType::from_raw_mode(fstat(&fd)?.st_mode) {
            FileType::Directory => Ok(Step::Directory(Some(fd))),
            _ => Ok(Step::File(Some(fd))),
        },
        Err(Errno::LOOP) if is_link(dir, name)? => Ok(Step::Link(readlinkat(dir, name, Vec::new())?.into_bytes())),
        Err(err) => Err(err),
    }
}

fn is_link(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<bool> {
    Ok(FileType::from_raw_mode(statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode) == FileType::Symlink)
}

#[cfg(test)]
mod tests;
