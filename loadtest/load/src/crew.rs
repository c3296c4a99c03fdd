//! The simulated workers of a run, and what they are told to do.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_agent::Agent;
use kiln_link::{Dialer, Role};
use kiln_wire::limits::HEARTBEAT_MS;
use kiln_wire::worker::Offer;
use kiln_wire::{DrvPath, Leader, Resources, WorkerId};
use tokio::task::JoinSet;

use crate::farm::Farm;
use crate::tally::Tally;
use crate::worker::Worker;

/// What a worker does with a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Makes its outputs after a time that is drawn for each derivation, log-normal with this median and σ = 1, at most 20 times that; at
    /// once if it is zero.
    Build {
        /// The median.
        median: Duration,
    },
    /// As `Build`, each taking exactly this long, but those without inputs a drawn part of it: of many chains that begin together, jobs
    /// become ready evenly.
    Paced(Duration),
    /// Fails it at once, so that nothing but scheduling costs anything.
    Refuse,
}

/// A crew to hire.
#[derive(Clone, Debug)]
pub struct Crew {
    /// How many workers.
    pub workers: u32,
    /// Slots of each, and cores.
    pub slots: u32,
    /// Platforms that they run.
    pub systems: BTreeSet<String>,
    /// Features that they have.
    pub features: BTreeSet<String>,
}

/// Running workers. They are gone when this is dropped.
pub struct Hired {
    _tasks: JoinSet<()>,
    seen: Arc<Seen>,
}

/// What all workers share.
pub(crate) struct Seen {
    now: Mutex<Now>,
}

struct Now {
    work: Work,
    tally: Option<Arc<Tally>>,
    troubles: BTreeMap<String, usize>,
}

impl Crew {
    /// Starts the workers. They find the farm by themselves.
    ///
    /// # Errors
    /// If no identity can be made.
    pub fn hire(&self, farm: &Farm) -> anyhow::Result<Hired> {
        let now = Now { work: Work::Refuse, tally: None, troubles: BTreeMap::new() };
        let seen = Arc::new(Seen { now: Mutex::new(now) });
        let mut tasks = JoinSet::new();
        for number in 0..self.workers {
            let name = WorkerId::parse(&format!("sim-{number:04}"))?;
            let dialer = Dialer::new(&farm.identity(&Role::Worker(name.clone()))?)?;
            let capacity = Resources { cores: self.slots, memory_mib: u64::from(self.slots) * 2048 };
            let offer = Offer {
                systems: self.systems.clone(),
                features: self.features.clone(),
                capacity,
                slots: self.slots,
                guarantees: BTreeMap::new(),
                ..Offer::default()
            };
            let worker = Worker {
                agent: Agent::restore(name, offer, Leader::default(), Vec::new()),
                dialer,
                addresses: farm.addresses().to_vec(),
                seen: seen.clone(),
                heartbeat_offset: Duration::from_millis(HEARTBEAT_MS * u64::from(number) / u64::from(self.workers)),
            };
            tasks.spawn(worker.run());
        }
        Ok(Hired { _tasks: tasks, seen })
    }
}

impl Hired {
    /// Has them do `work` from here on, and note what they see of it.
    pub fn set_to(&self, work: Work, tally: Arc<Tally>) {
        let mut now = self.seen.lock();
        now.work = work;
        now.tally = Some(tally);
    }

    /// Returns what went wrong, in words, with how often.
    pub fn troubles(&self) -> BTreeMap<String, usize> {
        self.seen.lock().troubles.clone()
    }
}

impl Seen {
    pub(crate) fn work(&self) -> Work {
        self.lock().work
    }

    pub(crate) fn received(&self, derivation: &DrvPath) {
        if let Some(tally) = self.tally() {
            tally.received(derivation);
        }
    }

    pub(crate) fn reported(&self, derivation: &DrvPath) {
        if let Some(tally) = self.tally() {
            tally.reported(derivation);
        }
    }

    pub(crate) fn trouble(&self, error: &anyhow::Error) {
        *self.lock().troubles.entry(format!("{error:#}")).or_default() += 1;
    }

    fn tally(&self) -> Option<Arc<Tally>> {
        self.lock().tally.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Work {
    /// Returns how long a derivation takes, the same each time; `is_first` says that it has no inputs.
    pub(crate) fn duration(self, derivation: &DrvPath, is_first: bool) -> Duration {
        match self {
            Self::Refuse => Duration::ZERO,
            Self::Paced(duration) if is_first => duration.mul_f64(uniform(derivation, 0) / 2f64.powi(32)),
            Self::Paced(duration) => duration,
            Self::Build { median } => {
                // Two numbers in (0, 1), and from them one of the normal distribution (Box and Muller 1958).
                let [one, two] = [0u8, 1].map(|which| (uniform(derivation, which) + 0.5) / 2f64.powi(32));
                let normal = (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * two).cos();
                median.mul_f64(normal.exp().min(20.0))
            }
        }
    }
}

fn uniform(derivation: &DrvPath, which: u8) -> f64 {
    let mut hasher = DefaultHasher::new();
    (derivation, which).hash(&mut hasher);
    f64::from(u32::try_from(hasher.finish() >> 32).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipes;
    use crate::shape::Shape;

    #[test]
    fn drawn_times_have_the_median_and_the_spread_that_were_asked_for() {
        let recipes = Recipes::write(&Shape::wide(1000), "d", 0).expect("written");
        let work = Work::Build { median: Duration::from_secs(10) };
        let mut drawn: Vec<f64> = recipes.all.iter().map(|recipe| work.duration(&recipe.path, true).as_secs_f64()).collect();
        drawn.sort_by(f64::total_cmp);
        // A normal distribution has 16 % below minus one σ, which is a factor of e.
        let [low, middle, high] = [160, 500, 840].map(|at| drawn[at]);
        assert!((8.5..11.7).contains(&middle), "{middle}");
        assert!((3.0..4.5).contains(&low) && (22.0..33.0).contains(&high), "{low} {high}");
        assert!(drawn[999] <= 200.0);
        assert_eq!(Work::Build { median: Duration::ZERO }.duration(&recipes.all[0].path, true), Duration::ZERO);
        let paced = Work::Paced(Duration::from_secs(8));
        let below_half = recipes.all.iter().filter(|recipe| paced.duration(&recipe.path, true) < Duration::from_secs(4)).count();
        assert!((430..570).contains(&below_half), "{below_half} of 1000 first ones take less than half");
        assert_eq!(paced.duration(&recipes.all[0].path, false), Duration::from_secs(8));
    }
}
