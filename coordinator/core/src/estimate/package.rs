//! What was learned of one package on one system, and of its versions.
//!
//! Every level is drawn towards the one above it: a version to its package, the package to what its kind of builder takes. Source: James
//! and Stein 1961; how far, ADR 0036.

use alloc::boxed::Box;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::scale::{self, DOUBLING, Log};
use super::spread::Spread;
use kiln_wire::limits::VERSIONS_PER_PACKAGE_MAX;

/// What one attempt took, on the logarithmic scale and as a machine of standard speed takes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Measures {
    /// Of milliseconds.
    pub wall: Log,
    /// Of milliseconds of processor time.
    pub cpu: Option<Log>,
    /// Of KiB.
    pub memory: Option<Log>,
    /// Of bytes of all outputs.
    pub output: Option<Log>,
    /// For how many attempts it stands.
    pub times: u32,
}

/// The distributions of what was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sizes {
    pub wall: Spread,
    pub cpu: Spread,
    pub memory: Spread,
    pub output: Spread,
}

/// A package on a system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Package {
    pub pname: Box<str>,
    pub system: Box<str>,
    pub is_fetch: bool,
    pub sizes: Sizes,
    /// Where its builder was killed for want of memory, in MiB: no attempt gets as little again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_short_mib: Option<u64>,
    /// How many measurements came in all.
    pub total: u32,
    /// What is expected of a version that was never built. Moves only when the measurements say something else.
    pub quote: Quote,
    /// At most `VERSIONS_PER_PACKAGE_MAX`, the latest last.
    pub versions: Vec<Version>,
}

/// One version of a package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Version {
    pub version: Box<str>,
    pub wall: Spread,
    /// Wall time that is expected of it, as of the package.
    pub quote: Log,
}

/// Of what something else is expected than before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// The package: of any version, that is.
    pub package: bool,
    /// These versions, whatever is expected of the package.
    pub versions: Vec<Box<str>>,
}

/// What is expected of a package; 0 where nothing was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Quote {
    /// Of milliseconds.
    pub wall: Log,
    /// Of KiB to ask for.
    pub memory: Log,
    /// Of hundredths of cores that it keeps busy.
    pub cores: Log,
}

impl Sizes {
    fn add(&mut self, measures: &Measures) {
        let Measures { wall, cpu, memory, output, times } = *measures;
        self.wall.add(wall, times);
        for (spread, log) in [(&mut self.cpu, cpu), (&mut self.memory, memory), (&mut self.output, output)] {
            log.into_iter().for_each(|log| spread.add(log, times));
        }
    }
}

impl Package {
    /// Adds what an attempt at a version took; `above` is what is expected of its kind. Returns of what something else is expected than before.
    pub fn add(&mut self, version: Option<&str>, measures: &Measures, above: Log) -> Change {
        let is_first = self.total == 0;
        let (quote_before, before) = (self.quote, self.expected(version));
        self.sizes.add(measures);
        self.total = self.total.saturating_add(measures.times);
        // Each move costs a look at every live job of the package, and some names have thousands.
        let tolerance = if self.total <= OFTEN || self.total.is_power_of_two() { MOVE_MIN } else { DOUBLING };
        let Sizes { cpu, wall, memory, .. } = &self.sizes;
        let cores = if cpu.count() > 0 { (cpu.mean_from(0, 0) + HUNDRED).saturating_sub(wall.mean_from(0, 0)) } else { 0 };
        let fresh = Quote { wall: quote(wall, above, PACKAGE_QUARTERS), memory: memory_to_ask(memory), cores };
        self.quote = Quote {
            wall: moved(self.quote.wall, fresh.wall, tolerance, is_first),
            memory: moved(self.quote.memory, fresh.memory, tolerance, is_first),
            cores: moved(self.quote.cores, fresh.cores, tolerance, is_first),
        };
        let forgotten = version.and_then(|version| self.add_version(version, measures, tolerance));
        let moved = version.filter(|_| before != self.expected(version)).map(Box::from);
        Change { package: is_first || quote_before != self.quote, versions: forgotten.into_iter().chain(moved).collect() }
    }

    /// Returns which other version was forgotten for it.
    fn add_version(&mut self, version: &str, measures: &Measures, tolerance: Log) -> Option<Box<str>> {
        let at = self.versions.iter().position(|known| *known.version == *version);
        let mut known = match at {
            Some(at) => self.versions.remove(at),
            None => Version { version: version.into(), wall: Spread::default(), quote: 0 },
        };
        known.wall.add(measures.wall, measures.times);
        known.quote = moved(known.quote, quote(&known.wall, self.quote.wall, VERSION_QUARTERS), tolerance, at.is_none());
        let forgotten = (self.versions.len() >= VERSIONS_PER_PACKAGE_MAX).then(|| self.versions.remove(0).version);
        self.versions.push(known);
        forgotten
    }

    /// Returns the wall time that is expected of a version.
    pub fn expected(&self, version: Option<&str>) -> Log {
        let known = version.and_then(|version| self.versions.iter().find(|known| *known.version == *version));
        known.map_or(self.quote.wall, |known| known.quote)
    }

    /// Returns what was measured of a version, if anything was.
    pub fn measured(&self, version: Option<&str>) -> Option<&Spread> {
        version.and_then(|version| self.versions.iter().find(|known| *known.version == *version)).map(|known| &known.wall)
    }

    /// Returns the memory to ask for, in MiB; 0 if it was never measured. Above what was once too little.
    pub fn memory_mib(&self) -> u64 {
        let learned = if self.quote.memory == 0 { 0 } else { scale::exp(self.quote.memory).div_ceil(1024).max(MEMORY_MIB_MIN) };
        learned.max(self.memory_short_mib.map_or(0, |mib| mib.saturating_mul(2)))
    }

    /// Returns how many cores it kept busy on average, in hundredths; 0 if it was never measured.
    pub fn cores_hundredths(&self) -> u64 {
        if self.quote.cores == 0 { 0 } else { scale::exp(self.quote.cores) }
    }
}

/// Returns the logarithm of the KiB to ask for: the 95 % quantile and a fifth on top, in steps of a quarter doubling so that jobs that need
/// about the same ask for the same.
fn memory_to_ask(memory: &Spread) -> Log {
    if memory.count() == 0 {
        return 0;
    }
    (memory.mean_from(0, 0) + memory.deviation() * 27 / 16 + FIFTH).next_multiple_of(DOUBLING / 4)
}

/// Returns what is expected after these measurements: a little more than their mean, as the next one may take.
pub(super) fn quote(wall: &Spread, above: Log, quarters: u32) -> Log {
    wall.mean_from(above, quarters) + wall.deviation() / 2
}

/// Returns the expectation to keep: the new one if it is the first, or says something else.
pub(super) fn moved(old: Log, new: Log, tolerance: Log, is_first: bool) -> Log {
    if is_first || old.abs_diff(new) > tolerance { new } else { old }
}

/// A change of expectation that is worth a look at the jobs behind: a fifth more or less. Ranks bear more (SCHEDULING, section 1).
pub(super) const MOVE_MIN: Log = 270;

/// Measurements of a package that are each looked at; of those after them every doubling is, and what says half or twice as much.
const OFTEN: u32 = 32;

/// Measurements that what stands above counts for, times four. Packages differ from each other far more than attempts at one of them, so
/// that what is expected of all weighs a quarter of one; versions of a package are much alike.
pub(super) const PACKAGE_QUARTERS: u32 = 1;
const VERSION_QUARTERS: u32 = 12;

/// The logarithm of 1.2.
const FIFTH: Log = 269;

/// The logarithm of 100.
const HUNDRED: Log = 6_803;

/// Below this nobody's memory is worth counting, in MiB.
const MEMORY_MIB_MIN: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Measures {
        Measures { wall: scale::log(seconds * 1_000), times: 1, ..Measures::default() }
    }

    #[test]
    fn a_version_is_expected_to_take_what_its_package_took_until_it_is_known_better() {
        let mut package = Package::default();
        let above = scale::log(57_000);
        package.add(Some("1"), &seconds(1_000), above);
        let first = scale::exp(package.expected(Some("2"))) / 1_000;
        assert!((500..1_000).contains(&first), "a single one says most of it: {first}");
        for _ in 0..20 {
            package.add(Some("1"), &seconds(1_000), above);
        }
        assert!((950..1_150).contains(&(scale::exp(package.expected(Some("2"))) / 1_000)));
        package.add(Some("2"), &seconds(4_000), above);
        let (old, new) = (scale::exp(package.expected(Some("1"))) / 1_000, scale::exp(package.expected(Some("2"))) / 1_000);
        assert!((950..1_200).contains(&old) && (1_300..2_500).contains(&new), "{old} {new}");
        for version in ["3", "4", "5", "6", "7", "8", "9"] {
            package.add(Some(version), &seconds(1_000), above);
        }
        assert_eq!(package.versions.len(), VERSIONS_PER_PACKAGE_MAX);
    }

    #[test]
    fn a_version_that_is_new_concerns_itself_and_the_one_that_is_forgotten_for_it() {
        let (mut package, above) = (Package::default(), scale::log(57_000));
        assert!(package.add(Some("0"), &seconds(1_000), above).package);
        for number in 1..100 {
            package.add(Some(&alloc::format!("{number}")), &seconds(1_000), above);
        }
        let kept = package.versions.clone();
        let change = package.add(Some("100"), &seconds(4_000), above);
        let versions: Vec<&str> = change.versions.iter().map(|version| &**version).collect();
        assert_eq!((change.package, versions), (false, Vec::from([&*kept[0].version, "100"])));
    }

    #[test]
    fn memory_is_asked_for_with_room_and_never_as_little_as_was_too_little() {
        let mut package = Package::default();
        assert_eq!(package.memory_mib(), 0);
        let gib = |count: u64| Measures { memory: Some(scale::log(count << 20)), ..seconds(1) };
        for _ in 0..20 {
            package.add(None, &gib(2), 0);
        }
        let asked = package.memory_mib();
        assert!((2_400..3_400).contains(&asked), "{asked}");
        package.memory_short_mib = Some(8_192);
        assert_eq!(package.memory_mib(), 16_384);
    }

    #[test]
    fn cores_are_processor_time_over_time() {
        let mut package = Package::default();
        package.add(None, &Measures { cpu: Some(scale::log(35_000)), ..seconds(10) }, 0);
        assert!((340..360).contains(&package.cores_hundredths()));
    }
}
