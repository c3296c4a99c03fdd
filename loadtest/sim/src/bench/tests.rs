//! The bench itself: replays and bounds worked out by hand, and what holds of every replay, whatever a seed draws.

use kiln_wire::Resources;
use kiln_wire::worker::Offer;

use super::bounds::{Bounds, bounds};
use super::draws::{Draws, draw};
use super::engine::{Costs, Policy, Run, replay};
use super::fairness::fairness;
use super::fleet::{Fleet, Free};
use super::gantt::{Caption, gantt};
use super::list::{List, Order};
use super::made;
use super::options::Chosen;
use super::planner::Planner;
use super::workload::{Asked, JobNo, Workload};
use crate::dice::Dice;

const SECOND: u64 = 1000;
const ONE: Resources = Resources { cores: 4, memory_mib: 4096 };

/// Reads `3; 2<0; 4<0,1`: a job for each part, its seconds, and the numbers of its inputs.
fn read(text: &str) -> (Vec<Vec<usize>>, Vec<u64>) {
    let number = |word: &str| word.trim().parse::<usize>().expect("a number");
    let part = |part: &str| {
        let (seconds, inputs) = part.split_once('<').unwrap_or((part, ""));
        let inputs = inputs.split(',').filter(|word| !word.trim().is_empty()).map(number).collect();
        (inputs, number(seconds) as u64 * SECOND)
    };
    text.split(';').map(part).unzip()
}

fn workload(text: &str) -> Workload {
    let (inputs, durations) = read(text);
    let mut load = Workload::default();
    load.add(&made::graph(&inputs), 0..1, Asked { name: "made", at_ms: 0, tenant: "all", weight: 1 });
    for (task, duration_ms) in load.tasks.iter_mut().zip(durations) {
        (task.duration_ms, task.estimate_ms, task.expected_ms) = (duration_ms, Some(duration_ms), duration_ms);
    }
    load
}

fn run(load: &Workload, fleet: &Fleet, chosen: Chosen, costs: Costs) -> Run {
    let mut policy: Box<dyn Policy> = match chosen {
        Chosen::Kiln => Box::new(Planner::new(load, fleet, true)),
        Chosen::Single => Box::new(Planner::new(load, fleet, true).single()),
        Chosen::List(order) => Box::new(List::new(load, order, true)),
    };
    replay(load, fleet, &mut *policy, costs)
}

#[test]
fn small_replays_end_when_worked_out_by_hand() {
    let list = Chosen::List;
    let table = [
        ("5", 1, list(Order::Fifo), 5, "one job"),
        ("1; 2<0; 3<1", 3, Chosen::Kiln, 6, "a chain"),
        ("4; 4; 4; 4", 2, Chosen::Kiln, 8, "two by two"),
        ("1; 1; 6", 2, list(Order::Fifo), 7, "the long one comes last: 1, then 6"),
        ("1; 1; 6", 2, list(Order::Longest), 6, "the long one comes first"),
        ("2; 2<0; 2<1; 5; 5", 2, list(Order::UnitRank), 10, "0 and 3; 1 at 2; 2 at 4; 4 at 5"),
        ("1; 1<0; 1<1; 9; 1", 1, list(Order::UnitRank), 13, "one slot"),
        ("1; 1<0; 1<1; 9; 1", 2, list(Order::UnitRank), 9, "the chain, 3 beside it, 4 behind it"),
        ("1; 1<0; 9; 9", 2, list(Order::UnitRank), 11, "0 and 2; 1 at 1; 3 at 2"),
        ("1; 1<0; 9; 9", 2, list(Order::Rank), 11, "2 and 3; 0 and 1 at 9, one after the other"),
        ("3; 3; 9<1; 1; 1<0; 1<0; 1<0", 1, list(Order::Rank), 19, "one slot: all of it, in any order"),
        ("3; 3; 9<1; 1<0; 1<0; 1<0", 2, list(Order::Rank), 12, "1 goes first, 2 behind it; 0, 3, 4, 5 beside them"),
        ("3; 3; 9<1; 1<0; 1<0; 1<0", 1, list(Order::Hydra), 18, "one slot"),
        ("3; 2; 9<1; 1<0; 1<0; 1<0; 4; 4", 2, list(Order::Hydra), 14, "0 and 1; 2 at 2 to 11; 3, 4, 5 from 3 to 6, 6 to 10, 7 to 14"),
    ];
    for (text, slots, chosen, seconds, why) in table {
        let load = workload(text);
        let fleet = Fleet::uniform(&load, slots, 1, ONE);
        let run = run(&load, &fleet, chosen, Costs::default());
        assert_eq!(run.makespan_ms, seconds * SECOND, "{text} on {slots}, {}: {why}; {:?}", chosen.word(), run.spans);
    }
}

#[test]
fn moving_inputs_takes_its_time_once_for_each_worker() {
    let mut load = workload("1; 1<0; 1<0");
    load.tasks[0].output_bytes = 5_000;
    let costs = Costs { hop_ms: 10, bandwidth_bytes_s: Some(1_000), upload_bytes_s: None };
    let alone = run(&load, &Fleet::uniform(&load, 1, 1, ONE), Chosen::List(Order::Rank), costs);
    assert_eq!((alone.makespan_ms, alone.moved_bytes), (3 * SECOND + 30, 0), "who made it has it");
    let two = run(&load, &Fleet::uniform(&load, 2, 1, ONE), Chosen::List(Order::Rank), costs);
    assert_eq!((two.makespan_ms, two.moved_bytes), (SECOND + 10 + 10 + 5 * SECOND + SECOND, 5_000), "the other fetches for five seconds");
}

#[test]
fn the_next_build_begins_while_outputs_are_uploaded_where_the_policy_knows_of_it() {
    let mut load = workload("1; 1; 1");
    load.tasks.iter_mut().for_each(|task| task.output_bytes = 5_000);
    let costs = Costs { hop_ms: 10, bandwidth_bytes_s: None, upload_bytes_s: Some(1_000) };
    for (chosen, expect_ms) in [(Chosen::Kiln, 3 * 1_010 + 5_000), (Chosen::List(Order::Rank), 3 * 6_010)] {
        let run = run(&load, &Fleet::uniform(&load, 1, 1, ONE), chosen, costs);
        assert_eq!(run.makespan_ms, expect_ms, "{}: {:?}", chosen.word(), run.spans);
    }
}

#[test]
fn bounds_are_what_is_worked_out_by_hand() {
    // Text, slots; longest path, work on slots, window bound.
    let table = [
        ("5", 1, 5, 5, 5),
        ("4; 4; 4", 2, 4, 6, 6),
        ("10; 10<0; 10<0; 10<0; 10<0; 10<1,2,3,4", 2, 30, 30, 40),
        ("10; 10<0; 10<0; 10<0; 10<0; 10<1,2,3,4", 4, 30, 15, 30),
        ("2; 1<0; 8<1; 8<1; 8<1; 1<2,3,4; 30", 2, 30, 29, 30),
    ];
    for (text, slots, path, work, window) in table {
        let load = workload(text);
        let Bounds { path_ms, work_ms, window_ms, .. } = bounds(&load, &Fleet::uniform(&load, slots, 1, ONE));
        assert_eq!((path_ms, work_ms, window_ms), (path * SECOND, work * SECOND, window * SECOND), "{text} on {slots}");
    }
}

#[test]
fn jobs_that_few_workers_run_are_bounded_by_these() {
    let mut load = Workload::default();
    let mut graph = made::graph(&[vec![], vec![], vec![]]);
    graph.jobs[0].required_features.insert("kvm".to_owned());
    graph.jobs[1].required_features.insert("kvm".to_owned());
    graph.jobs[2].resources = Resources { cores: 4, memory_mib: 3000 };
    load.add(&graph, 0..1, Asked { name: "made", at_ms: 0, tenant: "all", weight: 1 });
    load.tasks.iter_mut().for_each(|task| task.duration_ms = 10 * SECOND);
    let plain =
        Offer { systems: ["x86_64-linux".to_owned()].into(), features: Default::default(), capacity: ONE, slots: 4, ..Offer::default() };
    let kvm = Offer { features: ["kvm".to_owned()].into(), slots: 1, ..plain.clone() };
    let fleet = Fleet::of(&load, vec![plain.clone(), plain, kvm]);
    let bounds = bounds(&load, &fleet);
    assert_eq!(bounds.window_ms, 20 * SECOND, "both jobs run on the one worker, one after the other");
    let works: Vec<(&str, u64)> = bounds.works.iter().map(|(name, ms)| (name.as_str(), *ms)).collect();
    let expect = [
        ("slots of x86_64-linux+kvm", 20 * SECOND),
        ("cores of x86_64-linux+kvm", 5 * SECOND),
        ("slots of x86_64-linux", 3_334),
        ("cores of x86_64-linux", 5 * SECOND),
        ("memory of x86_64-linux", 2_442),
    ];
    assert_eq!(works, expect);
    for chosen in Chosen::TABLE.map(|(_, chosen)| chosen) {
        assert_eq!(run(&load, &fleet, chosen, Costs::default()).makespan_ms, 20 * SECOND, "{}", chosen.word());
    }
}

/// Draws a graph, a fleet and costs.
fn drawn(seed: u64) -> (Workload, Fleet, Costs) {
    let mut dice = Dice::new(seed);
    let mut load = Workload::default();
    for submission in 0..1 + dice.below(3) {
        let jobs = 1 + dice.place(40);
        let inputs: Vec<Vec<usize>> =
            (0..jobs).map(|number| (0..dice.below(4)).filter(|_| number > 0).map(|_| dice.place(number.max(1))).collect()).collect();
        let mut graph = made::graph(&inputs);
        for job in &mut graph.jobs {
            job.prefer_local = dice.chance(200);
            job.resources.cores = 1 + u32::try_from(dice.below(4)).expect("small");
            if dice.chance(200) {
                job.required_features.insert(["kvm", "big-parallel"][dice.place(2)].to_owned());
            }
        }
        let salt = u32::try_from(submission).expect("small");
        load.add(&graph, salt..salt + 1, Asked { name: "drawn", at_ms: dice.below(3) * 20_000, tenant: "all", weight: 1 + salt });
    }
    let (sigma, unknown) = ([0.0, 1.0][dice.place(2)], [0.0, 0.3][dice.place(2)]);
    draw(&mut load, &Draws { seed, error_sigma: sigma, unknown, memory: dice.chance(500), ..Draws::EXACT });
    let offer = |dice: &mut Dice, kvm: bool| Offer {
        systems: ["x86_64-linux".to_owned()].into(),
        features: kvm.then(|| "kvm".to_owned()).into_iter().collect(),
        capacity: Resources { cores: 4 + u32::try_from(dice.below(8)).expect("small"), memory_mib: 16_384 + dice.below(32_768) },
        slots: 1 + u32::try_from(dice.below(4)).expect("small"),
        ..Offer::default()
    };
    let offers = (0..1 + dice.below(6)).map(|number| offer(&mut dice, number == 0)).collect();
    let fleet = Fleet::of(&load, offers);
    (load, fleet, Costs { hop_ms: dice.below(50), bandwidth_bytes_s: dice.chance(500).then_some(10_000_000), upload_bytes_s: None })
}

#[test]
fn no_policy_is_better_than_the_bound_and_every_schedule_is_one() {
    for seed in 1..=300 {
        let (load, fleet, costs) = drawn(seed);
        let bound = bounds(&load, &fleet);
        assert!(bound.window_ms >= bound.path_ms.max(bound.work_ms), "seed {seed}: the window bound is the strongest");
        for chosen in Chosen::TABLE.map(|(_, chosen)| chosen) {
            let run = run(&load, &fleet, chosen, costs);
            let (word, makespan_ms) = (chosen.word(), run.makespan_ms);
            assert!(bound.window_ms <= makespan_ms, "seed {seed}, {word}: {makespan_ms} beats {bound:?}");
            check_schedule(&load, &fleet, &run, &format!("seed {seed}, {word}"));
        }
    }
}

/// Looks at a schedule without the engine that made it.
fn check_schedule(load: &Workload, fleet: &Fleet, run: &Run, name: &str) {
    let mut moments: Vec<(u64, bool, JobNo)> = Vec::new();
    for span in &run.spans {
        let task = load.task(span.job);
        assert!(span.start_ms >= load.asked_ms(span.job), "{name}: {span:?} began before it was asked for");
        assert_eq!(span.end_ms - span.build_ms, task.duration_ms, "{name}");
        for input in &task.inputs {
            assert!(run.spans[input.at()].end_ms <= span.start_ms, "{name}: {span:?} began before its input {input:?}");
        }
        moments.push((span.start_ms, true, span.job));
        moments.push((span.end_ms, false, span.job));
    }
    // What ends at a time makes room for what begins then.
    moments.sort();
    let mut free: Vec<Free> = fleet.workers.iter().map(|worker| Free::whole(&worker.offer)).collect();
    for (_, begins, job) in moments {
        let span = &run.spans[job.at()];
        let at = span.worker.at();
        // A job that takes no time begins and ends at once.
        if span.start_ms < span.end_ms {
            free[at] =
                if begins { free[at].take(span.given).expect("no worker is given more than it has") } else { free[at].give(span.given) };
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_replay_and_picture() {
    for chosen in Chosen::TABLE.map(|(_, chosen)| chosen) {
        let made = |seed| {
            let (load, fleet, costs) = drawn(seed);
            let run = run(&load, &fleet, chosen, costs);
            let svg = gantt(&load, &fleet, &run, &bounds(&load, &fleet), &caption());
            (run, svg)
        };
        assert_eq!(made(7), made(7), "{}", chosen.word());
        assert_ne!(made(7).0, made(8).0, "{}", chosen.word());
    }
}

#[test]
fn copies_of_a_graph_share_no_derivation_and_take_equally_long() {
    let mut load = Workload::default();
    let graph = made::graph(&[vec![], vec![0], vec![0, 1]]);
    for salt in 0..8 {
        load.add(&graph, salt..salt + 1, Asked { name: "copy", at_ms: 0, tenant: "all", weight: 1 });
    }
    draw(&mut load, &Draws { error_sigma: 1.0, unknown: 0.5, ..Draws::EXACT });
    let derivations: std::collections::BTreeSet<_> = load.tasks.iter().map(|task| &task.spec.derivation).collect();
    assert_eq!(derivations.len(), 24);
    let lengths = |first: usize| load.tasks[first..first + 3].iter().map(|task| (task.duration_ms, task.estimate_ms)).collect::<Vec<_>>();
    assert_eq!(lengths(0), lengths(21));
}

#[test]
fn shares_are_counted_while_all_wait() {
    // Two submissions of equal weight, 40 jobs of a minute each, on four slots; the first one's are ready first.
    let graph = made::graph(&vec![vec![]; 40]);
    let mut load = Workload::default();
    for salt in 0..2 {
        load.add(&graph, salt..salt + 1, Asked { name: "share", at_ms: 0, tenant: ["one", "other"][salt as usize], weight: 1 });
    }
    load.tasks.iter_mut().for_each(|task| task.duration_ms = 60 * SECOND);
    let fleet = Fleet::uniform(&load, 4, 1, ONE);
    let fifo = fairness(&load, &run(&load, &fleet, Chosen::List(Order::Fifo), Costs::default()), 0);
    // While the first one has work waiting it has everything, which is half too much: until its last four begin after nine minutes,
    // and no window of ten minutes lies before that.
    assert_eq!(fifo.windows, 0);
    load.tasks.iter_mut().for_each(|task| task.duration_ms = 120 * SECOND);
    let fifo = fairness(&load, &run(&load, &fleet, Chosen::List(Order::Fifo), Costs::default()), 0);
    assert!(fifo.windows > 0 && (fifo.worst - 0.5).abs() < 1e-9, "{fifo:?}");
    let hydra = fairness(&load, &run(&load, &fleet, Chosen::List(Order::Hydra), Costs::default()), 0);
    assert!(hydra.windows > 0 && hydra.worst < fifo.worst, "{hydra:?}");
    let kiln = fairness(&load, &run(&load, &fleet, Chosen::Kiln, Costs::default()), 0);
    assert!(kiln.windows > 0 && kiln.worst < 1e-9, "{kiln:?}");
    let settled = fairness(&load, &run(&load, &fleet, Chosen::Kiln, Costs::default()), 300 * SECOND);
    assert!(settled.windows < kiln.windows, "{settled:?}");
}

fn caption() -> Caption {
    Caption { title: "a < b & \"c\"".to_owned(), policy: "drawn".to_owned() }
}

#[test]
fn pictures_are_well_formed() {
    for seed in 1..=40 {
        let (load, fleet, costs) = drawn(seed);
        let run = run(&load, &fleet, Chosen::Kiln, costs);
        let svg = gantt(&load, &fleet, &run, &bounds(&load, &fleet), &caption());
        assert_eq!(open_elements(&svg), Ok(Vec::new()), "seed {seed}: {svg}");
        assert!(svg.contains("a &lt; b &amp; &quot;c&quot;"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "seed {seed}: every number is one");
    }
}

/// Returns the elements that are left open.
fn open_elements(svg: &str) -> Result<Vec<String>, String> {
    let mut open: Vec<String> = Vec::new();
    for part in svg.split('<').skip(1) {
        let (tag, text) = part.split_once('>').ok_or_else(|| format!("`<{part}` has no end"))?;
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap_or_default().to_owned();
        if tag.matches('"').count() % 2 != 0 || text.contains('>') || text.replace("&amp;", "").matches('&').any(|_| !text.contains(';')) {
            return Err(format!("`<{part}`"));
        }
        match (tag.starts_with('/'), tag.ends_with('/')) {
            (true, _) if open.last() == Some(&name) => drop(open.pop()),
            (true, _) => return Err(format!("</{name}> ends {:?}", open.last())),
            (false, true) => {}
            (false, false) => open.push(name),
        }
    }
    Ok(open)
}
