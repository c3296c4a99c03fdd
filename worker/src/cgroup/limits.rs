//! What a build may use of its worker.

use kiln_wire::Resources;
use serde::{Deserialize, Serialize};

/// What a build's control group may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory, page cache and tmpfs too; at least [`MEMORY_BYTES_MIN`]. Passing it kills the whole group.
    pub memory_bytes_max: u64,
    /// Longest time in milliseconds for which all processes may wait for memory within ten seconds, where the kernel tells; beyond it the
    /// build counts as out of memory. One that pages its own program in again and again would go on so for hours.
    pub memory_stall_ms_max: u32,
    /// Swap beside that memory. Control groups of version 1 count both together, so that a build there may have all of it in memory.
    pub swap_bytes_max: u64,
    /// Processes and threads at a time. Beyond it `fork` fails with EAGAIN, and the build is stopped.
    pub pids_max: u32,
    /// Share of the processor when builds compete, in the unit of cgroup v2 (1 to 10,000).
    pub cpu_weight: u32,
    /// Most thousandths of a core, where even an idle machine must not lend more.
    pub cpu_millicores_max: Option<u32>,
    /// Share of the disks when builds compete, as [`Limits::cpu_weight`]. Only where an I/O scheduler heeds it.
    pub io_weight: u32,
}

/// What a worker decides for all of its builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Memory in MiB that jobs may use together.
    pub memory_mib: u64,
    /// Swap that each build may use beside its memory.
    pub swap_bytes_max: u64,
    /// Processes and threads that each build may have at a time.
    pub pids_max: u32,
    /// Whether a build gets no more than the cores that it was granted, even of an idle machine.
    pub cpu_quota: bool,
}

/// Least memory of a build. A process that is still on its way to its builder shares the worker's memory, and the kernel kills everybody
/// who shares the memory of what it kills, so no limit may be reached on that way. The way's most: 6 MiB of arguments and environment,
/// and a few hundred bytes for each of some ten thousand inputs.
pub const MEMORY_BYTES_MIN: u64 = 64 << 20;
/// Nine tenths of the time: whatever makes any progress is left to it.
const MEMORY_STALL_MS_MAX: u32 = 9000;
/// Weight of one core's worth of a build: cgroup v2's default.
const WEIGHT_PER_CORE: u32 = 100;
/// Largest weight that cgroup v2 takes.
const WEIGHT_MAX: u32 = 10_000;

impl Policy {
    /// Returns the limits that follow from what a job was granted: its memory hard (but not below [`MEMORY_BYTES_MIN`]), its cores as
    /// a share of processor and disks, and hard where the worker says so. A job that asked for no memory, as most do, may have what
    /// jobs may have together on this worker.
    pub fn of(&self, granted: Resources) -> Limits {
        let memory_mib = if granted.memory_mib == 0 { self.memory_mib } else { granted.memory_mib };
        let cores = granted.cores.max(1);
        let weight = cores.saturating_mul(WEIGHT_PER_CORE).min(WEIGHT_MAX);
        Limits {
            memory_bytes_max: memory_mib.saturating_mul(1 << 20).max(MEMORY_BYTES_MIN),
            memory_stall_ms_max: MEMORY_STALL_MS_MAX,
            swap_bytes_max: self.swap_bytes_max,
            pids_max: self.pids_max,
            cpu_weight: weight,
            cpu_millicores_max: self.cpu_quota.then(|| cores.saturating_mul(1000)),
            io_weight: weight,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { memory_mib: 8192, swap_bytes_max: 0, pids_max: 100, cpu_quota: false };

    #[test]
    fn a_build_gets_the_memory_it_was_granted_but_never_too_little_to_start() {
        for (granted, want) in [(0, 8192), (256, 256), (1, 64), (u64::MAX, u64::MAX >> 20)] {
            let limits = POLICY.of(Resources { cores: 1, memory_mib: granted });
            assert_eq!(limits.memory_bytes_max >> 20, want, "{granted} MiB");
        }
    }

    #[test]
    fn cores_are_a_share_and_a_quota_only_where_the_worker_says_so() {
        for (cores, quota, weight, most) in [
            (0, false, 100, None),
            (4, false, 400, None),
            (4, true, 400, Some(4000)),
            (0, true, 100, Some(1000)),
            (4096, true, 10_000, Some(4_096_000)),
        ] {
            let limits = Policy { cpu_quota: quota, ..POLICY }.of(Resources { cores, memory_mib: 0 });
            assert_eq!((limits.cpu_weight, limits.io_weight, limits.cpu_millicores_max), (weight, weight, most), "{cores} cores");
        }
    }
}
