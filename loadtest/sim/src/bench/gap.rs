//! How long a slot is idle between two builds while jobs wait.

use super::claims::{Claims, WORKER};
use super::draws::{Draws, draw};
use super::engine::{Costs, Run, Span};
use super::fleet::Fleet;
use super::list::Order;
use super::load;
use super::options::Chosen;
use super::report::{knee, measure};
use super::workload::{Asked, Workload};

/// From a placement to the start of its builder: a commit.
const HOP_MS: u64 = 2;

/// One gigabit a second.
const LINK_BYTES_S: u64 = 125_000_000;

/// A graph on half the workers that its knee has, so that jobs wait nearly always, one slot each; outputs are uploaded.
///
/// # Errors
/// Says which graph cannot be read.
pub(super) fn gaps(claims: &mut Claims) -> Result<(), String> {
    let graph = load("nixos-desktop".as_ref())?;
    let mut work = Workload::default();
    work.add(&graph, 0..1, Asked { name: &graph.name, at_ms: 0, tenant: "all", weight: 1 });
    draw(&mut work, &Draws { seed: 1, ..Draws::EXACT });
    let workers = (knee(&work) / 2.0).round().max(1.0) as u32;
    let fleet = Fleet::uniform(&work, workers, 1, WORKER);
    println!(
        "{}, {} jobs, on {workers} workers of one slot that upload outputs at 1 Gbit/s, a commit taking {HOP_MS} ms",
        graph.name,
        work.tasks.len()
    );
    let uploads = Costs { hop_ms: HOP_MS, bandwidth_bytes_s: None, upload_bytes_s: Some(LINK_BYTES_S) };
    let fetches = Costs { bandwidth_bytes_s: Some(LINK_BYTES_S), ..uploads };
    for (what, costs) in [("inputs are there", uploads), ("inputs are fetched at 1 Gbit/s", fetches)] {
        let goal_ms = HOP_MS as f64;
        for chosen in [Chosen::Kiln, Chosen::List(Order::Rank)] {
            let (gap_ms, count) = mean_gap_ms(&measure(&work, &fleet, chosen, true, costs).run);
            let claim = format!("idle between two builds while jobs wait, {what}, {}", chosen.word());
            let figure = format!("{gap_ms:.1} ms in the mean of {count}");
            match chosen {
                Chosen::Kiln => claims.check(&claim, &figure, "goal: the commit's 2 ms, no more", gap_ms <= goal_ms && count > 0),
                Chosen::Single | Chosen::List(_) => claims.tell(&claim, &figure),
            }
        }
    }
    Ok(())
}

/// Returns the mean milliseconds from the exit of a builder to the start of the next one on its worker, which has one slot, where the next
/// job was ready before, and how many such gaps there are.
fn mean_gap_ms(run: &Run) -> (f64, usize) {
    let mut spans: Vec<&Span> = run.spans.iter().collect();
    spans.sort_unstable_by_key(|span| (span.worker, span.build_ms, span.exit_ms, span.job));
    let pairs = spans.windows(2).filter(|pair| pair[0].worker == pair[1].worker && pair[1].ready_ms <= pair[0].exit_ms);
    let gaps: Vec<u64> = pairs.map(|pair| pair[1].build_ms - pair[0].exit_ms).collect();
    (gaps.iter().sum::<u64>() as f64 / gaps.len().max(1) as f64, gaps.len())
}
