//! Which requests go wrong, and how. Chosen from a seed and the request's number, so that a run can be repeated.

use std::fmt;
use std::sync::{Mutex, PoisonError};

/// What goes wrong. The default is nothing. The percentages exclude each other: together they are at most 100.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Of a hundred requests, how many are answered with 503 (`SlowDown`) and not carried out.
    pub errors_percent: u8,
    /// Of a hundred requests, how many are carried out and then get no answer: the connection is closed.
    pub lost_percent: u8,
    /// Of a hundred requests, how many break off in the midst of a body: half of an upload is read, or half of an answer is sent,
    /// and the connection is closed.
    pub cut_percent: u8,
    /// How long each request waits before anything is done.
    pub delay_ms: u64,
    /// Whether every request finds the connection closed.
    pub away: bool,
    /// Where the choice of requests starts.
    pub seed: u64,
}

/// Faults that cannot be set.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultsError {
    /// No such fault, or no such value.
    #[error(
        "set faults: `{0}` is not `errors_percent`, `lost_percent`, `cut_percent`, `delay_ms`, `seed` (a number) or `away` (true or false)"
    )]
    Unknown(String),
    /// More than every request.
    #[error("set faults: {0} percent of the requests would go wrong")]
    TooMany(u32),
}

/// What a server has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Requests that came in.
    pub requests: u64,
    /// Those that were made to go wrong.
    pub faults: u64,
}

/// What is to become of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Fine,
    Error,
    Lost,
    Cut,
    Away,
}

/// The faults of a running server.
#[derive(Debug, Default)]
pub(crate) struct Chooser(Mutex<(Faults, Served)>);

impl Faults {
    /// Reads `name=value&…`, as in a query.
    ///
    /// # Errors
    /// [`FaultsError`] names what cannot be set.
    pub fn parse(query: &str) -> Result<Self, FaultsError> {
        let mut faults = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let unknown = || FaultsError::Unknown(pair.to_owned());
            let (name, value) = pair.split_once('=').ok_or_else(unknown)?;
            let percent = || value.parse().map_err(|_| unknown());
            match name {
                "errors_percent" => faults.errors_percent = percent()?,
                "lost_percent" => faults.lost_percent = percent()?,
                "cut_percent" => faults.cut_percent = percent()?,
                "delay_ms" => faults.delay_ms = value.parse().map_err(|_| unknown())?,
                "away" => faults.away = value.parse().map_err(|_| unknown())?,
                "seed" => faults.seed = value.parse().map_err(|_| unknown())?,
                _ => return Err(unknown()),
            }
        }
        let percent = [faults.errors_percent, faults.lost_percent, faults.cut_percent].map(u32::from).iter().sum();
        if percent > 100 { Err(FaultsError::TooMany(percent)) } else { Ok(faults) }
    }

    fn fate(&self, request: u64) -> Fate {
        if self.away {
            return Fate::Away;
        }
        let drawn = u8::try_from(mixed(self.seed ^ mixed(request)) % 100).expect("below 100");
        let (errors, lost) = (self.errors_percent, self.errors_percent.saturating_add(self.lost_percent));
        match drawn {
            drawn if drawn < errors => Fate::Error,
            drawn if drawn < lost => Fate::Lost,
            drawn if drawn < lost.saturating_add(self.cut_percent) => Fate::Cut,
            _ => Fate::Fine,
        }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { errors_percent, lost_percent, cut_percent, delay_ms, away, seed } = self;
        write!(f, "errors_percent={errors_percent}&lost_percent={lost_percent}&cut_percent={cut_percent}")?;
        write!(f, "&delay_ms={delay_ms}&away={away}&seed={seed}")
    }
}

impl Chooser {
    pub(crate) fn set(&self, faults: Faults) {
        self.lock().0 = faults;
    }

    pub(crate) fn faults(&self) -> Faults {
        self.lock().0
    }

    pub(crate) fn served(&self) -> Served {
        self.lock().1
    }

    /// Decides what becomes of the next request.
    pub(crate) fn next(&self) -> (Fate, u64) {
        let mut held = self.lock();
        let (faults, served) = &mut *held;
        let fate = faults.fate(served.requests);
        served.requests += 1;
        served.faults += u64::from(fate != Fate::Fine);
        (fate, faults.delay_ms)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Faults, Served)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// SplitMix64's finaliser (Steele, Lea, Flood 2014).
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_as_they_are_shown_and_what_makes_no_sense_is_named() {
        let faults = Faults { errors_percent: 30, lost_percent: 5, cut_percent: 65, delay_ms: 7, away: true, seed: 9 };
        assert_eq!(Faults::parse(&faults.to_string()), Ok(faults));
        assert_eq!(Faults::parse(""), Ok(Faults::default()));
        for text in ["errors=1", "errors_percent", "errors_percent=300", "away=yes"] {
            assert_eq!(Faults::parse(text), Err(FaultsError::Unknown(text.to_owned())));
        }
        assert_eq!(Faults::parse("errors_percent=60&cut_percent=41"), Err(FaultsError::TooMany(101)));
    }

    #[test]
    fn the_share_of_each_fault_is_what_was_asked_and_the_seed_decides_which() {
        let faults = Faults { errors_percent: 20, lost_percent: 10, cut_percent: 5, seed: 3, ..Faults::default() };
        let fates: Vec<_> = (0..10_000).map(|request| faults.fate(request)).collect();
        for (fate, percent) in [(Fate::Error, 20), (Fate::Lost, 10), (Fate::Cut, 5), (Fate::Fine, 65)] {
            let found = fates.iter().filter(|found| **found == fate).count();
            assert!(found.abs_diff(percent * 100) < 200, "{fate:?}: {found} of 10,000");
        }
        let again: Vec<_> = (0..10_000).map(|request| faults.fate(request)).collect();
        assert_eq!(fates, again);
        assert_ne!(fates, (0..10_000).map(|request| Faults { seed: 4, ..faults }.fate(request)).collect::<Vec<_>>());
    }
}
