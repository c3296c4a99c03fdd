//! What goes wrong, when and for how long: drawn from a seed. Pure.
//!
//! Never more than one coordinator of three is harmed at a time; a worker may be harmed beside it. Everything is mended and the
//! coordinators are in step again before the next step begins.

use std::fmt;

use crate::random::Random;

/// Whom a fault is for. Who leads is known when the fault happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The coordinator that leads.
    Leader,
    /// One that does not.
    Follower,
    /// This worker.
    Worker(u8),
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL; started again when it is mended.
    Kill(Target),
    /// SIGSTOP, and SIGCONT when it is mended.
    Freeze(Target),
    /// Cut off from everybody.
    Isolate(Target),
    /// A coordinator cut off from the other coordinators only: clients and workers still reach it.
    Split(Target),
    /// Nothing reaches it.
    Deafen(Target),
    /// Nothing it sends arrives.
    Silence(Target),
    /// Nothing passes between any two hosts.
    Bridge,
    /// So many per cent of all packets are lost.
    Loss(u8),
    /// Its disk is full.
    FillDisk(Target),
    /// Its wall clock jumps by so many milliseconds, and back when it is mended.
    StepClock(Target, i64),
    /// `kiln cluster transfer` to another coordinator.
    Transfer,
    /// Every coordinator in turn is stopped by SIGTERM and started again.
    Roll,
}

/// One step: a fault, perhaps one of a worker beside it, and times in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// How long all is well before.
    pub pause_ms: u64,
    /// What happens.
    pub fault: Fault,
    /// What happens to a worker at the same time.
    pub beside: Option<Fault>,
    /// How long it lasts.
    pub hold_ms: u64,
}

/// The endless steps of one round.
#[derive(Clone, Debug)]
pub struct Plan {
    random: Random,
    workers: u8,
    deck: Vec<Kind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    KillLeader,
    KillFollower,
    KillWorker,
    Freeze,
    FreezeWorker,
    Isolate,
    IsolateWorker,
    Split,
    Deafen,
    Silence,
    Bridge,
    Loss,
    FillDisk,
    StepClock,
    Transfer,
    Roll,
}

/// Every kind once, the most telling ones twice.
const DECK: [Kind; 19] = [
    Kind::KillLeader,
    Kind::KillLeader,
    Kind::KillFollower,
    Kind::KillWorker,
    Kind::Freeze,
    Kind::FreezeWorker,
    Kind::Isolate,
    Kind::IsolateWorker,
    Kind::Split,
    Kind::Split,
    Kind::Deafen,
    Kind::Silence,
    Kind::Bridge,
    Kind::Loss,
    Kind::FillDisk,
    Kind::FillDisk,
    Kind::StepClock,
    Kind::Transfer,
    Kind::Roll,
];

/// A worker that is not heard for 15 s loses its leases: shorter faults must not cost work.
pub const WORKER_HOLD_MS_MAX: u64 = 6_000;

impl Plan {
    /// Draws the steps of a round.
    pub fn new(seed: u64, round: u64, workers: u8) -> Self {
        Self { random: Random::part(seed, round), workers, deck: Vec::new() }
    }

    fn kind(&mut self) -> Kind {
        if self.deck.is_empty() {
            self.deck = DECK.to_vec();
            for last in (1..self.deck.len()).rev() {
                let other = usize::try_from(self.random.between(0, u64::try_from(last).unwrap_or(0))).unwrap_or(0);
                self.deck.swap(last, other);
            }
        }
        self.deck.pop().expect("the deck was filled")
    }

    fn coordinator(&mut self) -> Target {
        *self.random.of(&[Target::Leader, Target::Leader, Target::Follower])
    }

    fn worker(&mut self) -> Target {
        Target::Worker(u8::try_from(self.random.between(1, u64::from(self.workers))).unwrap_or(1))
    }

    fn fault(&mut self, kind: Kind) -> Fault {
        match kind {
            Kind::KillLeader => Fault::Kill(Target::Leader),
            Kind::KillFollower => Fault::Kill(Target::Follower),
            Kind::KillWorker => Fault::Kill(self.worker()),
            Kind::Freeze => Fault::Freeze(self.coordinator()),
            Kind::FreezeWorker => Fault::Freeze(self.worker()),
            Kind::Isolate => Fault::Isolate(self.coordinator()),
            Kind::IsolateWorker => Fault::Isolate(self.worker()),
            Kind::Split => Fault::Split(Target::Leader),
            Kind::Deafen => Fault::Deafen(self.coordinator()),
            Kind::Silence => Fault::Silence(self.coordinator()),
            Kind::Bridge => Fault::Bridge,
            Kind::Loss => Fault::Loss(u8::try_from(self.random.between(5, 30)).unwrap_or(5)),
            Kind::FillDisk => Fault::FillDisk(self.coordinator()),
            Kind::StepClock => {
                let ahead = i64::try_from(self.random.between(1_000, 3_600_000)).unwrap_or(1_000);
                let step = if self.random.between(0, 1) == 0 { ahead } else { -ahead };
                Fault::StepClock(self.coordinator(), step)
            }
            Kind::Transfer => Fault::Transfer,
            Kind::Roll => Fault::Roll,
        }
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let kind = self.kind();
        let fault = self.fault(kind);
        let beside = (fault.coordinators() && self.random.between(0, 3) == 0).then(|| {
            let kind = *self.random.of(&[Kind::KillWorker, Kind::FreezeWorker, Kind::IsolateWorker]);
            self.fault(kind)
        });
        Some(Step { pause_ms: self.random.between(300, 2_500), fault, beside, hold_ms: self.random.between(500, WORKER_HOLD_MS_MAX) })
    }
}

impl Fault {
    /// Returns whom it is for, if it is one host's.
    pub fn target(self) -> Option<Target> {
        match self {
            Self::Kill(target)
            | Self::Freeze(target)
            | Self::Isolate(target)
            | Self::Split(target)
            | Self::Deafen(target)
            | Self::Silence(target)
            | Self::FillDisk(target)
            | Self::StepClock(target, _) => Some(target),
            Self::Bridge | Self::Loss(_) | Self::Transfer | Self::Roll => None,
        }
    }

    /// Whether it is one of coordinators alone.
    fn coordinators(self) -> bool {
        match self.target() {
            Some(Target::Leader | Target::Follower) => true,
            Some(Target::Worker(_)) => false,
            None => matches!(self, Self::Transfer | Self::Roll),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leader => f.write_str("leader"),
            Self::Follower => f.write_str("follower"),
            Self::Worker(number) => write!(f, "worker {number}"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(target) => write!(f, "kill -9 of {target}"),
            Self::Freeze(target) => write!(f, "{target} frozen"),
            Self::Isolate(target) => write!(f, "{target} cut off"),
            Self::Split(target) => write!(f, "{target} cut off from coordinators"),
            Self::Deafen(target) => write!(f, "{target} deaf"),
            Self::Silence(target) => write!(f, "{target} mute"),
            Self::Bridge => f.write_str("bridge down"),
            Self::Loss(percent) => write!(f, "{percent} % loss"),
            Self::FillDisk(target) => write!(f, "disk of {target} full"),
            Self::StepClock(target, ms) => write!(f, "clock of {target} steps {ms:+} ms"),
            Self::Transfer => f.write_str("transfer"),
            Self::Roll => f.write_str("rolling restart"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::mem::{Discriminant, discriminant};

    use super::*;

    #[test]
    fn a_seed_and_a_round_determine_the_steps() {
        let steps = |seed, round| Plan::new(seed, round, 3).take(50).collect::<Vec<_>>();
        assert_eq!(steps(1, 1), steps(1, 1));
        assert_ne!(steps(1, 1), steps(1, 2));
        assert_ne!(steps(1, 1), steps(2, 1));
    }

    #[test]
    fn every_kind_comes_and_workers_are_heard_in_time() {
        let steps: Vec<Step> = Plan::new(5, 1, 3).take(DECK.len()).collect();
        let kinds: BTreeSet<String> = steps.iter().map(|step| format!("{:?}", discriminant::<Fault>(&step.fault))).collect();
        let all: BTreeSet<String> = DECK.iter().map(|kind| discriminant_of(*kind)).collect();
        assert_eq!(kinds, all);
        assert!(steps.iter().all(|step| step.hold_ms <= WORKER_HOLD_MS_MAX));
    }

    fn discriminant_of(kind: Kind) -> String {
        let found: Discriminant<Fault> = discriminant(&Plan::new(0, 0, 3).fault(kind));
        format!("{found:?}")
    }

    #[test]
    fn only_a_worker_is_harmed_beside_a_coordinator() {
        for step in Plan::new(9, 4, 3).take(1000) {
            let Some(beside) = step.beside else { continue };
            assert!(step.fault.coordinators(), "{step:?}");
            assert!(matches!(beside.target(), Some(Target::Worker(1..=3))), "{step:?}");
        }
    }
}
