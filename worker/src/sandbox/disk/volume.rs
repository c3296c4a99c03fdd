//! Subvolumes of btrfs with a quota group: the file system counts bytes, and the build sees a full disk. Inodes it does not count.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::{calls, open_dir};

/// A subvolume in the place of a directory; removed when this is dropped.
#[derive(Debug)]
pub(super) struct Volume {
    path: PathBuf,
    id: u64,
}

/// The number of btrfs in `statfs`.
const BTRFS_MAGIC: i64 = 0x9123_683e;

impl Volume {
    /// Replaces the empty directory `path` by a subvolume that may hold `bytes_max`.
    pub(super) fn new(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let (parent, name) = split(path)?;
        rustix::fs::unlinkat(&parent, &name, rustix::fs::AtFlags::REMOVEDIR)?;
        calls::create_subvolume(&parent, &name)?;
        let limited = open_dir(path).and_then(|root| {
            rustix::fs::fchmod(&root, rustix::fs::Mode::RWXU)?;
            calls::limit_subvolume(&root, bytes_max)?;
            calls::subvolume_id(&root)
        });
        match limited {
            Ok(id) => Ok(Self { path: path.to_owned(), id }),
            Err(err) => {
                // Puts back what was there. The error at hand says more than one of this.
                let _ = calls::destroy_subvolume(&parent, &name);
                let _ = rustix::fs::mkdirat(&parent, &name, rustix::fs::Mode::RWXU);
                Err(err)
            }
        }
    }

    /// Returns its number on the file system.
    pub(super) fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let removed = split(&self.path).and_then(|(parent, name)| {
            calls::destroy_subvolume(&parent, &name)?;
            // Younger kernels forget it by themselves, older ones only once the subvolume is taken apart; what stays is one number.
            let _ = calls::forget_subvolume(&parent, self.id);
            Ok(())
        });
        if let Err(err) = removed {
            tracing::warn!(path = %self.path.display(), %err, "remove a build's subvolume");
        }
    }
}

/// Whether subvolumes are held to their limits where `path`, an empty directory, lies.
///
/// # Errors
/// Why they are not.
pub(super) fn probe(path: &Path) -> io::Result<()> {
    if rustix::fs::statfs(path)?.f_type != BTRFS_MAGIC {
        return Err(io::Error::other("it does not lie on a btrfs"));
    }
    let volume = Volume::new(path, 1 << 20).map_err(|err| match err.raw_os_error() {
        Some(libc::ENOTCONN | libc::ENOENT | libc::EINVAL) => io::Error::other("its btrfs keeps no quotas: run `btrfs quota enable` on it"),
        _ => err,
    })?;
    calls::subvolume_bytes(open_dir(path)?, volume.id).map(|_| ())
}

fn split(path: &Path) -> io::Result<(OwnedFd, CString)> {
    let (parent, name) = path.parent().zip(path.file_name()).ok_or(io::ErrorKind::InvalidFilename)?;
    Ok((open_dir(parent)?, CString::new(name.as_bytes())?))
}
