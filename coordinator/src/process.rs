//! What this process takes of its machine, and what its disk has left, as the kernel says when asked. The names are those that Prometheus' own
//! libraries give to such figures.

use std::fs;
use std::path::Path;

/// Figures of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Processor time, of user and kernel, in hundredths of a second.
    pub cpu_ticks: u64,
    /// Memory in use.
    pub resident_bytes: u64,
    /// Memory that is mapped.
    pub virtual_bytes: u64,
    /// When it started, in hundredths of a second since 1970.
    pub started_ticks: u64,
    /// Open files and sockets.
    pub open_fds: u64,
    /// How many there may be.
    pub max_fds: u64,
}

/// A file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Bytes that this process may still fill.
    pub free_bytes: u64,
    /// Bytes that it may fill of an empty one.
    pub size_bytes: u64,
}

impl Process {
    /// Returns the figures of this process; none on a system without `/proc`.
    pub(crate) fn own() -> Option<Self> {
        let read = |name: &str| fs::read_to_string(format!("/proc/{name}")).ok();
        let open_fds = u64::try_from(fs::read_dir("/proc/self/fd").ok()?.count()).ok()?;
        parse(&read("self/stat")?, &read("self/status")?, &read("self/limits")?, &read("stat")?).map(|process| Self { open_fds, ..process })
    }
}

impl Disk {
    /// Returns the file system of a directory; none if the kernel does not say.
    pub(crate) fn of(dir: &Path) -> Option<Self> {
        let of = nix::sys::statvfs::statvfs(dir).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(of.fragment_size());
        // What is kept for root is nobody's to fill: it counts as no part of the disk.
        let kept = of.blocks_free().saturating_sub(of.blocks_available());
        Some(Self { free_bytes: bytes(of.blocks_available()), size_bytes: bytes(of.blocks().saturating_sub(kept)) })
    }
}

/// Reads `/proc/self/stat`, `status` and `limits`, and `/proc/stat`: proc(5).
fn parse(stat: &str, status: &str, limits: &str, machine: &str) -> Option<Process> {
    // The name, in brackets, may hold anything. What follows begins with the third field.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number.checked_sub(3)?)?.parse::<u64>().ok();
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    let max_fds = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?;
    let booted: u64 = machine.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(Process {
        cpu_ticks: field(14)? + field(15)?,
        resident_bytes: kib("VmRSS:")? << 10,
        virtual_bytes: kib("VmSize:")? << 10,
        started_ticks: booted * TICKS_PER_SECOND + field(22)?,
        open_fds: 0,
        max_fds: max_fds.parse().unwrap_or(u64::MAX),
    })
}

/// Linux's `USER_HZ`, part of the interface of every platform that Kiln runs on.
pub const TICKS_PER_SECOND: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_an_odd_name_is_read() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 100 0 0 0 250 51 0 0 20 0 9 0 1234 1 1";
        let status = "Name:\tx\nVmSize:\t    4096 kB\nVmRSS:\t    2048 kB\n";
        let limits = "Limit   Soft Limit  Hard Limit Units\nMax open files            1024                 524288               files\n";
        let expected = Process {
            cpu_ticks: 301,
            resident_bytes: 2 << 20,
            virtual_bytes: 4 << 20,
            started_ticks: 170_000_001_234,
            open_fds: 0,
            max_fds: 1024,
        };
        let machine = "cpu 1 2 3\nbtime 1700000000\n";
        assert_eq!(parse(stat, status, limits, machine), Some(expected));
        assert_eq!(parse(stat, status, &limits.replace("1024", "unlimited"), machine).map(|of| of.max_fds), Some(u64::MAX));
        assert_eq!(parse("7 (x) S 1", status, limits, machine), None, "what is not there is not made up");
    }

    #[test]
    fn this_process_and_its_disk_have_figures() {
        let process = Process::own().expect("Linux tells");
        assert!(process.resident_bytes > 1 << 20 && process.open_fds > 2 && process.open_fds <= process.max_fds, "{process:?}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("later").as_secs() * TICKS_PER_SECOND;
        assert!(process.started_ticks <= now + TICKS_PER_SECOND, "{process:?} at {now}");
        let disk = Disk::of(&std::env::temp_dir()).expect("there is one");
        assert!(disk.size_bytes > 0 && disk.free_bytes <= disk.size_bytes, "{disk:?}");
        assert_eq!(Disk::of(Path::new("/nowhere at all")), None);
    }
}
