//! Project quotas of ext4 (xfs has the same calls; not tried): the kernel counts bytes and inodes of a directory, exactly, and the build sees a full disk.
//!
//! Root passes such a limit unharmed, and so would an owner of files who may change their project: a build is neither, in its own user
//! namespace. What leaves the directory keeps its project, so that a project number is used again only once nothing is left in it.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use super::{Limits, calls};

/// A directory's project, held to its limits until this is dropped.
#[derive(Debug)]
pub(super) struct Project {
    root: OwnedFd,
    number: u32,
}

/// Tries before giving up; a random number is taken by somebody else once in a million times.
const TRIES: u32 = 32;

impl Project {
    /// Puts the empty directory `root` into a project of its own.
    pub(super) fn new(root: OwnedFd, limits: Limits) -> io::Result<Self> {
        let number = free_number(&root)?;
        calls::set_project(&root, number)?;
        calls::set_quota(&root, number, limits.bytes_max.div_ceil(1024), limits.inodes_max)?;
        Ok(Self { root, number })
    }

    /// Returns its number on the file system.
    pub(super) fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if let Err(err) = calls::set_quota(self.root.as_fd(), self.number, 0, 0) {
            tracing::warn!(project = self.number, %err, "lift a project's quota");
        }
    }
}

/// Whether projects are held to their limits where `root`, an empty directory, lies.
///
/// # Errors
/// Why they are not.
pub(super) fn probe(root: OwnedFd) -> io::Result<()> {
    match calls::enforces_projects(&root) {
        Ok(true) => {}
        Ok(false) => return Err(io::Error::other("its file system was not mounted with `prjquota`")),
        Err(err) => return Err(io::Error::other(format!("its file system, or the kernel, keeps no project quotas (`prjquota`): {err}"))),
    }
    let project = Project::new(root, Limits { bytes_max: 1 << 20, inodes_max: 10 })?;
    match calls::quota(&project.root, project.number)?.used_inodes {
        1 => Ok(()),
        other => Err(io::Error::other(format!("an empty directory counts as {other} inodes"))),
    }
}

fn free_number(root: &OwnedFd) -> io::Result<u32> {
    for _ in 0..TRIES {
        // Numbers that people choose are small.
        let number = random()? | 1 << 31;
        if calls::quota(root, number)?.is_unused() {
            return Ok(number);
        }
    }
    Err(io::Error::other("no project number is free"))
}

fn random() -> io::Result<u32> {
    let mut bytes = [0; 4];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}
