//! Random commands, nonsense among them: every invariant holds after each, nothing panics, replicas agree, and in the end all is built.
//!
//! A failure names its seed; `KILN_SEED=<seed>` runs that one alone.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::{Answer, Asker, Command, Effect, Farm, Limits, Placement, Resolution, ResolvedInput, plan, plan_beside};
use kiln_wire::client::{BuildState, EventKind};
use kiln_wire::{
    Account, AttemptId, BuildId, BuiltOutput, DrvPath, Epoch, Evaluation, FailureClass, JobSpec, Lease, LogIndex, Order, Outcome, Priority,
    ProjectName, RequestId, Share, ShareKey, Subject, TenantName, Timestamp, WorkerId,
};

use crate::copying::{check_copies, live, untold};
use crate::facts::{Dice, built, drv, failed, info, offer, output_name, output_path, root, spec, worker};

const NAMES: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
const WORKERS: [&str; 4] = ["w1", "w2", "w3", "w4"];
/// Infrastructure more often than others: what fails so on three workers has had bad luck thrice.
const CLASSES: [FailureClass; 8] = [
    FailureClass::Infrastructure,
    FailureClass::Infrastructure,
    FailureClass::Infrastructure,
    FailureClass::BuildFailure,
    FailureClass::OutOfMemory,
    FailureClass::LimitExceeded,
    FailureClass::Infrastructure,
    FailureClass::Cancelled,
];

/// Draws commands. Keeps what it needs to draw sensible ones beside the nonsense.
struct Chaos {
    dice: Dice,
    now: Timestamp,
    leases: Vec<Lease>,
    builds: Vec<BuildId>,
    registrations: BTreeMap<String, Epoch>,
    request: u64,
}

impl Chaos {
    fn new(seed: u64) -> Self {
        let registrations = BTreeMap::new();
        Self { dice: Dice(seed), now: Timestamp(0), leases: Vec::new(), builds: Vec::new(), registrations, request: 0 }
    }

    fn note(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Dispatch { lease, .. } => self.leases.push(lease.clone()),
                Effect::Welcome { worker, epoch, .. } => {
                    self.registrations.insert(worker.as_str().to_owned(), *epoch);
                }
                Effect::Answer(Answer::Submitted { build, .. }) => self.builds.push(*build),
                Effect::Answer(Answer::Refused(_))
                | Effect::Revoke(_)
                | Effect::Acknowledge { .. }
                | Effect::Publish { .. }
                | Effect::Resolve { .. }
                | Effect::Notify { .. }
                | Effect::Judged { .. }
                | Effect::Copied { .. }
                | Effect::Archive(_) => {}
            }
        }
    }

    fn command(&mut self, farm: &Farm) -> Command {
        self.now = Timestamp(self.now.0 + self.dice.below(1500));
        let now = self.now;
        match self.dice.below(20) {
            0 => self.register(),
            1 => {
                let name = self.worker();
                let epoch = self.epoch(&name);
                Command::Lose { worker: worker(&name), epoch, judge: self.dice.once_in(2), now }
            }
            3 if self.dice.once_in(3) => {
                Command::Check { request: self.request(), derivations: vec![drv(self.name()), drv(self.name())], now }
            }
            2 | 3 => Command::Stage { request: self.request(), jobs: self.jobs(), now },
            4 if self.dice.once_in(4) => Command::Describe { request: self.request(), evaluation: self.evaluation(), now },
            5 if self.dice.once_in(6) => {
                let names = ["chat", "mail"].into_iter().filter(|_| self.dice.once_in(2));
                Command::Announce { receivers: names.map(str::to_owned).collect(), now }
            }
            5 if self.dice.once_in(4) => Command::Told { receiver: "chat".to_owned(), upto: self.dice.below(9), now },
            4 | 5 => {
                let roots = vec![root(self.name()), root(self.name())];
                let keep_going = self.dice.once_in(2);
                let asker = (!self.dice.once_in(3)).then(|| self.asker());
                Command::Submit { request: self.request(), name: "chaos".to_owned(), roots, keep_going, asker, now }
            }
            6..=9 => {
                let winding = self.winding(farm);
                let limits = Limits { placements_max: 3, copies: true, ..Limits::STANDARD };
                let (plan, _) = plan_beside(farm, now, &limits, &BTreeSet::new(), &winding);
                if let Some(lease) = plan.preemptions.into_iter().next() {
                    return Command::Preempt { lease, now };
                }
                if let Some((of, placement)) = plan.copies.into_iter().next() {
                    return Command::Copy { of, placement, now };
                }
                Command::Assign { placements: plan.placements, now }
            }
            10 if self.dice.once_in(2) => self.copy(farm),
            10 => Command::Assign { placements: (0..3).map(|_| self.placement(farm)).collect(), now },
            11..=14 => {
                let (lease, outcome) = (self.lease(farm), self.outcome());
                Command::Finish { lease, outcome, learn: self.dice.once_in(2), judge: !self.dice.once_in(3), now }
            }
            15 if self.dice.once_in(12) => Command::Drain { worker: worker(&self.worker()), drain: self.dice.once_in(4), now },
            15 if self.dice.once_in(4) => self.growth(farm),
            15 if self.dice.once_in(2) => {
                let name = self.name();
                let honest = !self.dice.once_in(4);
                resolution(farm, name, self.dice.once_in(3), honest, now)
            }
            15 | 16 => Command::Publish { derivation: drv(self.name()), now },
            17 if self.dice.once_in(2) => self.steering(),
            17 => Command::Cancel { build: self.build(), now },
            18 if self.dice.once_in(4) => self.share(),
            18 if self.dice.once_in(4) => Command::Preempt { lease: self.lease(farm), now },
            18 if self.dice.once_in(2) => Command::Revoke { lease: self.lease(farm), now },
            18 => farm.due(now).into_iter().next().unwrap_or(Command::Cancel { build: BuildId(0), now }),
            _ => Command::Retire { build: self.build(), now },
        }
    }

    /// What may be said of roots, though not of those that follow.
    fn evaluation(&mut self) -> Evaluation {
        let attributes = (0..2).map(|place| (place, vec![self.name().to_owned()])).collect();
        Evaluation {
            attributes,
            errors: [("bad".to_owned(), "no".to_owned())].into(),
            errors_more: self.dice.below(2),
            unreached: vec![],
            unbuilt: vec![1],
        }
    }

    fn asker(&mut self) -> Asker {
        let project = self.dice.once_in(2).then(|| ProjectName::parse("p").expect("a name"));
        let account = Account { tenant: TenantName::parse(self.tenant()).ok(), project };
        Asker { account, priority: self.priority(), security: self.dice.once_in(4), trace: None }
    }

    fn tenant(&mut self) -> &'static str {
        if self.dice.once_in(2) { "ann" } else { "bob" }
    }

    fn priority(&mut self) -> Priority {
        Priority::from([-100, -50, 0, 50, 100][usize::try_from(self.dice.below(5)).expect("small")])
    }

    fn share(&mut self) -> Command {
        let key = ShareKey::parse(if self.dice.once_in(2) { self.tenant() } else { "ann/p" }).expect("a key");
        let weight = u32::try_from(self.dice.below(4)).expect("small");
        let share = (!self.dice.once_in(4)).then(|| Share { weight, priority: self.priority(), may_use_security: false });
        Command::SetShare { key, share, now: self.now }
    }

    fn steering(&mut self) -> Command {
        let subject = if self.dice.once_in(3) { Subject::Build(self.build()) } else { Subject::Job(drv(self.name())) };
        let order = match self.dice.below(4) {
            0 => Order::Cancel,
            1 => Order::Bump(self.priority()),
            _ => Order::Restart,
        };
        Command::Steer { subject, order, by: "admin/chaos".to_owned(), now: self.now }
    }

    fn name(&mut self) -> &'static str {
        self.dice.choose(&NAMES).copied().expect("there are names")
    }

    fn worker(&mut self) -> String {
        self.dice.choose(&WORKERS).map(|name| (*name).to_owned()).expect("there are workers")
    }

    fn epoch(&mut self, name: &str) -> Epoch {
        let known = self.registrations.get(name).copied().unwrap_or(Epoch(0));
        if self.dice.once_in(4) { Epoch(self.dice.below(50)) } else { known }
    }

    /// A number that was used before, or the next one.
    fn request(&mut self) -> RequestId {
        if self.dice.once_in(3) {
            self.request += 1;
        }
        RequestId(self.request.saturating_sub(self.dice.below(2)))
    }

    fn build(&mut self) -> BuildId {
        let recent = self.builds.iter().rev().take(6).copied().collect::<Vec<_>>();
        self.dice.choose(&recent).copied().unwrap_or(BuildId(3))
    }

    fn register(&mut self) -> Command {
        let name = self.worker();
        let slots = u32::try_from(self.dice.below(4)).expect("small");
        let mut offer = offer(slots);
        offer.light_slots = u32::try_from(self.dice.below(2)).expect("small");
        offer.speed_per_mille = 500 * u32::try_from(1 + self.dice.below(3)).expect("small");
        offer.capacity.memory_mib = 500 * (1 + self.dice.below(5));
        if self.dice.once_in(3) {
            offer.features.insert("kvm".to_owned());
        }
        let recent: Vec<Lease> = self.leases.iter().rev().take(8).cloned().collect();
        let attempts = (0..self.dice.below(6)).filter_map(|_| self.dice.choose(&recent).cloned()).collect();
        Command::Register { worker: worker(&name), offer, attempts, since: None, judge: self.dice.once_in(2), now: self.now }
    }

    /// Mostly a graph in the order of names; sometimes with cycles or inputs that nobody has.
    fn jobs(&mut self) -> Vec<JobSpec> {
        let cyclic = self.dice.once_in(12);
        (0..1 + self.dice.below(8)).map(|_| self.job(cyclic)).collect()
    }

    fn job(&mut self, cyclic: bool) -> JobSpec {
        let name = self.name();
        let bound = if cyclic { "z" } else { name };
        let inputs: Vec<&str> = (0..self.dice.below(3)).map(|_| self.name()).filter(|input| *input < bound).collect();
        let mut spec = spec(name, &inputs);
        spec.resources.cores = u32::try_from(self.dice.below(3)).expect("small");
        spec.resources.memory_mib = 400 * self.dice.below(4);
        if self.dice.once_in(6) {
            spec.required_features.insert("kvm".to_owned());
        }
        spec.resolve = self.dice.once_in(3);
        if self.dice.once_in(4) {
            spec.outputs.insert(output_name("dev"), None);
        }
        spec
    }

    /// A job that could be resolved turns out to need others first, staged ones or ones that are there; sometimes such as need itself.
    fn growth(&mut self, farm: &Farm) -> Command {
        let due: Vec<&'static str> = NAMES.into_iter().filter(|name| farm.is_to_be_resolved(&drv(name))).collect();
        let name = match self.dice.choose(&due) {
            Some(name) => *name,
            None => self.name(),
        };
        let needs = (0..self.dice.below(3)).map(|_| drv(self.name())).collect();
        let to = Resolution::Grow { request: self.request(), needs };
        match resolution(farm, name, false, !self.dice.once_in(6), self.now) {
            Command::Resolve { derivation, inputs, now, .. } => Command::Resolve { derivation, inputs, to, now },
            other => other,
        }
    }

    /// Some of the latest leases, dead ones among them.
    fn winding(&mut self, farm: &Farm) -> BTreeMap<WorkerId, BTreeSet<AttemptId>> {
        let mut winding: BTreeMap<WorkerId, BTreeSet<AttemptId>> = BTreeMap::new();
        for _ in 0..self.dice.below(4) {
            let lease = self.lease(farm);
            winding.entry(lease.worker).or_default().insert(lease.attempt);
        }
        winding
    }

    fn placement(&mut self, farm: &Farm) -> Placement {
        let name = self.worker();
        let after = if self.dice.once_in(3) { Some(self.lease(farm).attempt) } else { None };
        let epoch = self.epoch(&name);
        Placement { derivation: drv(self.name()), worker: worker(&name), epoch, resources: None, light: self.dice.once_in(20), after }
    }

    /// A second attempt, mostly at something that runs.
    fn copy(&mut self, farm: &Farm) -> Command {
        let (of, placement) = (self.lease(farm), self.placement(farm));
        let light = placement.light && self.dice.once_in(3);
        Command::Copy { of: of.attempt, placement: Placement { derivation: of.derivation, light, ..placement }, now: self.now }
    }

    fn lease(&mut self, farm: &Farm) -> Lease {
        let recent: Vec<Lease> = self.leases.iter().rev().take(12).cloned().collect();
        let live: Vec<Lease> = recent.iter().filter(|lease| farm.is_live(lease)).cloned().collect();
        let from = if self.dice.once_in(4) { &recent } else { &live };
        let nonsense = Lease { derivation: drv(self.name()), attempt: AttemptId(7), worker: worker("w1"), epoch: Epoch(1) };
        let mut lease = self.dice.choose(from).cloned().unwrap_or(nonsense);
        if self.dice.once_in(15) {
            lease.epoch = Epoch(lease.epoch.0 + 1);
        }
        lease
    }

    fn outcome(&mut self) -> Outcome {
        if self.dice.once_in(3) {
            let class = self.dice.choose(&CLASSES).copied().expect("there are classes");
            return failed(class, "chaos", self.dice.below(3000));
        }
        let content = u8::try_from(1 + self.dice.below(2)).expect("small");
        let mut outcome = built(&spec(self.name(), &[]), content);
        if let Outcome::Built { usage, .. } = &mut outcome {
            // Long and short ones, so that what is expected of the others moves.
            usage.wall_ms = 1 << self.dice.below(30);
            usage.memory_peak_bytes = self.dice.below(3) << self.dice.below(33);
            usage.cpu_ms = usage.wall_ms * self.dice.below(4);
        }
        outcome
    }
}

/// Gives an outcome the outputs that its lease's job declares, most of the time.
fn fit(farm: &Farm, command: Command, wrong: bool) -> Command {
    match command {
        Command::Finish { lease, outcome: Outcome::Built { outputs, usage }, learn, judge, now } if !wrong => {
            let content = outputs[0].info.nar_hash.0[0];
            let names = farm.outputs_declared(&lease.derivation).unwrap_or_default();
            let outputs = names
                .into_iter()
                .map(|(name, path)| {
                    let path = path.unwrap_or_else(|| output_path(lease.derivation.name(), name.as_str()));
                    BuiltOutput { name, info: info(path, content) }
                })
                .collect();
            Command::Finish { lease, outcome: Outcome::Built { outputs, usage }, learn, judge, now }
        }
        other => other,
    }
}

/// What a leader's task makes of a job's committed inputs; a dishonest one takes them to be elsewhere.
fn resolution(farm: &Farm, name: &str, exists: bool, honest: bool, now: Timestamp) -> Command {
    let at = |input: &DrvPath| {
        let built = farm.outputs_of(input).unwrap_or_default().iter().next()?;
        let path = if honest { built.info.path.clone() } else { output_path("elsewhere", "out") };
        Some(ResolvedInput { derivation: input.clone(), output: built.name.clone(), path })
    };
    let inputs = farm.inputs_of(&drv(name)).unwrap_or_default().into_iter().filter_map(at).collect();
    let declared = farm.outputs_declared(&drv(name)).unwrap_or_default().into_iter();
    let paths = declared.map(|(output, path)| {
        let path = path.unwrap_or_else(|| output_path(name, output.as_str()));
        (output, path)
    });
    let derivation = drv("resolved");
    let to = match exists {
        true => Resolution::Exists { derivation, outputs: paths.map(|(name, path)| BuiltOutput { name, info: info(path, 1) }).collect() },
        false => Resolution::Build { derivation, outputs: paths.collect() },
    };
    Command::Resolve { derivation: drv(name), inputs, to, now }
}

fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("KILN_SEED") {
        Ok(seed) => vec![seed.parse().expect("KILN_SEED is a number")],
        Err(_) => (0..count).collect(),
    }
}

/// Every ready job is in the plan or in the report, and a plan is taken whole by the farm that it was made for.
fn check_plan(farm: &Farm, index: u64, now: Timestamp, seed: u64) {
    let limits = Limits { placements_max: usize::try_from(seed % 5).expect("small"), ..Limits::STANDARD };
    for limits in [limits, Limits::STANDARD] {
        let (plan, report) = plan(farm, now, &limits);
        let ready = farm.jobs().filter(|job| job.state == "ready").count();
        let waiting: u64 = report.waiting.iter().map(|waiting| waiting.count).sum();
        let placed = u64::try_from(plan.placements.len()).expect("small");
        assert_eq!(placed + waiting, u64::try_from(ready).expect("small"), "seed {seed}: {plan:?} {report:?}");
        let effects = farm.clone().apply(LogIndex(index), Command::Assign { placements: plan.placements, now });
        let refused = effects.iter().find(|effect| matches!(effect, Effect::Answer(_)));
        assert_eq!(refused, None, "seed {seed}: the farm refuses its own plan");
    }
}

/// What must have happened at least once, or the commands are not random enough.
const SEEN_EXPECTED: [&str; 28] = [
    "Acknowledge",
    "Archive Built",
    "Archive Cancelled",
    "Archive Failed",
    "BeingBuilt",
    "Cancelled",
    "Copied",
    "Cycle",
    "DependencyFailed",
    "Dispatch",
    "DoesNotFit",
    "Failed Infrastructure",
    "Failed OutOfMemory",
    "Grown",
    "NoSuchBuild",
    "NoSuchJob",
    "NonDeterministic",
    "NotCopied",
    "NotEnded",
    "NotReady",
    "Retried Infrastructure",
    "Retried OutOfMemory",
    "Revoke",
    "StageDropped",
    "StaleEpoch",
    "StaleLease",
    "UnknownInput",
    "WrongOutputs",
];

fn note_seen(effects: &[Effect], seen: &mut BTreeSet<String>) {
    let first_word = |text: String| text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned();
    for effect in effects {
        seen.insert(match effect {
            Effect::Answer(Answer::Refused(refused)) => first_word(format!("{refused:?}")),
            Effect::Archive(record) => format!("Archive {:?}", record.state),
            Effect::Notify { event, .. } => match &event.kind {
                EventKind::Retried { class, .. } => format!("Retried {class:?}"),
                EventKind::Failed { class, .. } => format!("Failed {class:?}"),
                other => first_word(format!("{other:?}")),
            },
            other => first_word(format!("{other:?}")),
        });
    }
}

#[test]
fn invariants_hold_under_random_commands() {
    let mut seen = BTreeSet::new();
    let seeds = seeds(300);
    for seed in seeds.iter().copied() {
        let mut farm = Farm::new();
        let mut chaos = Chaos::new(seed);
        for index in 1..400 {
            let wrong = chaos.dice.once_in(10);
            let command = chaos.command(&farm);
            let command = fit(&farm, command, wrong);
            let text = format!("{command:?}");
            let before = live(&farm);
            let effects = farm.apply(LogIndex(index), command.clone());
            chaos.note(&effects);
            if let Some(lease) = untold(&farm, before, &command, &effects) {
                panic!("KILN_SEED={seed}, entry {index}: nobody is told to stop {lease:?} after {text}");
            }
            note_seen(&effects, &mut seen);
            if text.contains("Grow {") && !effects.iter().any(|effect| matches!(effect, Effect::Answer(_))) {
                seen.insert("Grown".to_owned());
            }
            if let Err(violation) = farm.check_invariants() {
                panic!("KILN_SEED={seed}, entry {index}: {violation} after {text}");
            }
            if index % 5 == 0 {
                check_plan(&farm, index + 1, chaos.now, seed);
                check_copies(&farm, index + 1, chaos.now, seed);
            }
        }
        drain(&mut farm, &mut chaos, seed);
    }
    let missing: Vec<&str> = SEEN_EXPECTED.into_iter().filter(|word| !seen.contains(*word)).collect();
    assert!(seeds.len() == 1 || missing.is_empty(), "never happened: {missing:?} of {seen:?}");
}

#[test]
fn a_replica_that_starts_from_a_snapshot_agrees() {
    for seed in seeds(25) {
        let (mut farm, mut replica) = (Farm::new(), Farm::new());
        let mut chaos = Chaos::new(seed);
        for index in 1..300 {
            let wrong = chaos.dice.once_in(10);
            let command = chaos.command(&farm);
            let command = fit(&farm, command, wrong);
            let effects = farm.apply(LogIndex(index), command.clone());
            chaos.note(&effects);
            assert_eq!(replica.apply(LogIndex(index), command), effects, "KILN_SEED={seed}, entry {index}");
            if index % 17 == 0 {
                let snapshot = replica.to_snapshot();
                assert_eq!(snapshot, farm.to_snapshot(), "KILN_SEED={seed}, entry {index}");
                replica = Farm::from_snapshot(&snapshot).expect("a farm's snapshot can be read");
                assert_eq!(replica, farm, "KILN_SEED={seed}, entry {index}");
            }
        }
    }
}

/// A farm that is left in peace, with workers that can run everything, ends every build and is empty afterwards.
fn drain(farm: &mut Farm, chaos: &mut Chaos, seed: u64) {
    let mut index = 1000;
    let mut apply = |farm: &mut Farm, command: Command| {
        index += 1;
        let effects = farm.apply(LogIndex(index), command);
        farm.check_invariants().unwrap_or_else(|violation| panic!("KILN_SEED={seed} while draining: {violation}"));
        effects
    };
    let mut now = Timestamp(chaos.now.0 + 1_000_000);
    for name in WORKERS {
        let mut offer = offer(3);
        offer.features.insert("kvm".to_owned());
        offer.capacity.memory_mib = 1 << 40;
        apply(farm, Command::Register { worker: worker(name), offer, attempts: Vec::new(), since: None, judge: false, now });
    }
    for _ in 0..200 {
        now = Timestamp(now.0 + 400_000);
        for command in farm.due(now) {
            apply(farm, command);
        }
        for effect in farm.pending_effects() {
            match effect {
                Effect::Publish { derivation, .. } => apply(farm, Command::Publish { derivation, now }),
                Effect::Archive(record) => apply(farm, Command::Retire { build: record.build, now }),
                Effect::Resolve { derivation } => apply(farm, resolution(farm, derivation.name(), derivation.name() < "f", true, now)),
                other => panic!("KILN_SEED={seed}: not owed to a new leader: {other:?}"),
            };
        }
        let (plan, _) = plan(farm, now, &Limits::STANDARD);
        for effect in apply(farm, Command::Assign { placements: plan.placements, now }) {
            let Effect::Dispatch { lease, .. } = effect else { continue };
            let outcome = built(&spec("a", &[]), 1);
            let finish = fit(farm, Command::Finish { lease, outcome, learn: true, judge: false, now }, false);
            apply(farm, finish);
        }
    }
    let left: Vec<String> = farm.jobs().map(|job| format!("{} {} {}", job.derivation, job.state, job.reason)).collect();
    assert!(left.is_empty(), "KILN_SEED={seed}: a drained farm holds {left:?}");
    let active = farm.builds().filter_map(|id| farm.build_view(id)).find(|view| view.state == BuildState::Active);
    assert_eq!(active, None, "KILN_SEED={seed}");
}
