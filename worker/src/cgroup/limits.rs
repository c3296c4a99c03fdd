//! What a build may use of its worker.

use kiln_wire::Resources;
use serde::{Deserialize, Serialize};

/// What a build's control group may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory, swap included, page cache and tmpfs too; at least [`MEMORY_BYTES_MIN`]. Passing it kills the whole group.
    pub memory_bytes_max: u64,
    /// Processes and threads at a time. Beyond it `fork` fails with EAGAIN.
    pub pids_max: u32,
    /// Share of the processor when builds compete, in the unit of cgroup v2 (1 to 10,000).
    pub cpu_weight: u32,
    /// Most cores at a time, where even an idle machine must not lend more.
    pub cpu_cores_max: Option<u32>,
}

/// Least memory of a build. A process that is still on its way to its builder shares the worker's memory, and the kernel kills everybody
/// who shares the memory of what it kills, so no limit may be reached on that way. The way's most: 6 MiB of arguments and environment,
/// and a few hundred bytes for each of some ten thousand inputs.
pub const MEMORY_BYTES_MIN: u64 = 64 << 20;
/// Processes that one build may have: a linker farm on 64 cores has hundreds, a fork bomb has more than this.
const PIDS_PER_BUILD: u32 = 16_384;
/// Weight of one core's worth of a build: cgroup v2's default.
const WEIGHT_PER_CORE: u32 = 100;
/// Largest weight that cgroup v2 takes.
const WEIGHT_MAX: u32 = 10_000;

impl Limits {
    /// Returns the limits that follow from what a job was granted: its memory hard (but not below [`MEMORY_BYTES_MIN`]), its cores as
    /// a share. A job that asked for no memory, as most do, may have what jobs may have together on this worker.
    pub fn of(granted: Resources, worker_memory_mib: u64) -> Self {
        let memory_mib = if granted.memory_mib == 0 { worker_memory_mib } else { granted.memory_mib };
        Self {
            memory_bytes_max: memory_mib.saturating_mul(1 << 20).max(MEMORY_BYTES_MIN),
            pids_max: PIDS_PER_BUILD,
            cpu_weight: granted.cores.max(1).saturating_mul(WEIGHT_PER_CORE).min(WEIGHT_MAX),
            cpu_cores_max: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_gets_the_memory_it_was_granted_but_never_too_little_to_start() {
        let table = [(0, 8192, 8192), (256, 8192, 256), (1, 8192, 64), (u64::MAX, 8192, u64::MAX >> 20)];
        for (granted, worker, want) in table {
            let limits = Limits::of(Resources { cores: 1, memory_mib: granted }, worker);
            assert_eq!(limits.memory_bytes_max >> 20, want, "{granted} MiB of {worker} MiB");
        }
    }
}
