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
        Self { begin: Instant::now(), recipes, rows }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
    }

    fn row(&self, derivation: &DrvPath) -> Option<&Row> {
        self.rows.get(self.recipes.place(derivation)?)
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

    /// Returns how many jobs were received, and the time between the first and the last.
    pub fn received_within(&self) -> (usize, Duration) {
        let times = || self.rows.iter().map(|row| row.received_us.load(Ordering::Relaxed)).filter(|at| *at > 0);
        let span = times().max().unwrap_or_default() - times().min().unwrap_or_default();
        (times().count(), Duration::from_micros(span))
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
}
