//! How much of its disk a build uses, by whatever counts it.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use super::{Excess, Limits, Used, calls, walk};

/// What counts a build's use, by a descriptor of its directory. It may be read a little longer than the directory exists.
#[derive(Debug)]
pub(super) enum Gauge {
    /// We do, file by file.
    Walk(OwnedFd),
    /// A project's quota.
    Project { root: OwnedFd, number: u32 },
    /// A btrfs for the bytes of a subvolume; we for its inodes.
    Volume { root: OwnedFd, id: u64 },
    /// A file system of the build's own.
    Mounted { root: OwnedFd, in_memory: bool },
}

impl Gauge {
    /// Whether a look costs next to nothing.
    pub(super) fn is_cheap(&self) -> bool {
        match self {
            Self::Walk(_) | Self::Volume { .. } => false,
            Self::Project { .. } | Self::Mounted { .. } => true,
        }
    }

    /// Whether what it counts lies on the worker's disk.
    pub(super) fn is_on_disk(&self) -> bool {
        match self {
            Self::Walk(_) | Self::Project { .. } | Self::Volume { .. } => true,
            Self::Mounted { in_memory, .. } => !in_memory,
        }
    }

    /// Returns what the build uses.
    pub(super) fn read(&self, inodes_max: u64, processes: Option<&Path>) -> io::Result<Used> {
        match self {
            Self::Walk(root) => walk::measure(root.as_fd(), inodes_max, processes),
            Self::Project { root, number } => {
                let quota = calls::quota(root, *number)?;
                Ok(Used { bytes: quota.used_bytes, inodes: quota.used_inodes })
            }
            Self::Volume { root, id } => {
                let inodes = walk::measure(root.as_fd(), inodes_max, processes)?.inodes;
                Ok(Used { bytes: calls::subvolume_bytes(root, *id)?, inodes })
            }
            Self::Mounted { root, .. } => {
                let stat = rustix::fs::fstatvfs(root)?;
                let bytes = stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize);
                Ok(Used { bytes, inodes: stat.f_files.saturating_sub(stat.f_ffree) })
            }
        }
    }

    /// Makes the kernel's figures exact: those of a btrfs are as old as its last commit.
    pub(super) fn settle(&self) {
        match self {
            Self::Volume { root, .. } => {
                // Without it the figures are some seconds old.
                let _ = rustix::fs::syncfs(root);
            }
            Self::Walk(_) | Self::Project { .. } | Self::Mounted { .. } => {}
        }
    }

    /// Returns which limit is passed, where nobody else holds the build to it.
    pub(super) fn passes(&self, used: Used, limits: Limits) -> Option<Excess> {
        match self {
            Self::Walk(_) => limits.passed(used),
            Self::Volume { .. } => Limits { bytes_max: u64::MAX, ..limits }.passed(used),
            Self::Project { .. } | Self::Mounted { .. } => None,
        }
    }

    /// Returns which limit a failed build whose peak was `peak` ran into, if it did. Where it saw a full disk, a sixteenth is what may
    /// have been left when the next write did not fit, or what it had removed again by our next look.
    pub(super) fn blames(&self, peak: Used, limits: Limits) -> Option<Excess> {
        let part = match self {
            Self::Walk(_) => return limits.passed(peak),
            Self::Project { .. } | Self::Volume { .. } | Self::Mounted { .. } => 16,
        };
        let nearly =
            Limits { bytes_max: limits.bytes_max - limits.bytes_max / part, inodes_max: limits.inodes_max - limits.inodes_max / part };
        nearly.passed(peak).map(|excess| match excess {
            Excess::Bytes { used, .. } => Excess::Bytes { used, max: limits.bytes_max },
            Excess::Inodes { used, .. } => Excess::Inodes { used, max: limits.inodes_max },
            Excess::Floor { .. } => excess,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_that_failed_near_its_limit_failed_for_it_only_where_it_could_see_it() {
        let fd = || OwnedFd::from(std::fs::File::open("/").expect("open"));
        let (limits, walk) = (Limits { bytes_max: 1600, inodes_max: 160 }, Gauge::Walk(fd()));
        let mounted = Gauge::Mounted { root: fd(), in_memory: true };
        let volume = Gauge::Volume { root: fd(), id: 7 };
        let bytes = |used| Some(Excess::Bytes { used, max: 1600 });
        let inodes = |used| Some(Excess::Inodes { used, max: 160 });
        // What is used; while it runs: counted, of its own, of a btrfs; once it has failed: counted, of its own.
        let table = [
            ((1500, 150), [None, None, None], [None, None]),
            ((1550, 150), [None, None, None], [None, bytes(1550)]),
            ((1500, 155), [None, None, None], [None, inodes(155)]),
            ((1601, 150), [bytes(1601), None, None], [bytes(1601), bytes(1601)]),
            ((1500, 161), [inodes(161), None, inodes(161)], [inodes(161), inodes(161)]),
        ];
        for ((bytes, inodes), passes, blames) in table {
            let used = Used { bytes, inodes };
            assert_eq!([&walk, &mounted, &volume].map(|gauge| gauge.passes(used, limits)), passes, "{used:?}");
            assert_eq!([&walk, &mounted].map(|gauge| gauge.blames(used, limits)), blames, "{used:?}");
        }
    }
}
