//! The planner against a model that is too slow for a farm and too simple to be wrong: every ready job in one list, every worker tried.

use std::collections::BTreeMap;

use kiln_core::{Command, Farm, Limits, plan};
use kiln_wire::client::{JobView, WorkerView};
use kiln_wire::{DrvPath, JobSpec, LogIndex, RequestId, Timestamp};

use crate::facts::{Dice, built, drv, offer, spec, worker};

const SYSTEMS: [&str; 3] = ["x86_64-linux", "aarch64-linux", "builtin"];
const FEATURES: [&str; 2] = ["kvm", "nixos-test"];

/// What a worker has left: cores, slots, memory, in the order that decides.
type Left = (u32, u32, u64);

fn model(jobs: &[JobView], workers: &[WorkerView], specs: &BTreeMap<DrvPath, JobSpec>, rank_ms: impl Fn(&DrvPath) -> u64) -> Vec<String> {
    let left = |view: &WorkerView| -> Left {
        let running = u32::try_from(view.running.len()).expect("small");
        (view.offer.capacity.cores - running, view.offer.slots - running, view.offer.capacity.memory_mib)
    };
    let mut free: Vec<(&WorkerView, Left)> = workers.iter().map(|view| (view, left(view))).collect();
    let mut ready: Vec<&JobView> = jobs.iter().filter(|job| job.state == "ready").collect();
    ready.sort_by(|a, b| rank_ms(&b.derivation).cmp(&rank_ms(&a.derivation)).then(a.derivation.cmp(&b.derivation)));
    let mut placements = Vec::new();
    for job in ready {
        let spec = &specs[&job.derivation];
        let fits = |(view, left): &&mut (&WorkerView, Left)| {
            let system = spec.system == "builtin" || view.offer.systems.contains(&spec.system);
            system && spec.required_features.is_subset(&view.offer.features) && left.0 > 0 && left.1 > 0
        };
        // The first of those with most left: workers come in the order of their names.
        let best = free.iter_mut().filter(fits).reduce(|best, other| if other.1 > best.1 { other } else { best });
        if let Some((view, left)) = best {
            (left.0, left.1) = (left.0 - 1, left.1 - 1);
            placements.push(format!("{}@{}", job.derivation.name(), view.worker));
        }
    }
    placements
}

fn draw_specs(dice: &mut Dice) -> Vec<JobSpec> {
    let names: Vec<String> = (0..40).map(|number| format!("j{number:02}")).collect();
    let draw = |number: usize| {
        let bound = u64::try_from(number).expect("small");
        let inputs = (0..dice.below(3).min(bound)).map(|_| names[usize::try_from(dice.below(bound)).expect("small")].as_str());
        let mut inputs: Vec<&str> = inputs.collect();
        inputs.sort_unstable();
        inputs.dedup();
        let mut spec = spec(&names[number], &inputs);
        spec.system = (*dice.choose(&SYSTEMS).expect("there are systems")).to_owned();
        spec.required_features = FEATURES.iter().filter(|_| dice.once_in(5)).map(|feature| (*feature).to_owned()).collect();
        spec.prefer_local = dice.once_in(3);
        spec
    };
    (0..names.len()).map(draw).collect()
}

#[test]
fn the_plan_is_the_models_plan() {
    for seed in 0..150 {
        let mut dice = Dice(seed);
        let specs = draw_specs(&mut dice);
        let by_path: BTreeMap<DrvPath, JobSpec> = specs.iter().map(|spec| (spec.derivation.clone(), spec.clone())).collect();
        let (mut farm, mut index, now) = (Farm::new(), 0, Timestamp(0));
        let mut apply = |farm: &mut Farm, command: Command| {
            index += 1;
            farm.apply(LogIndex(index), command)
        };
        for number in 0..5 {
            let mut offer = offer(1 + u32::try_from(dice.below(3)).expect("small"));
            offer.capacity.cores += u32::try_from(dice.below(2)).expect("small");
            offer.systems = SYSTEMS[..2].iter().filter(|_| dice.once_in(2)).map(|system| (*system).to_owned()).collect();
            offer.features = FEATURES.iter().filter(|_| !dice.once_in(3)).map(|feature| (*feature).to_owned()).collect();
            apply(
                &mut farm,
                Command::Register { worker: worker(&format!("w{number}")), offer, attempts: Vec::new(), since: None, judge: false, now },
            );
        }
        apply(&mut farm, Command::Stage { request: RequestId(1), jobs: specs.clone(), now });
        apply(
            &mut farm,
            Command::Submit { request: RequestId(1), name: String::new(), roots: Vec::new(), keep_going: true, asker: None, now },
        );
        for round in 0..30 {
            let jobs: Vec<JobView> = farm.jobs().collect();
            let rank_ms = |derivation: &DrvPath| own_surprise_ms(&by_path[derivation]) + surprised_chain_ms(&specs, derivation);
            let expect = model(&jobs, &farm.workers(), &by_path, rank_ms);
            let (plan, _) = plan(&farm, now, &Limits::STANDARD);
            let found: Vec<String> = plan.placements.iter().map(|p| format!("{}@{}", p.derivation.name(), p.worker)).collect();
            assert_eq!(found, expect, "seed {seed}, round {round}");
            apply(&mut farm, Command::Assign { placements: plan.placements, now });
            let running: Vec<DrvPath> = farm.jobs().filter(|job| job.state == "running").map(|job| job.derivation).collect();
            let Some(derivation) = dice.choose(&running).cloned() else { break };
            let lease = farm.live_lease(&derivation).expect("it runs");
            apply(&mut farm, Command::Finish { lease, outcome: built(&by_path[&derivation], 1), learn: false, judge: false, now });
        }
    }
}

/// Returns the length in milliseconds of the longest chain that starts at `name`, by trying every path.
fn longest_chain_ms(specs: &[JobSpec], name: &DrvPath) -> u64 {
    own_ms(specs, name) + behind(specs, name).map(|spec| longest_chain_ms(specs, &spec.derivation)).max().unwrap_or(0)
}

/// Returns the length of the longest chain in which one job at most takes as long as a surprise, by trying every path.
fn surprised_chain_ms(specs: &[JobSpec], name: &DrvPath) -> u64 {
    let later_ms = behind(specs, name).map(|spec| surprised_chain_ms(specs, &spec.derivation)).max().unwrap_or(0);
    let now_ms = behind(specs, name).map(|spec| longest_chain_ms(specs, &spec.derivation)).max().unwrap_or(0);
    let surprise_ms = specs.iter().find(|spec| spec.derivation == *name).map_or(0, own_surprise_ms);
    (own_ms(specs, name) + later_ms).max(surprise_ms + now_ms)
}

fn behind<'a>(specs: &'a [JobSpec], name: &'a DrvPath) -> impl Iterator<Item = &'a JobSpec> {
    specs.iter().filter(|spec| spec.inputs.iter().any(|input| input.derivation == *name))
}

fn own_ms(specs: &[JobSpec], name: &DrvPath) -> u64 {
    specs.iter().find(|spec| spec.derivation == *name).map_or(0, |spec| if spec.prefer_local { 700 } else { 56_968 })
}

fn own_surprise_ms(spec: &JobSpec) -> u64 {
    if spec.prefer_local { 0 } else { 4 * 3_600_000 }
}

#[test]
fn ranks_are_longest_chains_also_when_submissions_come_in_pieces() {
    for seed in 0..40 {
        let mut dice = Dice(seed);
        let mut specs = draw_specs(&mut dice);
        specs.truncate(16);
        let (mut farm, mut index, now) = (Farm::new(), 0, Timestamp(0));
        for (piece, jobs) in specs.chunks(5).enumerate() {
            let request = RequestId(u64::try_from(piece).expect("small"));
            for command in [
                Command::Stage { request, jobs: jobs.to_vec(), now },
                Command::Submit { request, name: String::new(), roots: Vec::new(), keep_going: true, asker: None, now },
            ] {
                index += 1;
                farm.apply(LogIndex(index), command);
            }
        }
        for view in farm.jobs() {
            assert_eq!(view.upward_rank_ms, longest_chain_ms(&specs, &view.derivation), "seed {seed}: {}", view.derivation);
        }
        assert!(farm.job_view(&drv("j00")).is_some(), "the graph is there");
    }
}
