//! One build's control group: its directories, limits, members and end.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;

use super::host::Homes;
use super::{CgroupError, Limits};

/// The control group of one build. [`Group::remove`] it when the build is gone; dropping it leaves it in place.
#[derive(Debug)]
pub struct Group {
    /// Each directory once.
    dirs: BTreeSet<PathBuf>,
    pub(super) memory: Option<PathBuf>,
    pub(super) pids: Option<PathBuf>,
    pub(super) cpu: Option<PathBuf>,
    pub(super) io: Option<PathBuf>,
    pub(super) cpuacct: Option<PathBuf>,
    pub(super) unified: Option<PathBuf>,
    pub(super) v2: bool,
    /// Whether the build may make groups below it.
    pub(super) delegated: bool,
}

impl Group {
    pub(super) fn create(homes: &Homes, name: &str, limits: &Limits) -> Result<Self, CgroupError> {
        let below = |home: &Option<PathBuf>| home.as_ref().map(|home| home.join(name));
        let group = Self {
            dirs: homes.distinct().iter().map(|home| home.join(name)).collect(),
            memory: below(&homes.memory),
            pids: below(&homes.pids),
            cpu: below(&homes.cpu),
            io: below(&homes.io),
            cpuacct: below(&homes.cpuacct),
            unified: below(&homes.unified),
            v2: homes.v2,
            delegated: false,
        };
        let made = group.make(limits);
        if made.is_err() {
            // The error at hand says more than one of a second clean-up would.
            let _ = group.remove();
        }
        made.map(|()| group)
    }

    fn make(&self, limits: &Limits) -> Result<(), CgroupError> {
        for dir in &self.dirs {
            fs::create_dir(dir).map_err(CgroupError::io("make", dir))?;
        }
        if let Some(dir) = &self.memory {
            self.limit_memory(dir, limits)?;
        }
        if let Some(dir) = &self.pids {
            let controller = PidController::new(dir.clone(), dir.clone(), self.v2);
            controller.set_pid_max(MaxValue::Value(i64::from(limits.pids_max))).map_err(limit_error("the number of processes", dir))?;
        }
        if let Some(dir) = &self.cpu {
            self.limit_cpu(dir, limits)?;
        }
        self.io.as_ref().map_or(Ok(()), |dir| weigh_io(dir, limits.io_weight))
    }

    fn limit_memory(&self, dir: &Path, limits: &Limits) -> Result<(), CgroupError> {
        let bytes = i64::try_from(limits.memory_bytes_max).unwrap_or(i64::MAX);
        let controller = MemController::new(dir.to_owned(), dir.to_owned(), self.v2);
        controller.set_limit(bytes).map_err(limit_error("memory", dir))?;
        // v1 counts memory and swap together, v2 swap alone. A kernel without swap accounting has neither file.
        let swap_bytes = i64::try_from(limits.swap_bytes_max).unwrap_or(i64::MAX);
        let both_bytes = bytes.saturating_add(swap_bytes);
        let (swap_file, swap_limit) = if self.v2 { ("memory.swap.max", swap_bytes) } else { ("memory.memsw.limit_in_bytes", both_bytes) };
        if dir.join(swap_file).exists() {
            controller.set_memswap_limit(swap_limit).map_err(limit_error("swap", dir))?;
        }
        if self.v2 {
            let file = dir.join("memory.oom.group");
            fs::write(&file, "1").map_err(CgroupError::io("write", &file))?;
        }
        Ok(())
    }

    fn limit_cpu(&self, dir: &Path, limits: &Limits) -> Result<(), CgroupError> {
        let controller = CpuController::new(dir.to_owned(), dir.to_owned(), self.v2);
        // v1's default share is 1024 where v2's default weight is 100.
        let weight = u64::from(limits.cpu_weight);
        let share = if self.v2 { weight } else { (weight * 1024 / 100).max(2) };
        controller.set_shares(share).map_err(limit_error("the processor share", dir))?;
        if let Some(millicores) = limits.cpu_millicores_max {
            let quota_us = (i64::from(millicores) * PERIOD_US / 1000).max(QUOTA_US_MIN);
            let period_us = u64::try_from(PERIOD_US).ok();
            controller.set_cfs_quota_and_period(Some(quota_us), period_us).map_err(limit_error("the processor quota", dir))?;
        }
        Ok(())
    }

    /// Returns the directory into which `clone3` can place a process at its birth, if there is a unified hierarchy.
    ///
    /// # Errors
    /// [`CgroupError`] if the directory cannot be opened.
    pub fn birthplace(&self) -> Result<Option<OwnedFd>, CgroupError> {
        let open = |dir: &PathBuf| File::open(dir).map(OwnedFd::from).map_err(CgroupError::io("open", dir));
        self.unified.as_ref().map(open).transpose()
    }

    /// Returns the ways into the v1 part of the group, where birth cannot place a process: a process of one thread that writes `0` to
    /// each has entered. None with v2.
    ///
    /// Not `cgroup.procs`: moving a whole process, or another one, takes a lock of the whole machine and with it waits for every
    /// processor, 5 to 20 ms; a thread that moves itself does not.
    ///
    /// # Errors
    /// [`CgroupError`] if a file cannot be opened.
    pub fn entrances(&self) -> Result<Vec<OwnedFd>, CgroupError> {
        let v1 = self.dirs.iter().filter(|dir| Some(*dir) != self.unified.as_ref());
        v1.map(|dir| {
            let tasks = dir.join("tasks");
            File::options().write(true).open(&tasks).map(OwnedFd::from).map_err(CgroupError::io("open", &tasks))
        })
        .collect()
    }

    /// Returns the file that lists the group's processes, if it has one.
    pub fn processes(&self) -> Option<PathBuf> {
        self.unified.as_ref().or(self.dirs.first()).map(|dir| dir.join("cgroup.procs"))
    }

    /// Whether the number of processes is limited; if not, the launcher does it by other means.
    pub fn limits_pids(&self) -> bool {
        self.pids.is_some()
    }

    /// Removes the group, killing what is still in it. One hierarchy that refuses does not keep the others.
    ///
    /// # Errors
    /// The first [`CgroupError`], if something in it cannot be killed.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let removed = self.dirs.iter().filter(|dir| dir.exists()).map(|dir| remove_directory(dir));
        removed.fold(Ok(()), Result::and)
    }
}

/// Tells every I/O scheduler that the kernel has; which of them a disk uses is the host's affair.
fn weigh_io(dir: &Path, weight: u32) -> Result<(), CgroupError> {
    for (name, weight_min, weight_max) in IO_WEIGHTS {
        let file = dir.join(name);
        if file.exists() {
            fs::write(&file, weight.clamp(weight_min, weight_max).to_string()).map_err(CgroupError::io("write", &file))?;
        }
    }
    Ok(())
}

/// Files that hold a group's share of the disks, and their bounds. Each has 100 as its default.
const IO_WEIGHTS: [(&str, u32, u32); 4] =
    [("io.weight", 1, 10_000), ("io.bfq.weight", 1, 1000), ("blkio.bfq.weight", 1, 1000), ("blkio.weight", 10, 1000)];
/// The kernel's default period of the processor quota.
const PERIOD_US: i64 = 100_000;
/// The kernel takes no smaller quota.
const QUOTA_US_MIN: i64 = 1000;
/// Rounds of killing before giving up, as Nix has it; a round waits a millisecond.
const KILL_ROUNDS: u32 = 200;

fn limit_error(limit: &'static str, dir: &Path) -> impl FnOnce(cgroups_rs::fs::error::Error) -> CgroupError {
    let path = dir.to_owned();
    move |err| CgroupError::Limit { limit, path, err }
}

/// Kills all members of the group in `dir` and of the groups below it.
pub(super) fn kill_directory(dir: &Path) -> Result<(), CgroupError> {
    let killer = dir.join("cgroup.kill");
    for _ in 0..KILL_ROUNDS {
        let members = members(dir)?;
        if members.is_empty() {
            return Ok(());
        }
        if !killer.exists() || fs::write(&killer, "1").is_err() {
            for pid in members.into_iter().filter_map(rustix::process::Pid::from_raw) {
                // It may have ended meanwhile; the next round looks again.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(CgroupError::NotEmpty { path: dir.to_owned(), rounds: KILL_ROUNDS })
}

fn members(dir: &Path) -> Result<Vec<i32>, CgroupError> {
    let mut pids = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        let procs = dir.join("cgroup.procs");
        let text = fs::read_to_string(&procs).map_err(CgroupError::io("read", &procs))?;
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        pending.extend(children(&dir)?);
    }
    Ok(pids)
}

fn children(dir: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let entries = fs::read_dir(dir).map_err(CgroupError::io("list", dir))?;
    Ok(entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect())
}

/// Removes the group in `dir` and the groups below it, deepest first.
pub(super) fn remove_directory(dir: &Path) -> Result<(), CgroupError> {
    if fs::remove_dir(dir).is_ok() {
        return Ok(());
    }
    kill_directory(dir)?;
    let mut all = vec![dir.to_owned()];
    let mut next = 0;
    while next < all.len() {
        let below = children(&all[next])?;
        all.extend(below);
        next += 1;
    }
    for dir in all.iter().rev() {
        remove_empty(dir)?;
    }
    Ok(())
}

/// A group counts as busy for a moment after its last process was reaped.
fn remove_empty(dir: &Path) -> Result<(), CgroupError> {
    let mut last = Ok(());
    for _ in 0..KILL_ROUNDS {
        last = fs::remove_dir(dir);
        match &last {
            Ok(()) => return Ok(()),
            Err(err) if err.raw_os_error() == Some(libc::EBUSY) => std::thread::sleep(Duration::from_millis(1)),
            Err(_) => break,
        }
    }
    last.map_err(CgroupError::io("remove", dir))
}

#[cfg(test)]
mod tests {
    use super::super::{Cgroups, Mode, Policy};
    use super::*;

    #[test]
    fn every_limit_stands_in_the_kernels_own_files() {
        let cgroups = Cgroups::detect(&format!("limits-{}", std::process::id())).expect("control groups");
        assert_ne!(cgroups.mode(), Mode::None, "these tests need control groups");
        let policy = Policy { memory_mib: 100, swap_bytes_max: 4 << 20, pids_max: 77, cpu_quota: true };
        let group = cgroups.create("build", &policy.of(kiln_wire::Resources { cores: 3, memory_mib: 0 })).expect("a group");
        let mib = |mib: u64| (mib << 20).to_string();
        let v1 = [
            (&group.memory, "memory.limit_in_bytes", mib(100)),
            (&group.memory, "memory.memsw.limit_in_bytes", mib(104)),
            (&group.pids, "pids.max", "77".to_owned()),
            (&group.cpu, "cpu.cfs_quota_us", "300000".to_owned()),
            (&group.cpu, "cpu.cfs_period_us", "100000".to_owned()),
            (&group.cpu, "cpu.shares", "3072".to_owned()),
            (&group.io, "blkio.bfq.weight", "300".to_owned()),
        ];
        let v2 = [
            (&group.memory, "memory.max", mib(100)),
            (&group.memory, "memory.swap.max", mib(4)),
            (&group.memory, "memory.oom.group", "1".to_owned()),
            (&group.pids, "pids.max", "77".to_owned()),
            (&group.cpu, "cpu.max", "300000 100000".to_owned()),
            (&group.cpu, "cpu.weight", "300".to_owned()),
            (&group.io, "io.weight", "default 300".to_owned()),
        ];
        for (dir, name, want) in if group.v2 { v2 } else { v1 } {
            let dir = dir.as_ref().unwrap_or_else(|| panic!("no controller for {name}"));
            // Kernels without swap accounting or an I/O scheduler have no such file.
            if !dir.join(name).exists() && (name.contains("sw") || name.contains("io.")) {
                continue;
            }
            let found = fs::read_to_string(dir.join(name)).unwrap_or_else(|err| panic!("{name}: {err}"));
            assert_eq!(found.trim(), want, "{name}");
        }
        group.remove().expect("remove the group");
        cgroups.remove_home().expect("remove the place");
    }
}
