//! The directory into which a tarball is unpacked. Every step goes from a directory descriptor to one name in it and follows no link,
//! so that nothing outside is ever opened, whatever the archive made before.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, linkat, mkdirat, openat, renameat, statat, symlinkat, unlinkat};
use rustix::io::Errno;

use super::UnpackError;
use super::members::{Kind, Member, refuse};
use crate::trash::{c_name, names, open_dir};

/// A directory that is being filled.
pub struct Tree {
    root: OwnedFd,
}

/// Writes a file's content.
pub type Fill<'a> = dyn FnMut(&mut File) -> Result<(), UnpackError> + 'a;

impl Tree {
    /// Makes the directory `out`.
    ///
    /// # Errors
    /// [`UnpackError::Write`].
    pub fn make(out: &Path) -> Result<Self, UnpackError> {
        let failed = |err| UnpackError::Write { operation: "make the output", member: out.display().to_string(), err };
        let name = c_name(out).map_err(failed)?;
        mkdirat(CWD, &name, DIRECTORY).map_err(|err| failed(err.into()))?;
        let root = open_dir(CWD, &name).map_err(|err| failed(err.into()))?;
        Ok(Self { root })
    }

    /// Puts a member where it says. It takes the place of an earlier file or link; `fill` writes what a file holds.
    ///
    /// # Errors
    /// [`UnpackError::Member`] if something in its way is not a directory or not to be replaced, [`UnpackError::Write`] if the disk
    /// refuses, or what `fill` returns.
    pub fn put(&self, member: &Member, fill: &mut Fill<'_>) -> Result<(), UnpackError> {
        let Some((last, above)) = member.path.split_last() else { return Ok(()) };
        let (dir, name) = (self.enter(member, above)?, c_part(last));
        let failed = |operation| move |err: Errno| write_failed(operation, member, err.into());
        match &member.kind {
            Kind::Directory => {
                match kind_of(&dir, &name).map_err(failed("look at"))? {
                    Some(FileType::Directory) | None => {}
                    Some(_) => clear(member, &dir, &name)?,
                }
                self.descend(member, &dir, &name).map(drop)
            }
            Kind::File { executable } => {
                let mode = Mode::from_raw_mode(if *executable { 0o755 } else { 0o644 });
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                clear(member, &dir, &name)?;
                fill(&mut File::from(openat(&dir, &name, flags, mode).map_err(failed("create"))?))
            }
            Kind::Symlink(target) => {
                clear(member, &dir, &name)?;
                symlinkat(target.as_slice(), &dir, &name).map_err(failed("link"))
            }
            Kind::HardLink(target) if *target == member.path => Err(refuse(&member.name, "it is a hard link to itself")),
            Kind::HardLink(target) => {
                let (last, above) = target.split_last().expect("a hard link leads somewhere");
                let (from_dir, from) = (self.find(member, above)?, c_part(last));
                match kind_of(&from_dir, &from) {
                    Ok(Some(FileType::RegularFile | FileType::Symlink)) => {}
                    Ok(_) => return Err(refuse(&member.name, "it is a hard link to something that is no file or link of the archive")),
                    Err(err) => return Err(failed("look at the target of")(err)),
                }
                clear(member, &dir, &name)?;
                linkat(&from_dir, &from, &dir, &name, AtFlags::empty()).map_err(failed("link"))
            }
        }
    }

    /// Returns up to `max` names at the top.
    ///
    /// # Errors
    /// [`UnpackError::Write`].
    pub fn names(&self, max: usize) -> Result<Vec<CString>, UnpackError> {
        let failed = |err: Errno| UnpackError::Write { operation: "list", member: ".".into(), err: err.into() };
        names(self.root.as_fd(), max).map_err(failed)
    }

    /// Renames something at the top.
    ///
    /// # Errors
    /// [`UnpackError::Write`].
    pub fn rename(&self, from: &CStr, to: &[u8]) -> Result<(), UnpackError> {
        let failed = |err: Errno| UnpackError::Write { operation: "rename", member: from.to_string_lossy().into_owned(), err: err.into() };
        renameat(&self.root, from, &self.root, to).map_err(failed)
    }

    /// Opens the directory at `path`, and makes what is missing: archives need not name every directory.
    fn enter(&self, member: &Member, path: &[Vec<u8>]) -> Result<OwnedFd, UnpackError> {
        let mut dir = self.top(member)?;
        for part in path {
            dir = self.descend(member, &dir, &c_part(part))?;
        }
        Ok(dir)
    }

    fn descend(&self, member: &Member, dir: &OwnedFd, name: &CStr) -> Result<OwnedFd, UnpackError> {
        match mkdirat(dir, name, DIRECTORY) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(err) => return Err(write_failed("make the directory of", member, err.into())),
        }
        open_dir(dir, name).map_err(|err| in_the_way(member, name, err))
    }

    /// Opens the directory at `path`, which must be there.
    fn find(&self, member: &Member, path: &[Vec<u8>]) -> Result<OwnedFd, UnpackError> {
        let mut dir = self.top(member)?;
        for part in path {
            let name = c_part(part);
            dir = match open_dir(&dir, &name) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => {
                    return Err(refuse(&member.name, "it is a hard link to something that is no file or link of the archive"));
                }
                Err(err) => return Err(in_the_way(member, &name, err)),
            };
        }
        Ok(dir)
    }

    fn top(&self, member: &Member) -> Result<OwnedFd, UnpackError> {
        self.root.try_clone().map_err(|err| write_failed("open the directory of", member, err))
    }
}

/// Mode of directories while they are filled; the import gives all the same.
const DIRECTORY: Mode = Mode::RWXU.union(Mode::RGRP).union(Mode::XGRP).union(Mode::ROTH).union(Mode::XOTH);

/// Removes an earlier file or link.
fn clear(member: &Member, dir: &OwnedFd, name: &CStr) -> Result<(), UnpackError> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => Err(refuse(&member.name, "a directory has its name")),
        Err(err) => Err(write_failed("replace", member, err.into())),
    }
}

fn kind_of(dir: &OwnedFd, name: &CStr) -> rustix::io::Result<Option<FileType>> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(err) => Err(err),
    }
}

fn in_the_way(member: &Member, name: &CStr, err: Errno) -> UnpackError {
    match err {
        Errno::NOTDIR | Errno::LOOP => {
            refuse(&member.name, format!("`{}` in its way is a link or a file, not a directory", name.to_string_lossy()))
        }
        err => write_failed("open the directory of", member, err.into()),
    }
}

fn write_failed(operation: &'static str, member: &Member, err: io::Error) -> UnpackError {
    UnpackError::Write { operation, member: super::shown(&member.name), err }
}

fn c_part(part: &[u8]) -> CString {
    CString::new(part).expect("names of members hold no NUL byte")
}
