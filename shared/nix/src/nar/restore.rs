//! Unpacking an archive. Every object is made relative to its parent's descriptor and none may exist before, so nothing that the
//! archive or another process does can lead outside the destination.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};

use super::NarError;
use super::read::{Object, visit};

/// Unpacks one archive, which must be all that `reader` holds, to `destination`, which must not exist while its parent must.
/// Files get the modes 0755 and 0644 whatever the process's mask is, directories 0755. Owners and times are the process's.
/// Holds one descriptor per level of depth.
///
/// # Errors
/// [`NarError::Exists`], [`NarError::Restore`], or the rule that the archive breaks. Then a part of the tree may lie at
/// `destination`, and nothing anywhere else; the caller removes it.
pub fn restore(reader: impl Read, destination: &Path) -> Result<(), NarError> {
    let mut tree = Tree::open(destination)?;
    visit(reader, |object| tree.make(object))
}

struct Tree {
    /// The destination and the directories within that are open, innermost last; for messages.
    path: PathBuf,
    root_name: Vec<u8>,
    /// The destination's parent, then each open directory.
    directories: Vec<File>,
}

impl Tree {
    fn open(destination: &Path) -> Result<Self, NarError> {
        let refuse = |err: io::Error| NarError::Restore { path: destination.to_owned(), err };
        let name = destination.file_name().filter(|_| !destination.as_os_str().as_bytes().ends_with(b"/."));
        let name = name.ok_or_else(|| refuse(io::Error::new(io::ErrorKind::InvalidInput, "the path must end in a name")))?;
        let parent = destination.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::open(parent, flags, Mode::empty()).map_err(|err| refuse(err.into()))?;
        // Making the root would say so too, but only after the archive's first bytes; told early, nothing was read for nothing.
        if rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Err(NarError::Exists { path: destination.to_owned() });
        }
        Ok(Self { path: destination.to_owned(), root_name: name.as_bytes().to_vec(), directories: vec![File::from(parent)] })
    }

    fn make(&mut self, object: Object<'_>) -> Result<(), NarError> {
        match object {
            Object::Enter(name) => {
                let directory = self.at(name, make_directory)?;
                self.directories.push(directory);
                if let Some(name) = name {
                    self.path.push(OsStr::from_bytes(name));
                }
                Ok(())
            }
            Object::Leave => {
                self.directories.pop();
                // The root's own name is the last that stays.
                if self.directories.len() > 1 {
                    self.path.pop();
                }
                Ok(())
            }
            Object::File { name, executable, contents, .. } => self.at(name, |parent, name| make_file(parent, name, executable, contents)),
            Object::Symlink { name, target } => {
                self.at(name, |parent, name| rustix::fs::symlinkat(OsStr::from_bytes(target), parent, name).map_err(io::Error::from))
            }
        }
    }

    fn at<T>(&self, name: Option<&[u8]>, make: impl FnOnce(&File, &OsStr) -> io::Result<T>) -> Result<T, NarError> {
        let parent = self.directories.last().expect("the parent's descriptor stays to the end");
        let in_place = OsStr::from_bytes(name.unwrap_or(&self.root_name));
        make(parent, in_place).map_err(|err| {
            let path = name.map_or_else(|| self.path.clone(), |_| self.path.join(in_place));
            match err.kind() {
                io::ErrorKind::AlreadyExists => NarError::Exists { path },
                _ => NarError::Restore { path, err },
            }
        })
    }
}

fn make_directory(parent: &File, name: &OsStr) -> io::Result<File> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    rustix::fs::fchmod(&directory, Mode::from_raw_mode(0o755))?;
    Ok(File::from(directory))
}

fn make_file(parent: &File, name: &OsStr, executable: bool, contents: &mut dyn Read) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))?);
    let mut buffer = [0; 32 << 10];
    loop {
        match contents.read(&mut buffer) {
            Ok(0) => break,
            Ok(taken) => file.write_all(&buffer[..taken])?,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    rustix::fs::fchmod(&file, Mode::from_raw_mode(if executable { 0o755 } else { 0o644 }))?;
    Ok(())
}
