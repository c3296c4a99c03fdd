//! Times, durations, sizes and counts, as people read them. UTC throughout: a farm and its readers are in several zones.

use kiln_wire::Timestamp;
use maud::{Markup, html};

/// Returns a duration in at most two units: `3 h 12 min`, `45 s`, `820 ms`.
pub fn duration(ms: u64) -> String {
    let (seconds, minutes, hours, days) = (ms / 1000, ms / 60_000, ms / 3_600_000, ms / 86_400_000);
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{seconds} s"),
        60_000..600_000 if seconds % 60 > 0 => format!("{minutes} min {} s", seconds % 60),
        60_000..3_600_000 => format!("{minutes} min"),
        3_600_000..86_400_000 if minutes % 60 > 0 => format!("{hours} h {} min", minutes % 60),
        3_600_000..86_400_000 => format!("{hours} h"),
        _ if hours % 24 > 0 => format!("{days} d {} h", hours % 24),
        _ => format!("{days} d"),
    }
}

/// Returns a size in binary units: `1.4 GiB`.
pub fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut tenths, mut unit) = (u128::from(bytes) * 10 / 1024, 0);
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    while tenths >= 10_240 && unit + 1 < units.len() {
        (tenths, unit) = (tenths / 1024, unit + 1);
    }
    match tenths {
        0..1000 => format!("{}.{} {}", tenths / 10, tenths % 10, units[unit]),
        _ => format!("{} {}", tenths / 10, units[unit]),
    }
}

/// Returns a number with its thousands apart: `60,000`.
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Returns a number and the word for what is counted.
pub fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// Returns a part of a whole in per cent, rounded down: 100 means all.
pub fn percent(part: u64, whole: u64) -> u64 {
    match whole {
        0 => 0,
        _ => u64::try_from(u128::from(part) * 100 / u128::from(whole)).unwrap_or(u64::MAX),
    }
}

/// Returns a moment as `2026-12-01 02:41:07`.
pub fn moment(at: Timestamp) -> String {
    let (year, month, day) = civil(at.0 / 86_400_000);
    format!("{year:04}-{month:02}-{day:02} {}", seconds(at))
}

/// Returns a moment's hour and minute, and its day if that is another one than that of `now`.
pub fn clock(now: Timestamp, at: Timestamp) -> String {
    let minute = &seconds(at)[..5];
    if now.0 / 86_400_000 == at.0 / 86_400_000 {
        return format!("{minute} UTC");
    }
    let (_, month, day) = civil(at.0 / 86_400_000);
    format!("{month:02}-{day:02} {minute} UTC")
}

/// Returns how long ago a moment is, with the moment itself for who wants to know.
pub fn ago(now: Timestamp, at: Timestamp) -> Markup {
    let words = if at > now { format!("in {}", duration(at.since_ms(now))) } else { format!("{} ago", duration(now.since_ms(at))) };
    html! { time datetime=(machine(at)) title=(format!("{} UTC", moment(at))) { (words) } }
}

/// Returns a moment for programs.
pub fn machine(at: Timestamp) -> String {
    format!("{}Z", moment(at).replacen(' ', "T", 1))
}

fn seconds(at: Timestamp) -> String {
    let second = at.0 / 1000 % 86_400;
    format!("{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// Returns the year, month and day of a day since the Unix epoch. Source: Howard Hinnant, chrono-compatible low-level date algorithms.
fn civil(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units_at_most() {
        for (ms, words) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (59_999, "59 s"),
            (60_000, "1 min"),
            (95_000, "1 min 35 s"),
            (3_599_000, "59 min"),
            (3_600_000, "1 h"),
            (11_520_000, "3 h 12 min"),
            (90_000_000, "1 d 1 h"),
            (u64::MAX, "213503982334 d 14 h"),
        ] {
            assert_eq!(duration(ms), words);
        }
    }

    #[test]
    fn sizes_and_counts_are_grouped() {
        for (size, words) in [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_503_238_553, "1.3 GiB"), (200 << 20, "200 MiB")] {
            assert_eq!(bytes(size), words);
        }
        assert_eq!(bytes(u64::MAX), "16383 PiB");
        for (number, words) in [(0, "0"), (999, "999"), (1000, "1,000"), (60_000, "60,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), words);
        }
    }

    #[test]
    fn moments_are_days_of_the_calendar() {
        for (ms, words) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400_000, "2000-02-29 00:00:00"),
            (1_764_557_999_000, "2025-12-01 02:59:59"),
            (4_107_542_400_000, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(moment(Timestamp(ms)), words);
        }
        assert_eq!(clock(Timestamp(1_764_557_999_000), Timestamp(1_764_557_000_000)), "02:43 UTC");
        assert_eq!(clock(Timestamp(1_764_557_999_000), Timestamp(1_764_457_000_000)), "11-29 22:56 UTC");
    }
}
