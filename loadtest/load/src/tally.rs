//! What workers saw of each job, and when: times since the tally began, one clock for all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kiln_wire::DrvPath;

use crate::recipe::Recipes;

/// What workers saw of the jobs of some recipes.
#[derive(Debug)]
pub struct Tally {
    begin: Instant,
    recipes: Arc<Recipes>,
    rows: Vec<Row>,
    submitted_us: AtomicU64,
}

/// Microseconds since the tally began, 0 for what has not happened.
#[derive(Debug, Default)]
struct Row {
    received_us: AtomicU64,
    receipts: AtomicU32,
    reported_us: AtomicU64,
}

/// Times of which half, and all but a hundredth, are no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantiles {
    /// How many times there are.
    pub count: usize,
    /// Half are no longer.
    pub p50: Duration,
    /// All but a hundredth are no longer.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

impl Tally {
    /// Begins.
    pub fn new(recipes: Arc<Recipes>) -> Self {
        let rows = recipes.all.iter().map(|_| Row::default()).collect();
        Self { begin: Instant::now(), recipes, rows, submitted_us: AtomicU64::new(0) }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
    }

    fn row(&self, derivation: &DrvPath) -> Option<&Row> {
        self.rows.get(self.recipes.place(derivation)?)
    }

    /// The farm has answered the submission: what needs nothing is ready.
    pub fn submitted(&self) {
        self.submitted_us.store(self.now_us(), Ordering::Relaxed);
    }

    /// A worker has received a job.
    pub fn received(&self, derivation: &DrvPath) {
        let now = self.now_us();
        if let Some(row) = self.row(derivation) {
            // The last time counts: a job that is tried again waited for that try.
            row.received_us.store(now, Ordering::Relaxed);
            row.receipts.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A worker is about to report how a job ended.
    pub fn reported(&self, derivation: &DrvPath) {
        let now = self.now_us();
        if let Some(row) = self.row(derivation) {
            row.reported_us.store(now, Ordering::Relaxed);
        }
    }

    /// Returns how often each job was received, in the order of the recipes.
    pub fn receipts(&self) -> Vec<u32> {
        self.rows.iter().map(|row| row.receipts.load(Ordering::Relaxed)).collect()
    }

    /// Returns how long it took from the receipt of a job to its report: what the work took, and uploads.
    pub fn making(&self) -> Option<Quantiles> {
        let times = self.rows.iter().map(|row| (row.received_us.load(Ordering::Relaxed), row.reported_us.load(Ordering::Relaxed)));
        Quantiles::of(
            times
                .filter(|(received, reported)| *received > 0 && reported > received)
                .map(|(received, reported)| Duration::from_micros(reported - received))
                .collect(),
        )
    }

    /// Returns the time from when the farm had the jobs to the last report.
    pub fn reported_within(&self) -> Duration {
        let last = self.rows.iter().map(|row| row.reported_us.load(Ordering::Relaxed)).max().unwrap_or_default();
        Duration::from_micros(last.saturating_sub(self.submitted_us.load(Ordering::Relaxed)))
    }

    /// Returns how many jobs were received, and the time from when the farm had them, or the first receipt if that came before, to the last
    /// receipt: the first plan is in it.
    pub fn received_within(&self) -> (usize, Duration) {
        let times = || self.rows.iter().map(|row| row.received_us.load(Ordering::Relaxed)).filter(|at| *at > 0);
        let first = times().chain(Some(self.submitted_us.load(Ordering::Relaxed)).filter(|at| *at > 0)).min();
        let span = times().max().unwrap_or_default().saturating_sub(first.unwrap_or_default());
        (times().count(), Duration::from_micros(span))
    }

    /// Returns how many jobs became ready by the end of others in a second: those that were received after one of their inputs was reported,
    /// between the first report and the last receipt.
    pub fn ready_per_second(&self) -> Option<f64> {
        let first = self.rows.iter().map(|row| row.reported_us.load(Ordering::Relaxed)).filter(|at| *at > 0).min()?;
        let later = |(row, recipe): (&Row, &crate::recipe::Recipe)| {
            Some(row.received_us.load(Ordering::Relaxed)).filter(|at| *at > first && !recipe.inputs.is_empty())
        };
        let received: Vec<u64> = self.rows.iter().zip(&self.recipes.all).filter_map(later).collect();
        let last = *received.iter().max()?;
        Some(received.len() as f64 * 1e6 / (last - first) as f64)
    }

    /// Returns how long it took from the report of a job's last input until a worker had the job: both commits, plan and wire. Jobs without
    /// inputs have no such time.
    pub fn hops(&self) -> Option<Quantiles> {
        let mut hops = Vec::new();
        for (row, recipe) in self.rows.iter().zip(&self.recipes.all) {
            let received = row.received_us.load(Ordering::Relaxed);
            let reports = recipe.inputs.iter().map(|input| self.rows[*input].reported_us.load(Ordering::Relaxed));
            if let Some(last) = reports.max().filter(|last| received > 0 && *last > 0) {
                hops.push(Duration::from_micros(received.saturating_sub(last)));
            }
        }
        Quantiles::of(hops)
    }
}

impl Quantiles {
    /// Returns the quantiles of times; none of none.
    pub fn of(mut times: Vec<Duration>) -> Option<Self> {
        times.sort_unstable();
        let max = *times.last()?;
        let at = |share: usize| times[(times.len() * share).div_ceil(100).saturating_sub(1)];
        Some(Self { count: times.len(), p50: at(50), p99: at(99), max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Shape;

    #[test]
    fn quantiles_leave_out_what_they_say() {
        let of = |count: u64| Quantiles::of((1..=count).rev().map(Duration::from_millis).collect());
        let ms = |quantiles: Quantiles| (quantiles.p50.as_millis(), quantiles.p99.as_millis(), quantiles.max.as_millis());
        assert_eq!(of(0), None);
        assert_eq!(of(1).map(ms), Some((1, 1, 1)));
        assert_eq!(of(200).map(ms), Some((100, 198, 200)));
    }

    #[test]
    fn a_hop_is_from_the_last_input_to_the_receipt() {
        let recipes = Arc::new(Recipes::write(&Shape::chains(1, 2), "t", 0).expect("written"));
        let tally = Tally::new(recipes.clone());
        let [first, second] = &recipes.all[..] else { panic!("two") };
        tally.received(&first.path);
        assert_eq!(tally.hops(), None);
        tally.reported(&first.path);
        tally.received(&second.path);
        let hops = tally.hops().expect("one");
        assert_eq!((hops.count, tally.receipts()), (1, vec![1, 1]));
        assert_eq!(tally.received_within().0, 2);
    }

    /// Makes a tally of chains in which each job was received and reported at these microseconds.
    fn told(chains: usize, length: usize, times: &[(u64, u64)]) -> Tally {
        let recipes = Arc::new(Recipes::write(&Shape::chains(chains, length), "t", 0).expect("written"));
        let mut tally = Tally::new(recipes);
        for (row, (received, reported)) in tally.rows.iter_mut().zip(times) {
            (row.received_us, row.reported_us) = (AtomicU64::new(*received), AtomicU64::new(*reported));
        }
        tally
    }

    #[test]
    fn assignments_are_counted_from_when_the_farm_had_the_jobs() {
        let tally = told(3, 1, &[(5_000, 0), (7_000, 0), (9_000, 0)]);
        let within = |submitted| {
            tally.submitted_us.store(submitted, Ordering::Relaxed);
            tally.received_within()
        };
        assert_eq!(within(1_000), (3, Duration::from_micros(8_000)), "the first plan is in it");
        assert_eq!((tally.making(), tally.reported_within()), (None, Duration::ZERO));
        assert_eq!(within(6_000), (3, Duration::from_micros(4_000)), "an answer that comes late shortens nothing");
    }

    #[test]
    fn the_rate_of_what_becomes_ready_leaves_out_what_was_ready_at_once() {
        // Two chains of three, a job a second: four become ready in the two seconds after the first report.
        let second = 1_000_000;
        let row = |at: u64| (at * second + 1, (at + 1) * second);
        let tally = told(2, 3, &[row(0), row(0), row(1), row(1), row(2), row(2)]);
        let rate = tally.ready_per_second().expect("some became ready");
        assert!((3.9..4.1).contains(&rate), "{rate}");
        assert_eq!(tally.making().map(|making| (making.count, making.max)), Some((6, Duration::from_micros(second - 1))));
        assert_eq!(tally.reported_within(), Duration::from_secs(3));
        assert_eq!(told(2, 1, &[row(0), row(0)]).ready_per_second(), None);
    }
}
