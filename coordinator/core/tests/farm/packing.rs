//! Where jobs go once it is known what they take: properties of plans, on farms that learn.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::{Command, Contacts, Farm, Limits, Placement, PlanReport, Steady, WaitReason, plan, plan_beside};
use kiln_wire::client::WorkerView;
use kiln_wire::limits::DURATIONS_PER_ENTRY_MAX;
use kiln_wire::{AttemptId, Epoch, JobKind, JobSpec, LogIndex, Measured, Outcome, RequestId, Resources, Timestamp};

use crate::facts::{Dice, built, drv, offer, spec, worker};

/// A farm whose jobs end when the test says so.
struct Yard {
    farm: Farm,
    index: u64,
    now: Timestamp,
    specs: BTreeMap<String, JobSpec>,
    started: BTreeMap<String, Timestamp>,
}

impl Yard {
    fn new() -> Self {
        Self { farm: Farm::new(), index: 0, now: Timestamp(0), specs: BTreeMap::new(), started: BTreeMap::new() }
    }

    fn apply(&mut self, command: Command) {
        self.index += 1;
        self.farm.apply(LogIndex(self.index), command);
        self.farm.check_invariants().expect("every invariant holds");
    }

    fn worker(&mut self, name: &str, slots: u32, change: impl FnOnce(&mut kiln_wire::worker::Offer)) {
        let mut offer = offer(slots);
        change(&mut offer);
        self.apply(Command::Register { worker: worker(name), offer, attempts: Vec::new(), since: None, judge: false, now: self.now });
    }

    fn import(&mut self, pname: &str, seconds: u64, memory_mib: Option<u64>) {
        let (system, wall_ms) = ("x86_64-linux".to_owned(), seconds * 1_000);
        let measured = Measured { pname: pname.to_owned(), system, wall_ms, peak_memory_mib: memory_mib, ..Measured::default() };
        self.apply(Command::ImportDurations { durations: vec![measured], now: self.now });
    }

    fn submit(&mut self, jobs: Vec<JobSpec>) {
        self.specs.extend(jobs.iter().map(|job| (job.derivation.name().to_owned(), job.clone())));
        let (request, now) = (RequestId(self.index), self.now);
        self.apply(Command::Stage { request, jobs, now });
        self.apply(Command::Submit { request, name: String::new(), roots: Vec::new(), keep_going: true, asker: None, now });
    }

    /// Plans and gives the leases of the plan. Returns them with what was left out.
    fn go(&mut self) -> (Vec<Placement>, PlanReport) {
        let ready = self.farm.jobs().filter(|job| job.state == "ready").count();
        let (plan, report) = plan(&self.farm, self.now, &Limits::STANDARD);
        let told =
            plan.placements.len() + report.waiting.iter().map(|waiting| usize::try_from(waiting.count).expect("small")).sum::<usize>();
        assert_eq!(told, ready, "every ready job is in the plan or in the report");
        let before = self.farm.counts().running;
        self.apply(Command::Assign { placements: plan.placements.clone(), now: self.now });
        let given = usize::try_from(self.farm.counts().running - before).expect("small");
        assert_eq!(given, plan.placements.len(), "the farm refuses nothing of its own plan");
        self.started.extend(plan.placements.iter().map(|placement| (placement.derivation.name().to_owned(), self.now)));
        (plan.placements, report)
    }

    /// Ends an attempt as one that took until now, `memory_mib` and made `bytes`.
    fn finish(&mut self, name: &str, memory_mib: u64, bytes: u64) {
        let lease = self.farm.live_lease(&drv(name)).expect("it runs");
        let mut outcome = built(&self.specs[name], 1);
        if let Outcome::Built { outputs, usage } = &mut outcome {
            usage.wall_ms = self.now.since_ms(self.started[name]).max(1);
            usage.memory_peak_bytes = memory_mib << 20;
            outputs.iter_mut().for_each(|output| output.info.nar_size_bytes = bytes);
        }
        self.apply(Command::Finish { lease, outcome, learn: true, judge: false, now: self.now });
        self.apply(Command::Publish { derivation: drv(name), now: self.now });
    }

    fn on(&self, name: &str) -> Option<String> {
        self.farm.live_lease(&drv(name)).map(|lease| lease.worker.to_string())
    }
}

fn wide(name: &str, cores: u32) -> JobSpec {
    JobSpec { resources: Resources { cores, memory_mib: 0 }, ..spec(name, &[]) }
}

fn names(placements: &[Placement]) -> Vec<String> {
    placements.iter().map(|placement| format!("{}@{}", placement.derivation.name(), placement.worker)).collect()
}

#[test]
fn the_longest_expected_chain_goes_first_as_soon_as_it_is_known_to_be_long() {
    let mut yard = Yard::new();
    yard.worker("w1", 1, |_| {});
    yard.submit(vec![spec("aaa-1", &[]), spec("zzz-1", &[]), spec("end-1", &["zzz-1"])]);
    let first = |yard: &Yard| plan(&yard.farm, yard.now, &Limits::STANDARD).0.placements[0].derivation.name().to_owned();
    assert_eq!(first(&yard), "zzz-1");
    yard.import("aaa", 40_000, None);
    assert_eq!(first(&yard), "aaa-1", "ready jobs are put in order again");
    yard.import("end", 60_000, None);
    assert_eq!(first(&yard), "zzz-1", "and so is what they wait for");
}

#[test]
fn what_nothing_is_known_of_goes_ahead_of_all_but_the_longest_and_is_not_said_to_take_hours() {
    let mut yard = Yard::new();
    yard.worker("w1", 1, |_| {});
    yard.submit(vec![spec("aaa-1", &[]), spec("before-1", &[]), spec("zzz-1", &["before-1"])]);
    let first = |yard: &Yard| plan(&yard.farm, yard.now, &Limits::STANDARD).0.placements[0].derivation.name().to_owned();
    yard.import("before", 10, None);
    yard.import("aaa", 3_600, None);
    assert_eq!(first(&yard), "before-1", "whoever waits for it may be a surprise");
    let expected_ms = |yard: &Yard, name: &str| yard.farm.job_view(&drv(name)).expect("it is there").upward_rank_ms;
    assert!(expected_ms(&yard, "before-1") < 120_000, "people are told what is likely: {}", expected_ms(&yard, "before-1"));
    yard.import("aaa", 30_000, None);
    yard.import("aaa", 30_000, None);
    assert_eq!(first(&yard), "aaa-1");
    yard.import("zzz", 30, None);
    yard.import("aaa", 60, None);
    yard.import("aaa", 60, None);
    yard.import("aaa", 60, None);
    assert_eq!(first(&yard), "aaa-1", "nothing is unknown any more: the longer chain is first");
}

#[test]
fn jobs_share_a_worker_only_as_far_as_their_learned_memory_fits() {
    let mut yard = Yard::new();
    yard.worker("w1", 8, |offer| offer.capacity.memory_mib = 4_000);
    yard.import("linker", 60, Some(1_500));
    yard.submit((0..4).map(|number| spec(&format!("linker-{number}"), &[])).collect());
    let (placements, report) = yard.go();
    assert_eq!(placements.len(), 1, "1.5 GiB measured, and room on top: {placements:?}");
    assert!(placements[0].resources.is_some_and(|granted| granted.memory_mib > 1_800), "{placements:?}");
    assert!(report.waiting.iter().all(|waiting| waiting.reason == WaitReason::Busy), "{report:?}");
    yard.import("giant", 60, Some(1 << 20));
    yard.worker("w2", 1, |_| {});
    yard.submit(vec![spec("giant-1", &[])]);
    let (placements, _) = yard.go();
    assert!(names(&placements).contains(&"giant-1@w2".to_owned()), "an estimate makes no job unplaceable: {placements:?}");
}

#[test]
fn a_job_that_was_killed_for_want_of_memory_teaches_its_package() {
    let mut yard = Yard::new();
    yard.worker("w1", 4, |_| {});
    yard.import("ld", 60, Some(500));
    yard.submit(vec![spec("ld-1", &[])]);
    let granted = yard.go().0[0].resources.expect("learned memory is said").memory_mib;
    let lease = yard.farm.live_lease(&drv("ld-1")).expect("it runs");
    let outcome = crate::facts::failed(kiln_wire::FailureClass::OutOfMemory, "killed", 0);
    yard.apply(Command::Finish { lease, outcome, learn: true, judge: false, now: yard.now });
    yard.submit(vec![spec("ld-2", &[])]);
    let (placements, _) = yard.go();
    let memory: Vec<u64> = placements.iter().filter_map(|placement| placement.resources).map(|granted| granted.memory_mib).collect();
    assert!(!memory.is_empty() && memory.iter().all(|mib| *mib >= 2 * granted), "{granted}, then {memory:?}");
}

/// Some packages take three times what is expected of them, and the stream never ends.
#[test]
fn a_large_job_starts_within_a_bound_under_a_stream_of_small_ones() {
    for seed in 0..20 {
        let mut dice = Dice(seed);
        let mut yard = Yard::new();
        yard.worker("w1", 4, |_| {});
        yard.import("small", 10, None);
        yard.import("tiny", 1, None);
        yard.import("large", 3_000, None);
        let mut ends: Vec<(u64, String)> = Vec::new();
        let (mut number, mut filled) = (0, 0);
        loop {
            while yard.farm.counts().ready < 8 {
                let pname = if dice.once_in(2) { "small" } else { "tiny" };
                yard.submit(vec![spec(&format!("{pname}-{number}"), &[])]);
                number += 1;
            }
            if yard.now.0 > 20_000 && !yard.specs.contains_key("large-1") {
                yard.submit(vec![wide("large-1", 4)]);
            }
            let waits = yard.specs.contains_key("large-1");
            let (placements, _) = yard.go();
            for placement in &placements {
                let name = placement.derivation.name().to_owned();
                let usual = if name.starts_with("small") { 10_000 } else { 1_000 };
                let spread = if dice.once_in(4) { usual * 5 / 2 } else { usual / 2 };
                let took = usual / 2 + dice.below(spread);
                ends.push((yard.now.0 + took, name));
                filled += usize::from(waits);
            }
            if yard.on("large-1").is_some() {
                break;
            }
            assert!(yard.now.0 < 20_000 + 10_000 + 70_000, "seed {seed}: the large job starves");
            ends.sort_by(|a, b| b.cmp(a));
            let (at, name) = ends.pop().expect("something runs");
            yard.now = Timestamp(at);
            yard.finish(&name, 0, 100);
        }
        assert!(filled > 0, "seed {seed}");
    }
}

#[test]
fn what_is_over_in_time_runs_where_a_large_job_is_to_start() {
    let mut yard = Yard::new();
    yard.worker("w1", 4, |_| {});
    for (pname, seconds) in [("long", 100), ("large", 1_000), ("short", 20), ("mid", 300)] {
        yard.import(pname, seconds, None);
    }
    yard.submit(vec![wide("long-1", 3)]);
    yard.go();
    yard.now = Timestamp(10_000);
    yard.submit(vec![wide("large-1", 4), spec("short-1", &[]), spec("mid-1", &[])]);
    let (placements, report) = yard.go();
    assert_eq!(names(&placements), ["short-1@w1"]);
    let mut reasons: Vec<WaitReason> = report.waiting.iter().map(|waiting| waiting.reason.clone()).collect();
    reasons.sort();
    assert_eq!(reasons, [WaitReason::Busy, WaitReason::Outlasts]);
    // What runs longer than was expected may do so for ever: nothing more goes there.
    yard.now = Timestamp(200_000);
    yard.finish("short-1", 0, 100);
    yard.submit(vec![spec("short-2", &[])]);
    assert_eq!(yard.go().0, []);
    yard.finish("long-1", 0, 100);
    assert_eq!(names(&yard.go().0), ["large-1@w1"]);
}

#[test]
fn light_jobs_never_wait_behind_long_ones() {
    let mut yard = Yard::new();
    yard.worker("w1", 1, |offer| offer.light_slots = 2);
    let local = |name: &str| JobSpec { prefer_local: true, ..spec(name, &[]) };
    let fetch = |name: &str| JobSpec { kind: JobKind::Builtin, system: "builtin".to_owned(), ..spec(name, &[]) };
    yard.submit(vec![spec("long-1", &[]), local("text-1"), fetch("fetch-1"), local("text-2"), local("text-3")]);
    let (placements, _) = yard.go();
    let light = placements.iter().filter(|placement| placement.light).count();
    assert_eq!((light, placements.len()), (2, 3), "two light slots beside the slot: {placements:?}");
    assert_eq!(yard.on("long-1").as_deref(), Some("w1"));
    let text = placements.iter().find(|placement| placement.light).expect("one is light").derivation.name().to_owned();
    yard.finish(&text, 0, 100);
    assert_eq!(yard.go().0.len(), 1, "the next light job takes its place");
}

#[test]
fn a_job_goes_where_its_large_inputs_are() {
    let mut yard = Yard::new();
    ["w1", "w2", "w3"].iter().for_each(|name| yard.worker(name, 2, |_| {}));
    yard.submit(vec![spec("a", &[]), spec("b", &[]), spec("c", &[]), spec("use-c", &["c", "a"]), spec("use-b", &["b", "a"])]);
    yard.go();
    let at = ["a", "b", "c"].map(|name| yard.on(name).expect("it runs"));
    yard.now = Timestamp(5_000);
    for (name, bytes) in [("a", 8 << 20), ("b", 700 << 20), ("c", 900 << 20)] {
        yard.finish(name, 0, bytes);
    }
    yard.go();
    assert_eq!([yard.on("use-b"), yard.on("use-c")], [Some(at[1].clone()), Some(at[2].clone())]);
}

#[test]
fn a_freed_slot_gets_the_job_that_lacks_least_there_of_those_that_are_nearly_as_urgent() {
    for (known, expect) in [(None, true), (Some((4_000, 3_900)), true), (Some((4_000, 1_000)), false)] {
        let mut yard = Yard::new();
        ["w1", "w2"].iter().for_each(|name| yard.worker(name, 1, |_| {}));
        if let Some((many, one)) = known {
            yard.import("many", many, None);
            yard.import("one", one, None);
        }
        let many = |number: usize| format!("many-{number}");
        let jobs = (1..9).map(|number| spec(&many(number), &["x"])).chain([spec("x", &[]), spec("y", &[]), spec("one-1", &["y"])]);
        yard.submit(jobs.collect());
        yard.go();
        let at = yard.on("y").expect("it runs");
        yard.now = Timestamp(5_000);
        yard.finish("x", 0, 500 << 20);
        yard.finish("y", 0, 500 << 20);
        yard.go();
        assert_eq!(yard.on("one-1") == Some(at), expect, "{known:?}");
        assert!((1..9).any(|number| yard.on(&many(number)).is_some()), "{known:?}");
    }
}

#[test]
fn what_a_worker_says_of_its_builders_counts_while_its_session_and_their_leases_live() {
    let mut yard = Yard::new();
    yard.worker("w1", 2, |_| {});
    for name in ["a", "b"] {
        yard.submit(vec![spec(name, &[])]);
        yard.go();
    }
    let [a, b] = ["a", "b"].map(|name| yard.farm.live_lease(&drv(name)).expect("it runs").attempt);
    let (w1, mut contacts) = (worker("w1"), Contacts::default());
    assert!(!contacts.wound(&w1, 7, a), "it has no session");
    contacts.open(&w1, 7, Steady(0));
    assert!(!contacts.wound(&w1, 6, a), "an old one counts for nothing");
    let said: Vec<bool> = [a, a, b, AttemptId(77)].into_iter().map(|attempt| contacts.wound(&w1, 7, attempt)).collect();
    assert_eq!(said, [true, false, true, true]);
    assert_eq!(contacts.winding(&yard.farm), BTreeMap::from([(w1.clone(), BTreeSet::from([a, b]))]));
    yard.finish("a", 0, 100);
    assert_eq!(contacts.winding(&yard.farm), BTreeMap::from([(w1.clone(), BTreeSet::from([b]))]));
    contacts.close(&w1, 7);
    assert_eq!(contacts.winding(&yard.farm), BTreeMap::new());
}

#[test]
fn a_job_takes_the_place_of_an_attempt_that_only_uploads() {
    let mut yard = Yard::new();
    yard.worker("w1", 1, |_| {});
    yard.submit(vec![spec("a", &[]), spec("b", &[]), spec("c", &[])]);
    let (placements, _) = yard.go();
    let first = placements[0].derivation.clone();
    let attempt = yard.farm.live_lease(&first).expect("it runs").attempt;
    let winding = BTreeMap::from([(worker("w1"), BTreeSet::from([attempt, AttemptId(77)]))]);
    let beside = |yard: &Yard| plan_beside(&yard.farm, yard.now, &Limits::STANDARD, &BTreeSet::new(), &winding).0.placements;
    assert_eq!(yard.go().0, [], "the slot is held");
    let placements = beside(&yard);
    assert_eq!(placements.iter().map(|placement| placement.after).collect::<Vec<_>>(), [Some(attempt)]);
    let next = placements[0].derivation.clone();
    yard.apply(Command::Assign { placements, now: yard.now });
    let held = |yard: &Yard| (yard.farm.counts().running, yard.farm.workers()[0].used.cores);
    assert_eq!(held(&yard), (2, 1), "two leases, and one share");
    assert_eq!(beside(&yard), [], "a place is taken once");
    let third = drv(["a", "b", "c"].into_iter().find(|name| ![&first, &next].contains(&&drv(name))).expect("there are three"));
    let late = |after| Placement { derivation: third.clone(), worker: worker("w1"), epoch: Epoch(1), resources: None, light: false, after };
    yard.apply(Command::Assign { placements: vec![late(Some(attempt)), late(Some(AttemptId(77))), late(None)], now: yard.now });
    assert_eq!(held(&yard), (2, 1), "and refused twice");
    let attempts = yard.farm.leases_of(&worker("w1"));
    yard.apply(Command::Register { worker: worker("w1"), offer: offer(1), attempts, since: None, judge: false, now: yard.now });
    assert_eq!(held(&yard), (2, 1), "a worker that comes back keeps both");
    yard.finish(first.name(), 0, 100);
    assert_eq!((held(&yard), yard.go().0), ((1, 1), vec![]), "what ends gives back what it held: nothing");
}

#[test]
fn the_most_urgent_jobs_go_to_the_fastest_worker_and_those_that_use_cores_get_more() {
    let mut yard = Yard::new();
    yard.worker("slow", 8, |_| {});
    yard.worker("swift", 8, |offer| offer.speed_per_mille = 2_000);
    let busy = Measured {
        pname: "wide".to_owned(),
        system: "x86_64-linux".to_owned(),
        wall_ms: 900_000,
        cpu_ms: Some(1_800_000),
        ..Measured::default()
    };
    yard.apply(Command::ImportDurations { durations: vec![busy], now: yard.now });
    yard.import("other", 100, None);
    yard.submit(vec![wide("wide-1", 2), wide("other-1", 2)]);
    let (placements, _) = yard.go();
    let granted: Vec<(&str, String, Option<u32>)> =
        placements.iter().map(|p| (p.derivation.name(), p.worker.to_string(), p.resources.map(|granted| granted.cores))).collect();
    assert_eq!(granted, [("wide-1", "swift".to_owned(), Some(8)), ("other-1", "slow".to_owned(), None)]);
}

/// Returns whether a job asks no more than is left of a worker, counted from what the farm shows.
fn fits(view: &WorkerView, cores: u32, memory_mib: u64) -> bool {
    let running = u32::try_from(view.running.len()).expect("small");
    running < view.offer.slots
        && view.used.cores + cores <= view.offer.capacity.cores
        && view.used.memory_mib + memory_mib <= view.offer.capacity.memory_mib
}

#[test]
fn no_worker_is_over_its_capacity_and_no_job_waits_while_an_unkept_worker_fits_it() {
    for seed in 0..40 {
        let mut dice = Dice(seed);
        let mut yard = Yard::new();
        for number in 0..4 {
            let (memory_mib, speed) = (1_000 * (1 + dice.below(6)), 1_000 * (1 + dice.below(2)));
            yard.worker(&format!("w{number}"), 1 + u32::try_from(dice.below(4)).expect("small"), |offer| {
                (offer.capacity.memory_mib, offer.speed_per_mille) = (memory_mib, u32::try_from(speed).expect("small"));
                offer.capacity.cores = 4;
            });
        }
        for pname in ["p", "q", "r"] {
            yard.import(pname, 1 + dice.below(500), dice.once_in(2).then(|| 1 + dice.below(1_500)));
        }
        for round in 0..40u64 {
            let pname = *dice.choose(&["p", "q", "r", "s"]).expect("four");
            let cores = 1 + u32::try_from(dice.below(4)).expect("small");
            yard.submit(vec![wide(&format!("{pname}-{round}"), cores)]);
            yard.go();
            let workers = yard.farm.workers();
            for view in &workers {
                assert!(
                    view.used.cores <= view.offer.capacity.cores && view.used.memory_mib <= view.offer.capacity.memory_mib,
                    "seed {seed}: {view:?}"
                );
            }
            for job in yard.farm.jobs().filter(|job| job.state == "ready") {
                let asked = yard.specs[job.derivation.name()].resources.cores;
                // The memory that it would like is not shown: what fits with all that a worker has fits with any.
                let unkept = workers.iter().filter(|view| fits(view, asked, view.offer.capacity.memory_mib)).count();
                assert!(unkept <= 1, "seed {seed}: {} waits beside {unkept} idle workers", job.derivation);
            }
            yard.now = yard.now.after_ms(dice.below(100_000));
            let running: Vec<String> = workers.iter().flat_map(|view| &view.running).map(|drv| drv.name().to_owned()).collect();
            if let Some(name) = dice.choose(&running).filter(|_| dice.below(3) > 0).cloned() {
                yard.finish(&name, dice.below(2_000), 100);
            }
        }
    }
}

#[test]
fn what_was_imported_comes_back_from_a_snapshot() {
    let mut yard = Yard::new();
    let line = |number: usize| Measured {
        pname: format!("p{number}"),
        version: Some("1".to_owned()),
        system: "x86_64-linux".to_owned(),
        wall_ms: 1_000 + u64::try_from(number).expect("small"),
        ..Measured::default()
    };
    yard.submit(vec![spec("p7-1", &[])]);
    yard.apply(Command::ImportDurations { durations: (0..DURATIONS_PER_ENTRY_MAX + 5).map(line).collect(), now: yard.now });
    assert_eq!(yard.farm.packages(None).len(), DURATIONS_PER_ENTRY_MAX, "an entry holds no more");
    let again = Farm::from_snapshot(&yard.farm.to_snapshot()).expect("reads");
    assert_eq!(again, yard.farm);
    assert!(again.job_view(&drv("p7-1")).is_some_and(|view| view.upward_rank_ms < 2_000), "what is expected of jobs follows from it");
}
