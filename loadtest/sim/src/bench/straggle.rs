//! Machines that straggle: what second attempts gain there, and what they cost where no machine does.

use super::bounds::bounds;
use super::claims::{Claims, WORKER};
use super::draws::{Draws, draw};
use super::engine::{Costs, Run};
use super::fleet::{Fleet, Stragglers};
use super::load;
use super::options::Chosen;
use super::report::{knee, measure};
use super::workload::{Asked, Workload};

/// Three workers of a hundred take five times as long, each from a moment on.
const STRAGGLERS: Stragglers = Stragglers { percent: 3, factor: 5 };

/// Real graphs on fleets around the knee, with and without stragglers, and both with and without second attempts.
///
/// # Errors
/// Says which graph cannot be read.
pub(super) fn straggling(claims: &mut Claims, full: bool) -> Result<(), String> {
    let graphs: &[&str] = if full { &["nixos-closure", "nixos-desktop", "corepkgs-large"] } else { &["nixos-closure", "nixos-desktop"] };
    for name in graphs {
        let graph = load(name.as_ref())?;
        let mut work = Workload::default();
        work.add(&graph, 0..1, Asked { name: &graph.name, at_ms: 0, tenant: "all", weight: 1 });
        println!(
            "{name}, {} jobs, {SEEDS} seeds; makespan with second attempts over that without: mean, least and greatest",
            work.tasks.len()
        );
        let mut all = Vec::new();
        for times in [1.0, 2.0] {
            for error_sigma in [0.0, 0.5] {
                let draws = Draws { error_sigma, ..Draws::EXACT };
                let claim = format!("{name} at {times} of the knee, estimates off by sigma {error_sigma}");
                let mut pairs = |stragglers| -> Vec<Pair> {
                    (1..=SEEDS).map(|seed| Pair::of(&mut work, times, Draws { seed, ..draws }, stragglers)).collect()
                };
                let (sound, slow) = (pairs(None), pairs(Some(STRAGGLERS)));
                let worst = sound.iter().map(Pair::ratio).fold(0.0, f64::max);
                claims.check(&format!("{claim}, no stragglers"), &told_of(&sound), "goal: each at most 1.003", worst <= 1.003);
                let stragglers = format!("{} % of workers {} times slower", STRAGGLERS.percent, STRAGGLERS.factor);
                claims.check(&format!("{claim}, {stragglers}"), &told_of(&slow), "goal: mean at most 1.003", mean(&slow) <= 1.003);
                all.extend(sound.into_iter().chain(slow));
            }
        }
        let slow: Vec<f64> = all.iter().filter(|pair| pair.straggles).map(Pair::ratio).collect();
        let gain = slow.iter().sum::<f64>() / slow.len() as f64;
        claims.check(&format!("{name}, stragglers, mean of all"), &format!("{gain:.4}"), "goal: at most 0.97", gain <= 0.97);
        let share = all.iter().map(Pair::share).fold(0.0, f64::max);
        let few = all.iter().all(|pair| pair.share() <= 4.0 || pair.with.copies.most <= 1);
        let claim = format!("{name}, slots that second attempts hold at most, in hundredths");
        claims.check(&claim, &format!("{share:.2}"), "goal: at most 4, or one slot", few);
    }
    Ok(())
}

/// Who straggles is luck, and whether that matters.
const SEEDS: u64 = 10;

/// The same replay with and without second attempts.
struct Pair {
    with: Run,
    without: Run,
    slots: u64,
    straggles: bool,
}

impl Pair {
    fn of(work: &mut Workload, times: f64, draws: Draws, stragglers: Option<Stragglers>) -> Self {
        draw(work, &draws);
        let workers = (knee(work) * times).round().max(1.0) as u32;
        let mut fleet = Fleet::uniform(work, workers, 1, WORKER);
        if let Some(stragglers) = stragglers {
            let until_ms = bounds(work, &fleet).window_ms;
            fleet.straggle(stragglers, draws.seed, until_ms);
        }
        let run = |chosen| measure(work, &fleet, chosen, false, Costs::default()).run;
        Self { with: run(Chosen::Kiln), without: run(Chosen::Single), slots: fleet.slots(), straggles: stragglers.is_some() }
    }

    fn ratio(&self) -> f64 {
        self.with.makespan_ms as f64 / self.without.makespan_ms.max(1) as f64
    }

    fn share(&self) -> f64 {
        self.with.copies.most as f64 * 100.0 / self.slots.max(1) as f64
    }
}

fn mean(pairs: &[Pair]) -> f64 {
    pairs.iter().map(Pair::ratio).sum::<f64>() / pairs.len().max(1) as f64
}

fn told_of(pairs: &[Pair]) -> String {
    let least = pairs.iter().map(Pair::ratio).fold(f64::INFINITY, f64::min);
    let greatest = pairs.iter().map(Pair::ratio).fold(0.0, f64::max);
    let (begun, won) = pairs.iter().fold((0, 0), |(begun, won), pair| (begun + pair.with.copies.begun, won + pair.with.copies.won));
    format!("{:.4}, {least:.4} to {greatest:.4}; {begun} second attempts, {won} of them first", mean(pairs))
}

/// Returns what second attempts came to in a replay, in words.
pub(super) fn told(fleet: &Fleet, run: &Run) -> String {
    let copies = run.copies;
    let held = copies.slot_ms as f64 * 100.0 / (run.makespan_ms.max(1) * fleet.slots().max(1)) as f64;
    format!(
        "           {} second attempts, {} of them first; {} of {} slots at most, {held:.2} % of all slot time",
        copies.begun,
        copies.won,
        copies.most,
        fleet.slots()
    )
}
