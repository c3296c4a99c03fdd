//! One build's control group: its directories, limits, members, use and end.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use rustix::event::{EventfdFlags, eventfd};

use super::host::Homes;
use super::{CgroupError, Limits};

/// The control group of one build. [`Group::remove`] it when the build is gone; dropping it leaves it in place.
#[derive(Debug)]
pub struct Group {
    /// Each directory once.
    dirs: BTreeSet<PathBuf>,
    memory: Option<PathBuf>,
    cpuacct: Option<PathBuf>,
    unified: Option<PathBuf>,
    limits_pids: bool,
    v2: bool,
}

/// What a group used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Processor time in milliseconds, if the kernel told.
    pub cpu_ms: Option<u64>,
    /// Highest memory use in bytes, if the kernel told.
    pub memory_peak_bytes: Option<u64>,
    /// Processes of the group that were killed for its memory limit.
    pub oom_kills: u64,
}

impl Group {
    pub(super) fn create(homes: &Homes, name: &str, limits: &Limits) -> Result<Self, CgroupError> {
        let below = |home: &Option<PathBuf>| home.as_ref().map(|home| home.join(name));
        let (memory, pids, cpu) = (below(&homes.memory), below(&homes.pids), below(&homes.cpu));
        let (cpuacct, unified) = (below(&homes.cpuacct), below(&homes.unified));
        let dirs: BTreeSet<PathBuf> = homes.distinct().iter().map(|home| home.join(name)).collect();
        let group = Self { dirs, memory, cpuacct, unified, limits_pids: pids.is_some(), v2: homes.v2 };
        let made = group.make(limits, pids.as_deref(), cpu.as_deref());
        if made.is_err() {
            // The error at hand says more than one of a second clean-up would.
            let _ = group.remove();
        }
        made.map(|()| group)
    }

    fn make(&self, limits: &Limits, pids: Option<&Path>, cpu: Option<&Path>) -> Result<(), CgroupError> {
        for dir in &self.dirs {
            fs::create_dir(dir).map_err(CgroupError::io("make", dir))?;
        }
        if let Some(dir) = &self.memory {
            self.limit_memory(dir, limits)?;
        }
        if let Some(dir) = pids {
            let controller = PidController::new(dir.to_owned(), dir.to_owned(), self.v2);
            controller.set_pid_max(MaxValue::Value(i64::from(limits.pids_max))).map_err(limit_error("the number of processes", dir))?;
        }
        if let Some(dir) = cpu {
            self.limit_cpu(dir, limits)?;
        }
        Ok(())
    }

    fn limit_memory(&self, dir: &Path, limits: &Limits) -> Result<(), CgroupError> {
        let bytes = i64::try_from(limits.memory_bytes_max).unwrap_or(i64::MAX);
        let controller = MemController::new(dir.to_owned(), dir.to_owned(), self.v2);
        controller.set_limit(bytes).map_err(limit_error("memory", dir))?;
        // v1 counts memory and swap together, v2 swap alone. A kernel without swap accounting has neither file.
        let (swap_file, swap_limit) = if self.v2 { ("memory.swap.max", 0) } else { ("memory.memsw.limit_in_bytes", bytes) };
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
        if let Some(cores) = limits.cpu_cores_max {
            let quota_us = i64::from(cores) * PERIOD_US;
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

    /// Whether the number of processes is limited; if not, the launcher does it by other means.
    pub fn limits_pids(&self) -> bool {
        self.limits_pids
    }

    /// Returns an event that becomes readable when a v1 group runs out of memory, so that all of it can be killed as v2 does by
    /// itself. None with v2 or without a memory limit.
    ///
    /// # Errors
    /// [`CgroupError`] if the kernel refuses to notify.
    pub fn oom_event(&self) -> Result<Option<OwnedFd>, CgroupError> {
        let Some(dir) = self.memory.as_ref().filter(|_| !self.v2) else { return Ok(None) };
        let path = dir.join("memory.oom_control");
        let control = File::open(&path).map_err(CgroupError::io("open", &path))?;
        let event =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from).map_err(CgroupError::io("watch", &path))?;
        let line = format!("{} {}", std::os::fd::AsRawFd::as_raw_fd(&event), std::os::fd::AsRawFd::as_raw_fd(&control));
        let register = dir.join("cgroup.event_control");
        fs::write(&register, line).map_err(CgroupError::io("write", &register))?;
        Ok(Some(event))
    }

    /// Returns what the group used so far. What the kernel does not tell is absent.
    pub fn used(&self) -> Used {
        let unified = self.unified.as_ref().and_then(|dir| field(&dir.join("cpu.stat"), "usage_usec")).map(|us| us / 1000);
        let v1 = self.cpuacct.as_ref().and_then(|dir| number(&dir.join("cpuacct.usage"))).map(|ns| ns / 1_000_000);
        let (peak_file, events_file) =
            if self.v2 { ("memory.peak", "memory.events") } else { ("memory.max_usage_in_bytes", "memory.oom_control") };
        Used {
            cpu_ms: unified.or(v1),
            memory_peak_bytes: self.memory.as_ref().and_then(|dir| number(&dir.join(peak_file))),
            oom_kills: self.memory.as_ref().and_then(|dir| field(&dir.join(events_file), "oom_kill")).unwrap_or(0),
        }
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

/// The kernel's default period of the processor quota.
const PERIOD_US: i64 = 100_000;
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

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Reads one line of a file of `name value` lines.
fn field(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}
