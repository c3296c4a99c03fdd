//! What is claimed of the planner, each with the figure that a replay gave: `claim: figure (goal)`.

use kiln_nix::graph_file::Graph;
use kiln_wire::Resources;

use super::bounds::bounds;
use super::draws::{Draws, draw, instant};
use super::engine::Costs;
use super::fairness::{Fairness, WINDOW_MS, fairness};
use super::fleet::Fleet;
use super::gantt::hours;
use super::list::Order;
use super::options::{Chosen, HELP};
use super::report::{efficiency, knee, measure};
use super::workload::{Asked, Workload};
use super::{load, made};

/// Which claims to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    topics: Vec<Topic>,
    /// All seeds and fleets, rather than what is done in minutes.
    full: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topic {
    Knee,
    Copies,
    Locality,
    Fairness,
    Gap,
    Chain,
    Straggle,
}

const TOPICS: [(&str, Topic); 7] = [
    ("knee", Topic::Knee),
    ("copies", Topic::Copies),
    ("locality", Topic::Locality),
    ("fairness", Topic::Fairness),
    ("gap", Topic::Gap),
    ("chain", Topic::Chain),
    ("straggle", Topic::Straggle),
];

/// Reads what follows `plan prove`.
///
/// # Errors
/// Says which word is no topic.
pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Wanted, String> {
    let mut wanted = Wanted { topics: Vec::new(), full: false };
    for argument in arguments {
        match (argument.as_str(), TOPICS.iter().find(|(name, _)| *name == argument)) {
            ("--full", _) => wanted.full = true,
            (_, Some((_, topic))) => wanted.topics.push(*topic),
            (_, None) => return Err(format!("`{argument}` is no topic\n\n{HELP}")),
        }
    }
    if wanted.topics.is_empty() {
        wanted.topics = TOPICS.iter().map(|(_, topic)| *topic).collect();
    }
    Ok(wanted)
}

/// Looks at the claims. Returns whether all hold.
///
/// # Errors
/// Says which graph cannot be read.
pub(crate) fn prove(wanted: &Wanted) -> Result<bool, String> {
    let mut claims = Claims { hold: true };
    for topic in &wanted.topics {
        match topic {
            Topic::Knee => knees(&mut claims, wanted.full)?,
            Topic::Copies => copies(&mut claims, wanted.full)?,
            Topic::Locality => locality(&mut claims, wanted.full)?,
            Topic::Fairness => shares(&mut claims)?,
            Topic::Gap => super::gap::gaps(&mut claims)?,
            Topic::Chain => hops(&mut claims),
            Topic::Straggle => super::straggle::straggling(&mut claims, wanted.full)?,
        }
    }
    Ok(claims.hold)
}

/// Prints as the other provers do.
pub(super) struct Claims {
    hold: bool,
}

impl Claims {
    pub(super) fn check(&mut self, claim: &str, figure: &str, goal: &str, holds: bool) {
        self.hold &= holds;
        println!("{} {claim}: {figure} ({goal})", if holds { "  ok  " } else { "SHORT " });
    }

    pub(super) fn tell(&self, claim: &str, figure: &str) {
        println!("       {claim}: {figure}");
    }
}

const EXACT: Draws = Draws::EXACT;
pub(super) const WORKER: Resources = Resources { cores: 8, memory_mib: 65_536 };
const KILN: Chosen = Chosen::Kiln;
const HYDRA: Chosen = Chosen::List(Order::Hydra);

/// A large graph on fleets around its knee: as near to the bound as estimates allow.
fn knees(claims: &mut Claims, full: bool) -> Result<(), String> {
    let graph = load("nixpkgs-large".as_ref())?;
    let mut work = Workload::default();
    work.add(&graph, 0..1, Asked { name: &graph.name, at_ms: 0, tenant: "all", weight: 1 });
    let times: &[f64] = if full { &[0.25, 0.5, 1.0, 2.0, 4.0] } else { &[0.5, 1.0, 2.0] };
    let seeds = if full { 5 } else { 2 };
    println!("nixpkgs-large, {} jobs, {seeds} seeds; makespan over window bound, worst and mean of the seeds", work.tasks.len());
    let known = [
        ("durations known exactly", EXACT, 1.03),
        ("estimates off by log-normal sigma 1", Draws { error_sigma: 1.0, ..EXACT }, 1.05),
        ("nothing known of 30 % of names", Draws { unknown: 0.3, ..EXACT }, 1.08),
    ];
    let rivals = [Order::Fifo, Order::Hydra, Order::UnitRank, Order::Longest, Order::Rank].map(Chosen::List);
    for times in times {
        let mut ratios: Vec<(String, Option<f64>, Vec<f64>)> = Vec::new();
        let mut note = |name: &str, goal, ratio| match ratios.iter_mut().find(|(known, ..)| known == name) {
            Some((.., all)) => all.push(ratio),
            None => ratios.push((name.to_owned(), goal, vec![ratio])),
        };
        let mut slots = Vec::new();
        for seed in 1..=seeds {
            let mut bound = None;
            for (name, draws, goal) in known {
                draw(&mut work, &Draws { seed, ..draws });
                let workers = (knee(&work) * times).round().max(1.0) as u32;
                let fleet = Fleet::uniform(&work, workers, 1, WORKER);
                let known_bound = bound.get_or_insert_with(|| bounds(&work, &fleet));
                let ratio = |chosen| 1.0 / efficiency(known_bound, &measure(&work, &fleet, chosen, false, Costs::default()).run);
                note(&format!("kiln, {name}"), Some(goal), ratio(KILN));
                if draws == EXACT {
                    slots.push(workers.to_string());
                    rivals.iter().for_each(|rival| note(rival.word(), None, ratio(*rival)));
                } else {
                    note(&format!("estimated, {name}"), None, ratio(Chosen::List(Order::EstimatedRank)));
                }
            }
        }
        for (name, goal, ratios) in ratios {
            let (worst, mean) = (ratios.iter().copied().fold(0.0, f64::max), ratios.iter().sum::<f64>() / ratios.len() as f64);
            let claim = format!("{times} of the knee ({} workers), {name}", slots.join(", "));
            match goal {
                Some(goal) => claims.check(&claim, &format!("{worst:.4}, {mean:.4}"), &format!("goal: at most {goal}"), worst <= goal),
                None => claims.tell(&claim, &format!("{worst:.4}, {mean:.4}")),
            }
        }
    }
    Ok(())
}

/// Many builds at once, each wanting its share.
fn copies(claims: &mut Claims, full: bool) -> Result<(), String> {
    let graph = load("nixos-closure".as_ref())?;
    let mut work = Workload::default();
    for salt in 0..8 {
        work.add(&graph, salt..salt + 1, Asked { name: &format!("copy {salt}"), at_ms: 0, tenant: "all", weight: 1 });
    }
    println!("eight copies of nixos-closure that share nothing, {} jobs; makespan beside Hydra's rule", work.tasks.len());
    for seed in 1..=if full { 5 } else { 3 } {
        draw(&mut work, &Draws { seed, ..EXACT });
        for workers in [16, knee(&work).round().max(1.0) as u32] {
            let fleet = Fleet::uniform(&work, workers, 1, WORKER);
            let run = |chosen| measure(&work, &fleet, chosen, false, Costs::default()).run;
            let (ours, theirs, bound_ms) = (run(KILN), run(HYDRA), bounds(&work, &fleet).window_ms);
            let of_theirs = |ms: u64| ms as f64 / theirs.makespan_ms.max(1) as f64;
            let (ratio, bound) = (of_theirs(ours.makespan_ms), of_theirs(bound_ms));
            let hours = [ours.makespan_ms, theirs.makespan_ms, bound_ms].map(hours);
            let figure = format!("{} beside {}, {ratio:.3} of it; the bound is {}, {bound:.3} of it", hours[0], hours[1], hours[2]);
            // What cannot be had is not asked for: no schedule is shorter than the bound.
            let goal = AHEAD.max(bound * 1.03);
            claims.check(&format!("seed {seed}, {workers} workers"), &figure, &format!("goal: at most {goal:.3}"), ratio <= goal);
        }
    }
    Ok(())
}

/// 14.85 h of 19.97 h: by how much a known scheduler is ahead of Hydra's rule on such a load.
const AHEAD: f64 = 14.85 / 19.97;

/// The same replay with and without a look at where inputs are.
fn locality(claims: &mut Claims, full: bool) -> Result<(), String> {
    let graphs: &[&str] = if full { &["nixos-desktop", "corepkgs-large", "nixpkgs-large"] } else { &["nixos-desktop", "corepkgs-large"] };
    let costs = Costs { bandwidth_bytes_s: Some(125_000_000), ..Costs::default() };
    for name in graphs {
        let graph = load(name.as_ref())?;
        let mut work = Workload::default();
        work.add(&graph, 0..1, Asked { name: &graph.name, at_ms: 0, tenant: "all", weight: 1 });
        draw(&mut work, &Draws { seed: 1, ..EXACT });
        let workers = knee(&work).round().max(1.0) as u32;
        let fleet = Fleet::uniform(&work, workers, 1, WORKER);
        println!("{name}, {} jobs, on {workers} workers that fetch inputs at 1 Gbit/s", work.tasks.len());
        for chosen in [KILN, Chosen::List(Order::Rank)] {
            let [with, without] = [true, false].map(|locality| measure(&work, &fleet, chosen, locality, costs).run);
            let (bytes, cost) = (
                with.moved_bytes as f64 / without.moved_bytes.max(1) as f64,
                (with.makespan_ms as f64 / without.makespan_ms.max(1) as f64 - 1.0) * 100.0,
            );
            let moved = [&with, &without].map(|run| format!("{:.1} GB", run.moved_bytes as f64 / 1e9));
            let (bytes_figure, cost_figure) =
                (format!("{} beside {} blindly, {bytes:.3} of it", moved[0], moved[1]), format!("{cost:+.2} % of the makespan"));
            let claim = format!("{name}, {}", chosen.word());
            match chosen {
                Chosen::Kiln => {
                    claims.check(&format!("{claim}, bytes moved"), &bytes_figure, "goal: at most 0.8", bytes <= 0.8);
                    claims.check(&format!("{claim}, what that costs"), &cost_figure, "goal: at most 1 %", cost <= 1.0);
                }
                Chosen::Single | Chosen::List(_) => claims.tell(&format!("{claim}, the same"), &format!("{bytes_figure}; {cost_figure}")),
            }
        }
    }
    Ok(())
}

/// Two tenants, one with ten times the jobs: on a fleet that their shares divide, and on one that they do not. A share can be met up to a
/// slot: on 30 workers, where 7.5 and 22.5 are due, half a slot is 1.7 %.
fn shares(claims: &mut Claims) -> Result<(), String> {
    let graph = load("nixos-desktop".as_ref())?;
    println!("two tenants, ten copies of nixos-desktop and one; share of slot time over any ten minutes while both wait");
    for (workers, weights) in [(16, [1, 1]), (16, [1, 3]), (30, [1, 3])] {
        let mut work = Workload::default();
        work.add(&graph, 0..10, Asked { name: "ten", at_ms: 0, tenant: "ten", weight: weights[0] });
        work.add(&graph, 10..11, Asked { name: "one", at_ms: 0, tenant: "one", weight: weights[1] });
        draw(&mut work, &Draws { seed: 1, ..EXACT });
        let fleet = Fleet::uniform(&work, workers, 1, WORKER);
        for chosen in [KILN, HYDRA] {
            let fairness = measure(&work, &fleet, chosen, false, Costs::default()).fairness;
            let claim = format!("{workers} workers, weights {} and {}, {}", weights[0], weights[1], chosen.word());
            fair(claims, &claim, chosen, fairness);
        }
    }
    bursts(claims, &graph)
}

/// Three tenants, of which one always has work and two come and go: whoever comes gets its share as jobs of others end.
fn bursts(claims: &mut Claims, graph: &Graph) -> Result<(), String> {
    const HOUR_MS: u64 = 3_600_000;
    println!("three tenants with weights 1, 2 and 3 on 30 workers: five builds of nixos-desktop at once, and four bursts of one");
    let mut work = Workload::default();
    let mut salt = 0;
    for (tenant, weight, at_h, copies) in
        [("steady", 1, 0, 5), ("bursts", 2, 1, 1), ("gusts", 3, 2, 1), ("bursts", 2, 4, 1), ("gusts", 3, 5, 1)]
    {
        work.add(graph, salt..salt + copies, Asked { name: tenant, at_ms: at_h * HOUR_MS, tenant, weight });
        salt += copies;
    }
    draw(&mut work, &Draws { seed: 1, ..EXACT });
    let fleet = Fleet::uniform(&work, 30, 1, WORKER);
    for chosen in [KILN, HYDRA] {
        let measured = measure(&work, &fleet, chosen, false, Costs::default());
        let settled = fairness(&work, &measured.run, WINDOW_MS);
        // Told, not claimed: nothing is stopped for a share, so that it is met as others' jobs end, some of which take hours.
        let claim =
            format!("from ten minutes after each came, {}: off at worst, in the mean of {} windows", chosen.word(), settled.windows);
        claims.tell(&claim, &format!("{:.1} %, {:.1} %", settled.worst * 100.0, settled.mean * 100.0));
        let Fairness { worst, windows, .. } = measured.fairness;
        claims.tell("from the moment when each came, at worst", &format!("{:.1} % of {windows} windows", worst * 100.0));
    }
    Ok(())
}

fn fair(claims: &mut Claims, claim: &str, chosen: Chosen, fairness: Fairness) {
    let claim = format!("{claim}: off at worst, in the mean of {} windows", fairness.windows);
    let figure = format!("{:.1} %, {:.1} %", fairness.worst * 100.0, fairness.mean * 100.0);
    match chosen {
        Chosen::Kiln => claims.check(&claim, &figure, "goal: at most 5 %", fairness.worst <= 0.05 && fairness.windows > 0),
        Chosen::Single | Chosen::List(_) => claims.tell(&claim, &figure),
    }
}

/// A chain of instant jobs: what the planner adds to each hop.
fn hops(claims: &mut Claims) {
    const LENGTH: u32 = 1000;
    const HOP_MS: u64 = 2;
    let mut work = Workload::default();
    work.add(&made::chain(LENGTH as usize), 0..1, Asked { name: "chain", at_ms: 0, tenant: "all", weight: 1 });
    instant(&mut work);
    let fleet = Fleet::uniform(&work, 8, 1, WORKER);
    let measured = measure(&work, &fleet, KILN, true, Costs { hop_ms: HOP_MS, ..Costs::default() });
    let hop_ms = measured.run.makespan_ms as f64 / f64::from(LENGTH);
    println!("a chain of {LENGTH} instant jobs, a commit taking {HOP_MS} ms");
    claims.check("time per hop, simulated", &format!("{hop_ms:.3} ms"), "goal: the commit's 2 ms, no more", hop_ms <= HOP_MS as f64);
    claims.tell(
        "processor time per hop, planning and applying",
        &format!("{:.0} us", measured.processor.as_secs_f64() * 1e6 / f64::from(LENGTH)),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_read_or_refused_by_name() {
        let parse = |line: &str| parse(line.split_whitespace().map(str::to_owned));
        assert_eq!(parse("knee --full"), Ok(Wanted { topics: vec![Topic::Knee], full: true }));
        assert_eq!(parse("").map(|wanted| wanted.topics.len()), Ok(TOPICS.len()));
        assert!(parse("speed").is_err_and(|refused| refused.contains("`speed`")));
    }
}
