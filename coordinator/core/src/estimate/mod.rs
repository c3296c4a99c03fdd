//! What builds are expected to take: learned from those that ended, replicated with the farm.
//!
//! From near to far: the same derivation, its version, its package (both on the same system), its kind of builder, a guess. Each level is
//! drawn towards the next one, as much as few measurements are worth. Integers only; bounded: what was built longest ago is forgotten.
//! Does not look at jobs that wait: [`crate::index`] keeps what is expected of each. Source: ADR 0036.

mod name;
mod package;
mod prior;
mod remembered;
mod scale;
mod spread;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use kiln_wire::limits::{DERIVATIONS_REMEMBERED_MAX, PACKAGES_REMEMBERED_MAX};
use kiln_wire::worker::SPEED_STANDARD;
use kiln_wire::{DrvPath, Measured, PackageView, Usage};
use serde::{Deserialize, Serialize};

pub(crate) use self::name::Topic;
pub use self::name::split_name;
use self::name::{DerivationKey, PackageKey};
use self::package::{MOVE_MIN, Measures, PACKAGE_QUARTERS, Package};
use self::prior::Kind;
pub(crate) use self::prior::{Class, wall_ms_unlearnt};
use self::remembered::Remembered;
use self::scale::Log;
use self::spread::Spread;
use crate::job::Job;

/// Builds that an imported line stands for if it does not say.
const IMPORTED_COUNT: u32 = 16;

/// Measurements before it is said of an attempt that it is late.
const LATE_COUNT_MIN: u32 = 3;

/// Everything that was learned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Estimates {
    packages: Remembered<PackageKey, Package, PACKAGES_REMEMBERED_MAX>,
    derivations: Remembered<DerivationKey, Derived, DERIVATIONS_REMEMBERED_MAX>,
    kinds: BTreeMap<Class, Kind>,
}

/// What was learned of one derivation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Derived {
    wall: Spread,
    quote: Log,
}

/// What is expected of one job. Zeroes of a job that is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Milliseconds from its start to its end, on a machine of standard speed.
    pub wall_ms: u64,
    /// Milliseconds that it takes if it is one of the few of its kind that take far longer; 0 if something is known of its like.
    pub surprise_ms: u64,
    /// Memory to ask for in MiB, where the job does not say itself; 0 if nothing is known.
    pub memory_mib: u32,
    /// Hundredths of cores that it keeps busy; 0 if nothing is known.
    pub cores_hundredths: u32,
    /// Something like it was measured.
    pub is_known: bool,
}

/// Of what more is known, so that jobs must be looked at again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    pub topics: Vec<Topic>,
    /// What is expected of a kind changed: any job may be concerned.
    pub all: bool,
}

/// How a derivation is called: what its package is found by.
struct Name<'a> {
    pname: &'a str,
    version: Option<&'a str>,
    system: &'a str,
    is_fetch: bool,
}

impl<'a> Name<'a> {
    fn of(job: &'a Job) -> Self {
        let (pname, version) = split_name(job.derivation.name());
        Self { pname, version, system: &job.needs.system, is_fetch: Class::of(job).is_fetch() }
    }

    fn key(&self) -> PackageKey {
        PackageKey::of(self.pname, self.system, self.is_fetch)
    }

    fn topic_of_version(&self, version: &str) -> Topic {
        Topic::of_version(self.pname, self.system, self.is_fetch, version)
    }
}

/// Returns what may be learned of a job.
pub(crate) fn topics_of(job: &Job) -> impl Iterator<Item = Topic> {
    let name = Name::of(job);
    let version = name.version.map(|version| name.topic_of_version(version));
    [name.key().into(), DerivationKey::of(&job.derivation).into()].into_iter().chain(version)
}

impl Estimates {
    /// Returns whether nothing was ever learned: the farm may be at a version that cannot.
    pub fn is_empty(&self) -> bool {
        self.packages.is_empty()
    }

    /// Returns what is expected of a job.
    pub fn expected(&self, job: &Job) -> Expected {
        let name = Name::of(job);
        let package = self.packages.get(name.key());
        let derived = self.derivations.get(DerivationKey::of(&job.derivation));
        let (wall, surprise_ms) = match (derived, package) {
            (Some(derived), _) => (derived.quote, 0),
            (None, Some(package)) if package.total > 0 => (package.expected(name.version), 0),
            (None, _) => (self.of_kind(Class::of(job)), self.surprise_of_kind(Class::of(job))),
        };
        let small = |large: u64| u32::try_from(large).unwrap_or(u32::MAX);
        Expected {
            wall_ms: scale::exp(wall),
            surprise_ms,
            memory_mib: package.map_or(0, |package| small(package.memory_mib())),
            cores_hundredths: package.map_or(0, |package| small(package.cores_hundredths())),
            is_known: derived.is_some() || package.is_some_and(|package| package.total > 0),
        }
    }

    /// Returns the milliseconds that hardly one in twenty attempts at a job takes on a machine of standard speed; none if too little like it was
    /// measured to say so.
    pub fn late_ms(&self, job: &Job) -> Option<u64> {
        let name = Name::of(job);
        let package = self.packages.get(name.key());
        let derived = self.derivations.get(DerivationKey::of(&job.derivation)).map(|derived| &derived.wall);
        let version = package.and_then(|package| package.measured(name.version));
        let near = [derived, version, package.map(|package| &package.sizes.wall)].into_iter().flatten();
        let wall = near.into_iter().find(|wall| wall.count() >= LATE_COUNT_MIN)?;
        Some(scale::exp(wall.mean_from(0, 0) + wall.deviation() * 27 / 16))
    }

    /// Learns from an attempt that made its outputs on a machine of some speed, in per mille of the standard.
    pub fn learn(&mut self, job: &Job, usage: &Usage, output_bytes: u64, speed: u32) -> Touched {
        if usage.wall_ms == 0 {
            return Touched::default();
        }
        let standard = |ms: u64| scale::log(ms.saturating_mul(u64::from(speed)) / u64::from(SPEED_STANDARD));
        let known = |value: u64| (value > 0).then(|| scale::log(value));
        let measures = Measures {
            wall: standard(usage.wall_ms),
            cpu: (usage.cpu_ms > 0).then(|| standard(usage.cpu_ms)),
            memory: known(usage.memory_peak_bytes.div_ceil(1024)),
            output: known(output_bytes),
            times: 1,
        };
        self.add(&Name::of(job), Class::of(job), Some(&job.derivation), &measures)
    }

    /// Learns that an attempt at a job was killed for want of memory when it had so much.
    pub fn learn_memory_short(&mut self, job: &Job, had_mib: u64) -> Touched {
        let name = Name::of(job);
        let (mut touched, package) = self.package(&name);
        if package.memory_short_mib < Some(had_mib) {
            package.memory_short_mib = Some(had_mib);
            touched.topics.push(name.key().into());
        }
        touched
    }

    /// Takes what was measured elsewhere. What makes no sense is left out.
    pub fn import(&mut self, measured: &Measured) -> Touched {
        if measured.objection().is_some() {
            return Touched::default();
        }
        let known = |value: Option<u64>| value.filter(|value| *value > 0).map(scale::log);
        let measures = Measures {
            wall: scale::log(measured.wall_ms),
            cpu: known(measured.cpu_ms),
            memory: known(measured.peak_memory_mib.map(|mib| mib.saturating_mul(1024))),
            output: known(measured.output_bytes),
            times: measured.count.unwrap_or(IMPORTED_COUNT).max(1),
        };
        let Measured { pname, version, system, fetch: is_fetch, .. } = measured;
        let name = Name { pname, version: version.as_deref(), system, is_fetch: *is_fetch };
        let class = if *is_fetch { Class::FixedOutput } else { Class::Ordinary };
        self.add(&name, class, measured.derivation.as_ref(), &measures)
    }

    /// Returns what is known of packages, by name; of all, or of those called `pname`.
    pub fn views(&self, pname: Option<&str>) -> Vec<PackageView> {
        let chosen = self.packages.values().filter(|package| package.total > 0 && pname.is_none_or(|pname| *package.pname == *pname));
        let mut views: Vec<PackageView> = chosen.map(view).collect();
        views.sort_by(|a, b| {
            (&a.measured.pname, &a.measured.system, a.measured.fetch).cmp(&(&b.measured.pname, &b.measured.system, b.measured.fetch))
        });
        views
    }

    fn of_kind(&self, class: Class) -> Log {
        self.kinds.get(&class).map_or_else(|| Kind::default().expected(class), |kind| kind.expected(class))
    }

    fn surprise_of_kind(&self, class: Class) -> u64 {
        self.kinds.get(&class).map_or_else(|| Kind::default().surprise_ms(class), |kind| kind.surprise_ms(class))
    }

    fn package(&mut self, name: &Name<'_>) -> (Touched, &mut Package) {
        let (package, forgotten) = self.packages.touch(name.key());
        if package.pname.is_empty() {
            *package = Package { pname: name.pname.into(), system: name.system.into(), is_fetch: name.is_fetch, ..Package::default() };
        }
        (Touched { topics: forgotten.map(|(key, _)| key.into()).into_iter().collect(), all: false }, package)
    }

    fn add(&mut self, name: &Name<'_>, class: Class, derivation: Option<&DrvPath>, measures: &Measures) -> Touched {
        let above = self.of_kind(class);
        let (mut touched, package) = self.package(name);
        // A name such as `source` has thousands of live jobs, and as many versions may have one name: only those are looked at of which
        // something else is expected.
        let change = package.add(name.version, measures, above);
        if change.package {
            touched.topics.push(name.key().into());
        }
        touched.topics.extend(change.versions.iter().map(|version| name.topic_of_version(version)));
        let expected = package.expected(name.version);
        if let Some(derivation) = derivation {
            let (derived, forgotten) = self.derivations.touch(DerivationKey::of(derivation));
            let is_first = derived.wall.count() == 0;
            derived.wall.add(measures.wall, measures.times);
            derived.quote = package::moved(derived.quote, package::quote(&derived.wall, expected, PACKAGE_QUARTERS), MOVE_MIN, is_first);
            touched.topics.push(DerivationKey::of(derivation).into());
            touched.topics.extend(forgotten.map(|(key, _)| Topic::from(key)));
        }
        touched.all = self.kinds.entry(class).or_default().add(measures.wall);
        touched
    }
}

fn view(package: &Package) -> PackageView {
    let sizes = &package.sizes;
    let mean = |spread: &Spread| (spread.count() > 0).then(|| scale::exp(spread.mean_from(0, 0)));
    let measured = Measured {
        pname: String::from(&*package.pname),
        version: None,
        system: String::from(&*package.system),
        wall_ms: mean(&sizes.wall).unwrap_or(0).max(1),
        cpu_ms: mean(&sizes.cpu),
        peak_memory_mib: mean(&sizes.memory).map(|kib| kib.div_ceil(1024)),
        output_bytes: mean(&sizes.output),
        fetch: package.is_fetch,
        count: Some(sizes.wall.count()),
        derivation: None,
    };
    PackageView { measured, expected_ms: scale::exp(package.quote.wall), memory_mib: package.memory_mib() }
}

#[cfg(test)]
mod tests;
