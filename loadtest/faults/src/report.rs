//! The lines of a prover: `claim: figure (goal)`.

use std::fmt::Display;
use std::process::ExitCode;

/// Counts the claims that fall short.
#[derive(Debug, Default)]
pub struct Claims {
    short: usize,
}

impl Claims {
    /// Prints a claim with its figure and its goal, and notes whether it holds.
    pub fn check(&mut self, claim: &str, figure: impl Display, goal: &str, holds: bool) {
        self.short += usize::from(!holds);
        println!("{} {claim}: {figure} ({goal})", if holds { "  ok  " } else { "SHORT " });
    }

    /// Prints a figure that has no goal.
    pub fn tell(&self, claim: &str, figure: impl Display) {
        println!("       {claim}: {figure}");
    }

    /// Prints the last line and returns the exit code.
    pub fn finish(self) -> ExitCode {
        match self.short {
            0 => println!("every claim holds"),
            short => println!("{short} claims fall short"),
        }
        ExitCode::from(u8::from(self.short > 0))
    }
}

/// Prints what was found, indented, at most this many lines of it.
pub fn list(found: &[String]) {
    for line in found.iter().take(LINES_MAX) {
        println!("         {line}");
    }
    if found.len() > LINES_MAX {
        println!("         … and {} more", found.len() - LINES_MAX);
    }
}

const LINES_MAX: usize = 12;

/// Median and worst of times in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Half are no longer.
    pub median: f64,
    /// The longest.
    pub worst: f64,
}

impl Spread {
    /// Returns the spread of `times`; none of none.
    pub fn of(times: &[f64]) -> Option<Self> {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        let worst = *sorted.last()?;
        let half = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) };
        Some(Self { median, worst })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, worst: 3.0 }));
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, worst: 4.0 }));
        assert_eq!(Spread::of(&[]), None);
    }
}
