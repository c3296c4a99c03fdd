//! How the command line talks: exit codes, sizes, durations.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

/// Everything was built, or the command did what it was asked to.
pub const SUCCESS: u8 = 0;
/// Something failed to build.
pub const FAILED: u8 = 1;
/// Bad usage or bad input.
pub const BAD_INPUT: u8 = 2;
/// The farm cannot be reached.
pub const UNREACHABLE: u8 = 3;

/// An error with the exit code that it gives.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Exit {
    code: u8,
    message: String,
}

/// Makes an error that exits with [`BAD_INPUT`].
pub fn bad_input(message: impl fmt::Display) -> anyhow::Error {
    Exit { code: BAD_INPUT, message: message.to_string() }.into()
}

/// Makes an error that exits with [`UNREACHABLE`].
pub fn unreachable_farm(message: impl fmt::Display) -> anyhow::Error {
    Exit { code: UNREACHABLE, message: message.to_string() }.into()
}

/// Returns the exit code of an error: its own, or that of a failure.
pub fn exit_code_of(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(error.downcast_ref::<Exit>().map_or(FAILED, |exit| exit.code))
}

/// Returns how many there are of something: `1 job`, `2 jobs`.
pub fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Returns names as lines of their own; of many only the first.
pub fn listed<T: fmt::Display>(names: &[T]) -> String {
    let mut lines: Vec<String> = names.iter().take(LISTED_MAX).map(|name| format!("  {name}")).collect();
    if names.len() > LISTED_MAX {
        lines.push(format!("  … and {} more", names.len() - LISTED_MAX));
    }
    lines.join("\n")
}

/// Returns a size for people: `1.5 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut tenths = u128::from(bytes) * 10;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]) }
}

/// Returns a duration for people: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{}.{} s", seconds, duration.subsec_millis() / 100),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600.. => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Names in one error: a screen is about twice as high.
const LISTED_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_told_from_many() {
        for (number, text) in [(0, "0 jobs"), (1, "1 job"), (2, "2 jobs")] {
            assert_eq!(count(number, "job"), text);
        }
    }

    #[test]
    fn a_list_names_each_up_to_a_screen_and_counts_the_rest() {
        assert_eq!(listed(&["a", "b"]), "  a\n  b");
        let many = listed(&(0..23).collect::<Vec<_>>());
        assert!(many.contains("  19\n") && many.ends_with("  … and 3 more"), "{many}");
    }

    #[test]
    fn sizes_and_durations_read_as_people_write_them() {
        let sizes = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_572_864, "1.5 MiB"), (u64::MAX, "16777215.9 TiB")];
        for (bytes, text) in sizes {
            assert_eq!(size(bytes), text);
        }
        for (ms, text) in [(0, "0.0 s"), (9_950, "9.9 s"), (10_000, "10 s"), (200_000, "3 min 20 s"), (7_500_000, "2 h 5 min")] {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
    }
}
