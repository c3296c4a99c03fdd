//! Nothing waits for ever, beside a simple model of who is owed what; and shares hold while there is work.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::{Asker, Command, Effect, Farm, Limits, plan};
use kiln_wire::limits::{AGEING_MS_MIN, AGEING_STEP_MS};
use kiln_wire::{Account, DrvPath, Lease, LogIndex, Priority, ProjectName, RequestId, Share, ShareKey, TenantName, Timestamp};

use crate::facts::{Dice, built, offer, root, spec, worker};

/// A farm that is never without work: who has fewer than some jobs submits more.
struct Mill {
    farm: Farm,
    index: u64,
    now: u64,
    dice: Dice,
    asked: u64,
    /// When each job was submitted; those that are built are gone.
    waiting: BTreeMap<DrvPath, u64>,
    running: Vec<(u64, Lease)>,
    held_ms: BTreeMap<String, u64>,
}

impl Mill {
    fn new(seed: u64, slots: u32) -> Self {
        let (waiting, held_ms) = (BTreeMap::new(), BTreeMap::new());
        let mut mill = Self { farm: Farm::new(), index: 0, now: 0, dice: Dice(seed), asked: 0, waiting, running: Vec::new(), held_ms };
        mill.apply(Command::Register {
            worker: worker("w1"),
            offer: offer(slots),
            attempts: vec![],
            since: None,
            judge: false,
            now: Timestamp(0),
        });
        mill
    }

    fn apply(&mut self, command: Command) -> Vec<Effect> {
        self.index += 1;
        self.farm.apply(LogIndex(self.index), command)
    }

    fn set(&mut self, key: &str, share: Share) {
        let key = ShareKey::parse(key).expect("a key");
        self.apply(Command::SetShare { key, share: Some(share), now: Timestamp(self.now) });
    }

    fn submit(&mut self, account: Account, priority: i8, security: bool, jobs: usize) {
        self.asked += 1;
        let request = RequestId(self.asked);
        let names: Vec<String> = (0..jobs).map(|job| format!("j{}-{job}", self.asked)).collect();
        let specs: Vec<_> = names.iter().map(|name| spec(name, &[])).collect();
        for spec in &specs {
            self.waiting.insert(spec.derivation.clone(), self.now);
        }
        let now = Timestamp(self.now);
        self.apply(Command::Stage { request, jobs: specs, now });
        let asker = Some(Asker { account, priority: Priority::from(priority), security, trace: None });
        let roots = names.iter().map(|name| root(name)).collect();
        self.apply(Command::Submit { request, name: String::new(), roots, keep_going: true, asker, now });
    }

    /// Places what there is room for, then lets the next lease end.
    fn step(&mut self, length_ms: u64) {
        self.place(length_ms);
        self.count();
        self.end();
    }

    fn place(&mut self, length_ms: u64) {
        let (proposed, _) = plan(&self.farm, Timestamp(self.now), &Limits::STANDARD);
        for lease in proposed.preemptions {
            self.running.retain(|(_, running)| *running != lease);
            self.apply(Command::Preempt { lease, now: Timestamp(self.now) });
        }
        for placement in proposed.placements {
            for effect in self.apply(Command::Assign { placements: vec![placement], now: Timestamp(self.now) }) {
                if let Effect::Dispatch { lease, .. } = effect {
                    let length_ms = length_ms / 2 + self.dice.below(length_ms);
                    self.running.push((self.now + length_ms, lease));
                }
            }
        }
    }

    fn end(&mut self) {
        self.running.sort_by_key(|(at, lease)| (*at, lease.attempt));
        if self.running.is_empty() {
            return;
        }
        let (at, lease) = self.running.remove(0);
        self.now = at;
        self.waiting.remove(&lease.derivation);
        let outcome = built(&spec(lease.derivation.name(), &[]), 1);
        let derivation = lease.derivation.clone();
        for effect in self.apply(Command::Finish { lease, outcome, learn: false, judge: false, now: Timestamp(at) }) {
            if let Effect::Archive(record) = effect {
                self.apply(Command::Retire { build: record.build, now: Timestamp(at) });
            }
        }
        for effect in self.apply(Command::Publish { derivation, now: Timestamp(at) }) {
            if let Effect::Archive(record) = effect {
                self.apply(Command::Retire { build: record.build, now: Timestamp(at) });
            }
        }
    }

    /// Counts what each tenant holds for the time until the next lease ends.
    fn count(&mut self) {
        let until = self.running.iter().map(|(at, _)| *at).min().unwrap_or(self.now);
        for (name, views) in self.farm.share_views(Timestamp(self.now)).into_iter().map(|view| (view.tenant.clone(), view)) {
            if let (Some(name), None) = (name, &views.project) {
                *self.held_ms.entry(name.as_str().to_owned()).or_default() += views.held_ppm * (until - self.now);
            }
        }
    }
}

fn account(tenant: &str, project: Option<&str>) -> Account {
    let project = project.map(|project| ProjectName::parse(project).expect("a name"));
    Account { tenant: TenantName::parse(tenant).ok(), project }
}

/// Any weights and priorities, fresh and more urgent work all the time, and a security build now and then: whatever was submitted is built
/// within what ageing, the half-life of use and the work of the same age before it take.
#[test]
fn nothing_waits_for_ever() {
    for seed in 0..24 {
        let slots = 1 + u32::try_from(seed % 3).expect("small");
        let mut mill = Mill::new(seed, slots);
        let points = |dice: &mut Dice| i8::try_from(dice.below(201)).map_or(100, |points| points.saturating_sub(100));
        for tenant in ["ann", "bob", "cid"] {
            let weight = if mill.dice.once_in(2) { 1 } else { 1_000 };
            let share = Share { weight, priority: Priority::from(points(&mut mill.dice)), may_use_security: true };
            mill.set(tenant, share);
        }
        let unlucky = ["ann", "bob", "cid"][usize::try_from(seed % 3).expect("small")];
        mill.submit(account(unlucky, None), -100, false, 1);
        let mark: BTreeSet<DrvPath> = mill.waiting.keys().cloned().collect();
        // Each step is a lease of about twenty minutes.
        let mut built_at = None;
        while built_at.is_none() && mill.now < BOUND_MS {
            for tenant in ["ann", "bob", "cid"] {
                // More than there is room for, all of it more urgent than what waits.
                if mill.waiting.len() < 24 {
                    mill.submit(account(tenant, None), 100, false, 4);
                }
            }
            if mill.dice.once_in(8) {
                mill.submit(account("ann", Some("fixes")), 0, true, 1);
            }
            mill.step(1_200_000);
            built_at = mark.iter().all(|job| !mill.waiting.contains_key(job)).then_some(mill.now);
        }
        assert!(built_at.is_some(), "seed {seed}: what {unlucky} wants still waits after {} h", mill.now / 3_600_000);
        mill.farm.check_invariants().expect("every invariant holds");
    }
}

/// Twenty hours from the least priority to the highest after the first twelve, then what is older; and ten half-lives until a weight of a
/// thousandth and the least priority beside the highest have paid for one slot.
const BOUND_MS: u64 = AGEING_MS_MIN + 21 * AGEING_STEP_MS + 72 * 3_600_000;

/// Whoever has work gets its part of what is used, also where slots do not divide.
#[test]
fn tenants_get_their_shares() {
    for (slots, weights) in [(1, [1, 1, 1]), (2, [1, 1, 1]), (3, [1, 1, 2]), (4, [1, 3, 1]), (7, [1, 2, 3]), (16, [1, 1, 14])] {
        let mut mill = Mill::new(u64::from(slots), slots);
        let tenants = ["ann", "bob", "cid"];
        for (tenant, weight) in tenants.into_iter().zip(weights) {
            mill.set(tenant, Share { weight, ..Share::default() });
            for _ in 0..3 {
                mill.submit(account(tenant, None), 0, false, 500);
            }
        }
        for _ in 0..1_200 {
            mill.step(60_000);
        }
        let whole: u64 = mill.held_ms.values().sum();
        let all: u32 = weights.iter().sum();
        for (tenant, weight) in tenants.into_iter().zip(weights) {
            let (part, due) = (mill.held_ms[tenant] as f64 / whole as f64, f64::from(weight) / f64::from(all));
            assert!((part - due).abs() < 0.05, "{slots} slots, weights {weights:?}: {tenant} has {part:.3}, {due:.3} is due");
        }
    }
}
