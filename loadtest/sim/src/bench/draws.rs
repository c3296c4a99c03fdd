//! How long jobs take, how large their outputs are, and what is known of that before: drawn from a seed.
//!
//! A duration belongs to a package and its version, as in life: derivations of one name and system take equally long, other versions of a
//! package nearly so. Sources (see the README of the graphs): ordinary jobs as the fit of Debian's rebuild of 2006, fetches, texts and
//! `big-parallel` as guessed there, outputs as Debian's installed sizes.

use kiln_wire::Resources;

use super::workload::{Kind, Task, Workload};
use crate::dice::Dice;

/// What to draw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Draws {
    pub seed: u64,
    /// Estimates are wrong by a log-normal factor with this standard deviation.
    pub error_sigma: f64,
    /// Share of names of which nothing is known.
    pub unknown: f64,
    /// What ordinary builds are taken to last of which nothing is known, by policies of the bench's own.
    pub guess_ms: u64,
    /// Jobs need memory; without, memory is no matter.
    pub memory: bool,
}

impl Draws {
    /// Everything is known exactly.
    pub const EXACT: Self = Self { seed: 1, error_sigma: 0.0, unknown: 0.0, guess_ms: GUESS_MS, memory: false };
}

/// See `loadtest/RESULTS.md`, `ops/prove/scheduler`: of the guesses tried, the one that costs least in the mean.
const GUESS_MS: u64 = 7_200_000;

/// Draws everything of every job.
pub(crate) fn draw(load: &mut Workload, draws: &Draws) {
    for task in &mut load.tasks {
        let duration_ms = duration_ms(task, draws.seed);
        task.duration_ms = duration_ms;
        task.output_bytes = output_bytes(task, draws.seed);
        task.estimate_ms = estimate_ms(task, draws);
        task.expected_ms = task.estimate_ms.unwrap_or_else(|| guess_ms(task.kind, draws));
        task.spec.resources = Resources { memory_mib: if draws.memory { memory_mib(task, draws.seed) } else { 0 }, ..task.spec.resources };
    }
}

/// Returns the same jobs with instant builders: what is left is the farm's own time.
pub(crate) fn instant(load: &mut Workload) {
    for task in &mut load.tasks {
        (task.duration_ms, task.estimate_ms, task.expected_ms, task.output_bytes) = (0, Some(0), 0, 0);
    }
}

/// Splits a derivation's name as Nix does: the version begins after the first dash that no letter follows.
pub(crate) fn split_name(name: &str) -> (&str, &str) {
    let bytes = name.as_bytes();
    let dash = (0..bytes.len()).find(|at| bytes[*at] == b'-' && bytes.get(at + 1).is_some_and(|next| !next.is_ascii_alphabetic()));
    dash.map_or((name, ""), |at| (&name[..at], &name[at + 1..]))
}

/// What a job is taken to last of which nothing but its kind is known.
fn guess_ms(kind: Kind, draws: &Draws) -> u64 {
    match kind {
        Kind::Fetch => 4_000,
        Kind::Text => 700,
        Kind::Giant => draws.guess_ms.max(3_840_000),
        Kind::Ordinary => draws.guess_ms,
    }
}

fn duration_ms(task: &Task, seed: u64) -> u64 {
    let (package, _) = split_name(task.name());
    let mut by_package = dice(seed, "package", package);
    let mut by_version = dice(seed, &task.spec.system, task.name());
    let mut by_derivation = dice(seed, "derivation", task.spec.derivation.as_str());
    let seconds = match task.kind {
        Kind::Fetch => log_normal(&mut by_derivation, 2f64.ln(), 1.0),
        Kind::Text => (0.05f64.ln() + unit(&mut by_derivation) * (1f64 / 0.05).ln()).exp(),
        Kind::Giant => log_normal(&mut by_package, 2400f64.ln(), 0.7) * log_normal(&mut by_version, 0.0, VERSION_SIGMA),
        Kind::Ordinary => {
            let (mu, sigma) = if unit(&mut by_package) < 0.839 { (3.249, 0.982) } else { (3.814, 1.893) };
            log_normal(&mut by_package, mu, sigma) * log_normal(&mut by_version, 0.0, VERSION_SIGMA)
        }
    };
    milliseconds(seconds)
}

/// By how much versions of a package differ. A guess.
const VERSION_SIGMA: f64 = 0.15;

/// Hydra's limit is ten hours.
fn milliseconds(seconds: f64) -> u64 {
    (seconds.clamp(0.001, 36_000.0) * 1000.0).round() as u64
}

fn estimate_ms(task: &Task, draws: &Draws) -> Option<u64> {
    let mut known = dice(draws.seed, "known", task.name());
    if unit(&mut known) < draws.unknown {
        return None;
    }
    let mut error = dice(draws.seed, "error", task.name());
    Some(milliseconds(task.duration_ms as f64 / 1000.0 * log_normal(&mut error, 0.0, draws.error_sigma)))
}

fn output_bytes(task: &Task, seed: u64) -> u64 {
    let mut by_package = dice(seed, "size", task.name());
    let kib = match task.kind {
        Kind::Text => 2.0,
        Kind::Fetch => log_normal(&mut by_package, 300f64.ln(), 2.08),
        Kind::Giant => log_normal(&mut by_package, 200_000f64.ln(), 1.0),
        Kind::Ordinary => log_normal(&mut by_package, 5.89, 2.15),
    };
    // Debian's largest package has 28.7 GB; the 99th percentile 129 MB.
    (kib.clamp(0.2, 4_000_000.0) * 1024.0) as u64
}

/// A guess: most builds are content with some hundred MiB, `big-parallel` ones take gigabytes.
fn memory_mib(task: &Task, seed: u64) -> u64 {
    let mut by_package = dice(seed, "memory", split_name(task.name()).0);
    let mib = match task.kind {
        Kind::Text | Kind::Fetch => 64.0,
        Kind::Giant => log_normal(&mut by_package, 8_000f64.ln(), 0.5).clamp(2_000.0, 16_000.0),
        Kind::Ordinary => log_normal(&mut by_package, 400f64.ln(), 1.0).clamp(64.0, 8_000.0),
    };
    mib.round() as u64
}

/// Returns dice that depend on the seed, a word and a key only (FNV-1a).
fn dice(seed: u64, word: &str, key: &str) -> Dice {
    let bytes = word.bytes().chain([0]).chain(key.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    Dice::new(hash ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Draws from 0 to 1, the ends excluded.
fn unit(dice: &mut Dice) -> f64 {
    ((dice.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

/// Draws by Box and Muller's transform.
fn log_normal(dice: &mut Dice, mu: f64, sigma: f64) -> f64 {
    let (radius, angle) = ((-2.0 * unit(dice).ln()).sqrt(), std::f64::consts::TAU * unit(dice));
    (mu + sigma * radius * angle.cos()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_where_nix_splits_them() {
        let table = [
            ("hello-2.10", "hello", "2.10"),
            ("perl5.30.3-gettext-1.07", "perl5.30.3-gettext", "1.07"),
            ("vhba-20190831", "vhba", "20190831"),
            ("stdenv-linux", "stdenv-linux", ""),
            ("python3.8-", "python3.8-", ""),
            ("a--b", "a", "-b"),
        ];
        for (name, package, version) in table {
            assert_eq!(split_name(name), (package, version), "{name}");
        }
    }

    #[test]
    fn ordinary_durations_have_the_sourced_quantiles() {
        let draw = |number: u32| {
            let mut by_package = dice(1, "package", &format!("p{number}"));
            let (mu, sigma) = if unit(&mut by_package) < 0.839 { (3.249, 0.982) } else { (3.814, 1.893) };
            log_normal(&mut by_package, mu, sigma)
        };
        let drawn: Vec<f64> = (0..100_000).map(draw).collect();
        let below = |seconds: f64| drawn.iter().filter(|drawn| **drawn < seconds).count() as f64 / 1e5;
        for (seconds, share) in [(30.0, 0.538), (60.0, 0.766), (120.0, 0.902), (600.0, 0.986), (1800.0, 0.996)] {
            assert!((below(seconds) - share).abs() < 0.01, "{seconds} s: {} of {share}", below(seconds));
        }
    }
}
