//! Delegation: a build's own group handed to the build's root, who may make groups below it and move its processes among them.
//!
//! Of the unified hierarchy only, as the kernel's documentation has it: v1 groups cannot be delegated safely. The limits of the build
//! itself stay out of its reach, because their files lie in a directory that is its own but are not.
//! Source: Documentation/admin-guide/cgroup-v2.rst, "Delegation".

use std::fs;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};

use super::CgroupError;
use super::group::Group;
use super::used::field;

/// What the kernel's documentation lists, beside the directory itself.
const DELEGATED: [&str; 4] = [".", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];
/// Groups that a build may make, and how deep: a machine of services in a container has a few hundred, ten deep. Each takes memory of the
/// kernel's, and time to remove.
const LIMITS: [(&str, &str); 2] = [("cgroup.max.descendants", "1024"), ("cgroup.max.depth", "32")];

impl Group {
    /// Hands the group to a user and group of the host; whether there is anything to hand over.
    ///
    /// # Errors
    /// [`CgroupError`] if the kernel refuses.
    pub fn delegate(&mut self, uid: u32, gid: u32) -> Result<bool, CgroupError> {
        let Some(dir) = &self.unified else { return Ok(false) };
        for (name, value) in LIMITS {
            let file = dir.join(name);
            fs::write(&file, value).map_err(CgroupError::io("write", &file))?;
        }
        for name in DELEGATED {
            let file = dir.join(name);
            lchown(&file, Some(uid), Some(gid)).map_err(CgroupError::io("hand over", &file))?;
        }
        self.delegated = true;
        Ok(true)
    }

    /// Returns the file that counts the processes which could not be made for the group's own limit, not for one that the build gave to a
    /// part of itself: kernels since 6.11 add these up in the group's usual file, and have another one beside it.
    pub(super) fn pids_events(&self) -> Option<PathBuf> {
        let dir = self.pids.as_ref()?;
        let local = dir.join("pids.events.local");
        Some(if self.delegated && local.exists() { local } else { dir.join("pids.events") })
    }
}

/// Counts kills for the limit of the group in `dir` itself, or of one above it. A build that limits a part of itself may have that part
/// killed, and has not run out of memory.
pub(super) fn own_oom_kills(dir: &Path) -> Option<u64> {
    let file = dir.join("memory.events.local");
    // Kernels before 5.17 do not count whole groups.
    field(&file, "oom_group_kill").or_else(|| field(&file, "oom"))
}
