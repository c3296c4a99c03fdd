//! What a group used, as the kernel tells it. What it does not tell is absent.

use std::fs;
use std::path::Path;

use super::delegate::own_oom_kills;
use super::group::Group;

/// What a group used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Processor time in milliseconds, if the kernel told.
    pub cpu_ms: Option<u64>,
    /// Milliseconds for which the processor quota kept the group from running, if the kernel told.
    pub cpu_throttled_ms: Option<u64>,
    /// Highest memory use in bytes, if the kernel told.
    pub memory_peak_bytes: Option<u64>,
    /// Bytes that block devices were given to write on the group's behalf, if the kernel told. What the kernel has not yet written
    /// back, and with v1 whatever it writes back, is not among them.
    pub disk_write_bytes: Option<u64>,
    /// Processes of the group that were killed for its memory limit.
    pub oom_kills: u64,
    /// Processes that could not be made for the group's limit.
    pub pids_refused: u64,
}

impl Group {
    /// Returns what the group used so far.
    pub fn used(&self) -> Used {
        let unified = self.unified.as_deref().and_then(|dir| field(&dir.join("cpu.stat"), "usage_usec")).map(|us| us / 1000);
        let v1 = self.cpuacct.as_deref().and_then(|dir| number(&dir.join("cpuacct.usage"))).map(|ns| ns / 1_000_000);
        let (throttled, per_ms) = if self.v2 { ("throttled_usec", 1000) } else { ("throttled_time", 1_000_000) };
        let (peak_file, events_file) =
            if self.v2 { ("memory.peak", "memory.events") } else { ("memory.max_usage_in_bytes", "memory.oom_control") };
        let oom_kills = self.memory.as_deref().and_then(|dir| match (self.v2, self.delegated) {
            (true, true) => own_oom_kills(dir),
            (true, false) | (false, _) => field(&dir.join(events_file), "oom_kill"),
        });
        Used {
            cpu_ms: unified.or(v1),
            cpu_throttled_ms: self.cpu.as_deref().and_then(|dir| field(&dir.join("cpu.stat"), throttled)).map(|time| time / per_ms),
            memory_peak_bytes: self.memory.as_deref().and_then(|dir| number(&dir.join(peak_file))),
            disk_write_bytes: self.io.as_deref().and_then(|dir| written(dir, self.v2)),
            oom_kills: oom_kills.unwrap_or(0),
            pids_refused: self.pids_events().and_then(|file| field(&file, "max")).unwrap_or(0),
        }
    }
}

fn written(dir: &Path, v2: bool) -> Option<u64> {
    if v2 {
        return fs::read_to_string(dir.join("io.stat")).ok().map(|text| written_v2(&text));
    }
    let files = ["blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"];
    files.iter().find_map(|file| fs::read_to_string(dir.join(file)).ok()).map(|text| written_v1(&text))
}

/// Lines are `MAJOR:MINOR rbytes=N wbytes=N …`, one for each device that was used.
fn written_v2(text: &str) -> u64 {
    let figures = text.split_whitespace().filter_map(|word| word.strip_prefix("wbytes=")?.parse().ok());
    figures.fold(0, u64::saturating_add)
}

/// Lines are `MAJOR:MINOR Write N`, and others; the last is a total of all kinds.
fn written_v1(text: &str) -> u64 {
    let figures = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        (words.next() == Some("Write")).then(|| words.next()?.parse().ok()).flatten()
    });
    figures.fold(0, u64::saturating_add)
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Reads one line of a file of `name value` lines.
pub(super) fn field(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_of_all_devices_are_added_and_nothing_else() {
        let v2 = [
            ("", 0),
            ("254:0 rbytes=1 wbytes=20 rios=3 wios=4 dbytes=5 dios=6\n8:0 rbytes=1 wbytes=300\n7:1 \n", 320),
            ("8:0 wbytes=18446744073709551615\n8:1 wbytes=9\n8:2 wbytes=-1\n", u64::MAX),
        ];
        for (text, want) in v2 {
            assert_eq!(written_v2(text), want, "{text}");
        }
        let v1 = [
            ("Total 0\n", 0),
            ("254:0 Read 7\n254:0 Write 20\n254:0 Sync 20\n8:0 Write 300\n8:0 Total 307\nTotal 627\n", 320),
            ("8:0\n8:0 Write\n", 0),
        ];
        for (text, want) in v1 {
            assert_eq!(written_v1(text), want, "{text}");
        }
    }
}
