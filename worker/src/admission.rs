//! Looks at what the worker's machine is short of: pressure, load, memory, disk. Decides nothing (`kiln_agent::Admission` does).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_agent::{Bounds, Pressure, Vitals};
use serde::Deserialize;

/// Time between two looks. A look is a few small reads; pressure is the kernel's average over ten seconds and more.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);

/// From where on a worker takes nothing new, beside `disk_free_bytes_min`. What runs goes on, and a worker that runs nothing takes jobs,
/// until it looks again, whatever these say. Shares are of a hundred; 0 switches one off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Memory that stays free, in MiB. Default: a thirty-second part of the machine's.
    pub memory_free_mib_min: Option<u64>,
    /// Of the last ten seconds, in which every process waited for memory. Default 30: such a machine thrashes.
    pub memory_pressure_percent_max: u32,
    /// Of the last minute, in which every process waited for a disk. Default 80.
    pub io_pressure_percent_max: u32,
    /// Of the last minute, in which some process waited for a processor. Default 0, for a worker whose cores are all at work is not short of
    /// anything; to be set on a machine that does other work too.
    pub cpu_pressure_percent_max: u32,
    /// Load in hundredths of what the processors can do, where the kernel tells no pressure. Default 400.
    pub load_percent_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            memory_free_mib_min: None,
            memory_pressure_percent_max: 30,
            io_pressure_percent_max: 80,
            cpu_pressure_percent_max: 0,
            load_percent_max: 400,
        }
    }
}

impl Config {
    /// Returns the bounds on a machine with this much memory.
    pub fn bounds(&self, disk_free_bytes_min: u64, machine_memory_mib: u64) -> Bounds {
        let permille = |percent: u32| (percent > 0).then(|| percent.saturating_mul(10));
        Bounds {
            disk_free_bytes_min,
            memory_free_mib_min: self.memory_free_mib_min.unwrap_or(machine_memory_mib / 32),
            cpu_permille_max: permille(self.cpu_pressure_percent_max),
            memory_permille_max: permille(self.memory_pressure_percent_max),
            io_permille_max: permille(self.io_pressure_percent_max),
            load_permille_max: permille(self.load_percent_max),
        }
    }
}

/// Reads the machine.
#[derive(Clone, Debug)]
pub struct Gauges {
    dir: PathBuf,
    cores: u32,
}

impl Gauges {
    /// Looks at the disk of `dir`, and at load as all of the machine's processors bear it.
    pub fn new(dir: &Path) -> Self {
        let online = fs::read_to_string("/sys/devices/system/cpu/online").ok();
        Self { dir: dir.to_owned(), cores: online.and_then(|text| processors(&text)).unwrap_or(1) }
    }

    /// Looks once. What cannot be read is none.
    pub fn read(&self) -> Vitals {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let pressure = Pressure {
            cpu_some_permille: stalled(&text("/proc/pressure/cpu"), "some", "avg60="),
            memory_full_permille: stalled(&text("/proc/pressure/memory"), "full", "avg10="),
            io_full_permille: stalled(&text("/proc/pressure/io"), "full", "avg60="),
        };
        let disk = rustix::fs::statvfs(&self.dir).ok();
        Vitals {
            disk_free_bytes: disk.map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize)),
            memory_free_mib: memory_available_mib(&text("/proc/meminfo")),
            pressure,
            load_permille: load(&text("/proc/loadavg"), self.cores),
        }
    }
}

/// Reads one average of `/proc/pressure/…`, in thousandths.
fn stalled(text: &str, kind: &str, average: &str) -> Option<u32> {
    let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
    thousandths(line.split(' ').find_map(|word| word.strip_prefix(average))?, 10)
}

/// Reads the load of the last minute, in thousandths for each core.
fn load(text: &str, cores: u32) -> Option<u32> {
    thousandths(text.split(' ').next()?, 1000).map(|load| load / cores)
}

/// Counts the processors of a list of ranges, `0-3,8`.
fn processors(text: &str) -> Option<u32> {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        last.parse::<u32>().ok()?.checked_sub(first.parse().ok()?)?.checked_add(1)
    };
    text.trim().split(',').map(range).try_fold(0u32, |sum, count| sum.checked_add(count?)).filter(|sum| *sum > 0)
}

fn memory_available_mib(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib >> 10)
}

/// Reads a number with two decimals, times `unit`.
fn thousandths(text: &str, unit: u32) -> Option<u32> {
    let (whole, hundredths) = text.split_once('.')?;
    let hundredths = (hundredths.len() == 2).then(|| hundredths.parse::<u32>().ok())??;
    whole.parse::<u32>().ok()?.checked_mul(unit)?.checked_add(hundredths.checked_mul(unit)? / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_read() {
        let psi = "some avg10=1.25 avg60=99.99 avg300=0.19 total=23\nfull avg10=30.00 avg60=7.10 avg300=0.00 total=1\n";
        let table =
            [("some", "avg10=", Some(12)), ("some", "avg60=", Some(999)), ("full", "avg10=", Some(300)), ("full", "avg60=", Some(71))];
        for (kind, average, expect) in table {
            assert_eq!(stalled(psi, kind, average), expect, "{kind} {average}");
        }
        assert_eq!(memory_available_mib("MemTotal:       24576000 kB\nMemAvailable:    2097152 kB\n"), Some(2048));
        assert_eq!(load("3.50 2.00 1.00 2/345 6789\n", 2), Some(1750));
    }

    #[test]
    fn processors_are_counted() {
        let table = [
            ("0\n", Some(1)),
            ("0-3\n", Some(4)),
            ("0-1,4,6-7\n", Some(5)),
            ("", None),
            ("3-1", None),
            ("0-4294967295", None),
            ("0,x", None),
        ];
        for (text, expect) in table {
            assert_eq!(processors(text), expect, "{text}");
        }
    }

    #[test]
    fn other_words_are_none() {
        for text in ["", "some", "some avg60", "some avg60=", "some avg60=x.yz", "some avg60=4294967295.99", "full avg10=1.00"] {
            assert_eq!(stalled(text, "some", "avg60="), None, "{text}");
        }
        for text in ["", "MemAvailable:", "MemAvailable: 7 MB", "MemAvailable: -7 kB"] {
            assert_eq!(memory_available_mib(text), None, "{text}");
        }
        for text in ["", ".", "1", "1.5", "99999999.00"] {
            assert_eq!(load(text, 1), None, "{text}");
        }
    }

    #[test]
    fn this_machine_can_be_read() {
        let vitals = Gauges::new(Path::new("/")).read();
        assert!(vitals.disk_free_bytes.is_some() && vitals.memory_free_mib.is_some_and(|mib| mib > 0), "{vitals:?}");
        assert!(vitals.load_permille.is_some(), "{vitals:?}");
    }
}
