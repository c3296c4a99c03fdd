//! What a configuration may say.

use super::*;

const SMALL: &str = "name = 'w1'\ndir = '/var/lib/kiln'\ncoordinators = ['localhost:7400']\n";

fn load(text: &str) -> Result<Config, ConfigError> {
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    std::fs::write(file.path(), text).expect("write");
    Config::load(file.path())
}

#[test]
fn three_lines_are_enough() {
    let config = load(SMALL).expect("three lines");
    assert!(config.slots() >= 1 && config.memory_mib() >= 64 && !config.systems().is_empty());
}

#[test]
fn a_bad_value_is_refused_with_its_knob() {
    let table = [
        ("slotz = 3", "slotz"),
        ("slots = 0", "slots"),
        ("slots = 5000", "slots"),
        ("light_slots = 65", "light_slots"),
        ("speed_per_mille = 0", "speed_per_mille"),
        ("memory_mib = 1", "memory_mib"),
        ("systems = []", "systems"),
        ("busybox = 'bin/sh'", "busybox"),
        ("slots = 2\nslot_first = 1023", "slot_first"),
        ("fetches_max = 0", "fetches_max"),
        ("[limits]\nwall_ms_max = 0", "wall_ms_max"),
        ("[limits]\nlog_bytes_max = 99999999999", "log_bytes_max"),
        ("[limits]\nwall = 1", "wall"),
        ("[limits]\npids_max = 3", "limits.pids_max"),
        ("[limits]\ndisk_bytes_max = 3", "limits.disk_bytes_max"),
        ("[limits]\ndisk_inodes_max = 3", "limits.disk_inodes_max"),
        ("disk = 'floppy'", "disk"),
        ("disk_free_bytes_min = 0", "disk_free_bytes_min"),
        ("[fixed_output_network]\nmode = 'open'", "mode"),
        ("[fixed_output_network]\ndeny = ['10.0.0.0/40']", "deny"),
        ("[fixed_output_network]\nallow = ['169.254.169.254/32']", "fixed_output_network.allow"),
        ("[fixed_output_network]\nallow = ['127.0.0.1/32']", "fixed_output_network.allow"),
    ];
    for (line, knob) in table {
        let error = load(&format!("{SMALL}{line}\n")).expect_err(line);
        let text = format!("{error} {}", std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default());
        assert!(text.contains(knob), "{line}: {text}");
    }
}

#[test]
fn a_job_without_limits_gets_the_workers_own() {
    let own = DefaultLimits { wall_ms_max: 7, ..DefaultLimits::default() };
    assert_eq!(own.of(&JobLimits::default()).wall_ms_max, 7);
    assert_eq!(own.of(&JobLimits { wall_ms_max: 9, log_bytes_max: u64::MAX, ..JobLimits::default() }).wall_ms_max, 9);
    assert_eq!(own.of(&JobLimits { log_bytes_max: u64::MAX, ..JobLimits::default() }).log_bytes_max, limits::LOG_BYTES_MAX);
}
