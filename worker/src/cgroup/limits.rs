//! What a build may use of its worker.

use kiln_wire::Resources;

/// What a build's control group may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory, swap included, page cache and tmpfs too. Passing it kills the whole group.
    pub memory_bytes_max: u64,
    /// Processes and threads at a time. Beyond it `fork` fails with EAGAIN.
    pub pids_max: u32,
    /// Share of the processor when builds compete, in the unit of cgroup v2 (1 to 10,000).
    pub cpu_weight: u32,
    /// Most cores at a time, where even an idle machine must not lend more.
    pub cpu_cores_max: Option<u32>,
}

/// Processes that one build may have: a linker farm on 64 cores has hundreds, a fork bomb has more than this.
const PIDS_PER_BUILD: u32 = 16_384;
/// Weight of one core's worth of a build: cgroup v2's default.
const WEIGHT_PER_CORE: u32 = 100;
/// Largest weight that cgroup v2 takes.
const WEIGHT_MAX: u32 = 10_000;

impl Limits {
    /// Returns the limits that follow from what a job was granted: its memory hard, its cores as a share. A job that asked for no
    /// memory, as most do, may have what jobs may have together on this worker.
    pub fn of(granted: Resources, worker_memory_mib: u64) -> Self {
        let memory_mib = if granted.memory_mib == 0 { worker_memory_mib } else { granted.memory_mib };
        Self {
            memory_bytes_max: memory_mib.saturating_mul(1 << 20),
            pids_max: PIDS_PER_BUILD,
            cpu_weight: granted.cores.max(1).saturating_mul(WEIGHT_PER_CORE).min(WEIGHT_MAX),
            cpu_cores_max: None,
        }
    }
}
