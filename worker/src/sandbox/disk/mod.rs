//! What a build may use of the worker's disk: bytes and files of its `/build`, `/tmp` and outputs, and a floor of free space below which
//! no build starts and the one that uses the most is ended.
//!
//! How a build is held to it depends on the file system, and is decided once, by trying ([`Choice`]). Where the kernel counts, it is
//! exact and the build sees a full disk; where nobody does, a thread counts ([`walk`]) and the build is stopped soon after.
//!
//! Absences: does not make the files of a build ([`super::tree`]) and does not remove them.

mod calls;
mod gauge;
mod monitor;
mod mounted;
mod project;
mod space;
mod volume;
mod walk;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use gauge::Gauge;
use monitor::{Monitor, Watched, free_bytes};
use space::{Backend, Space};

/// How builds are held to their part of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// The best that the disk of the worker has without a cost to each build: [`Choice::ProjectQuota`], [`Choice::Btrfs`], else
    /// [`Choice::Polling`].
    #[default]
    Auto,
    /// Project quotas of ext4, mounted with `prjquota`. Exact; the build sees a full disk.
    ProjectQuota,
    /// Subvolumes of a btrfs that keeps quotas. Bytes are exact; files are polled. Outputs are copied into the store cache.
    Btrfs,
    /// An image with ext4 on a loop device. Exact; costs each build a tenth of a second, and outputs are copied.
    Loop,
    /// Memory, which counts against that of the build. Exact; outputs are copied.
    Tmpfs,
    /// Files are counted every now and then, and a build that has too many is stopped.
    Polling,
    /// They are not, but for the floor of free space.
    None,
}

/// What a build may use, and what it used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Bytes on the disk: whole blocks, without holes.
    pub bytes: u64,
    /// Files, directories and links.
    pub inodes: u64,
}

/// What a build may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes on the disk: whole blocks, without holes.
    pub bytes_max: u64,
    /// Files, directories and links.
    pub inodes_max: u64,
}

/// A limit of the disk that was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Excess {
    /// Too many bytes.
    Bytes {
        /// As many were found.
        used: u64,
        /// As many are allowed.
        max: u64,
    },
    /// Too many files, directories and links.
    Inodes {
        /// As many were found, at least.
        used: u64,
        /// As many are allowed.
        max: u64,
    },
    /// The worker's disk ran low, and the build used the most of it.
    Floor {
        /// As many bytes were left.
        free_bytes: u64,
        /// As many must be.
        free_bytes_min: u64,
        /// As many were the build's.
        used_bytes: u64,
    },
}

/// A disk that cannot be used as wanted.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A step failed.
    #[error("{step} `{path}`")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        err: io::Error,
    },
    /// What was chosen by name does not work here.
    #[error("hold builds in `{dir}` to their limits by `disk = '{choice}'`")]
    Choice {
        /// The choice's name.
        choice: &'static str,
        /// Where builds lie.
        dir: PathBuf,
        /// Why not.
        #[source]
        err: io::Error,
    },
    /// There is too little space for another build.
    #[error("start a build on a disk with {free_bytes} bytes left: at least {free_bytes_min} must be (`disk_free_bytes_min`)")]
    Full {
        /// As many bytes are left.
        free_bytes: u64,
        /// As many must be.
        free_bytes_min: u64,
    },
}

impl DiskError {
    fn io(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |err| Self::Io { step, path, err }
    }
}

/// The disk of one worker's builds.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    backend: Backend,
    limits: Limits,
    free_bytes_min: u64,
    monitor: Arc<Monitor>,
}

impl Disk {
    /// Decides how builds below `dir` are held to their limits, by trying. What an earlier process left mounted there is unmounted.
    ///
    /// # Errors
    /// [`DiskError`] if what is chosen by name does not work here.
    pub fn open(choice: Choice, dir: &Path, limits: Limits, free_bytes_min: u64) -> Result<Self, DiskError> {
        mounted::unmount_below(dir).map_err(DiskError::io("unmount what is mounted below", dir))?;
        let backend = Backend::choose(choice, dir, limits)?;
        let monitor = Monitor::start(dir, free_bytes_min).map_err(DiskError::io("watch the disk of", dir))?;
        Ok(Self { dir: dir.to_owned(), backend, limits, free_bytes_min, monitor: Arc::new(monitor) })
    }

    /// Whether a build's part is a mount, which other mount namespaces do not see.
    pub fn mounts(&self) -> bool {
        self.backend.mounts()
    }

    /// Returns what builds are held to and how, in words for people.
    pub fn describe(&self) -> String {
        format!("{}, free space", self.backend.describe())
    }

    /// Prepares the part of a build whose directory is the empty `dir`, below the one that was opened.
    ///
    /// # Errors
    /// [`DiskError::Full`] if the disk has too little space for another build; [`DiskError::Io`] if the kernel refuses.
    pub fn room(&self, dir: &Path) -> Result<Room, DiskError> {
        if let Some(free_bytes) = free_bytes(&self.dir).filter(|free| *free < self.free_bytes_min) {
            return Err(DiskError::Full { free_bytes, free_bytes_min: self.free_bytes_min });
        }
        let prepared = self.backend.prepare(dir, self.limits);
        let (space, gauge, limits) = prepared.map_err(DiskError::io("limit what may be written below", dir))?;
        Ok(Room { monitor: self.monitor.clone(), gauge: Arc::new(gauge), limits, _space: space })
    }
}

/// One build's part of the disk. Dropping it gives that back; a directory with what was written there may or may not remain.
#[derive(Debug)]
pub struct Room {
    monitor: Arc<Monitor>,
    gauge: Arc<Gauge>,
    limits: Limits,
    /// Held for what its end does.
    _space: Space,
}

impl Room {
    /// Watches the build that starts in it. `processes` lists its processes, one a line.
    pub(super) fn watch(&self, processes: Option<PathBuf>) -> io::Result<Watch> {
        Ok(Watch { watched: self.monitor.watch(self.gauge.clone(), self.limits, processes)? })
    }
}

/// A watch over a running build; dropping it ends that.
#[derive(Debug)]
pub(super) struct Watch {
    watched: Watched,
}

impl Watch {
    /// Returns the limit that the build has passed, once the descriptor is readable.
    pub(super) fn excess(&self) -> Option<Excess> {
        self.watched.excess()
    }

    /// Returns the limit that a build ran into which has failed by itself, if it did: it may have seen a full disk.
    pub(super) fn blame(&self) -> Option<Excess> {
        self.watched.blame()
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watched.event().as_fd()
    }
}

impl Choice {
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::ProjectQuota => "project-quota",
            Self::Btrfs => "btrfs",
            Self::Loop => "loop",
            Self::Tmpfs => "tmpfs",
            Self::Polling => "polling",
            Self::None => "none",
        }
    }
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

impl Limits {
    const NONE: Self = Self { bytes_max: u64::MAX, inodes_max: u64::MAX };

    /// Returns which of the limits `used` passes.
    fn passed(self, used: Used) -> Option<Excess> {
        if used.bytes > self.bytes_max {
            Some(Excess::Bytes { used: used.bytes, max: self.bytes_max })
        } else if used.inodes > self.inodes_max {
            Some(Excess::Inodes { used: used.inodes, max: self.inodes_max })
        } else {
            None
        }
    }
}
