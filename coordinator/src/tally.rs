//! What applied entries did, counted for `/metrics`: attempts by how they ended, and how long jobs waited and ran.
//!
//! Every coordinator counts, for it follows from what is applied: one of them is enough to know the farm's, and their sum says nothing. A
//! process begins with nothing, and counts the entries behind those that its disk held when it started: what is applied again was counted
//! before. What a snapshot brings is not counted. Decides nothing.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use kiln_core::{Copied, Effect, Farm, InputBytes, Spent};
use kiln_wire::client::{Event, EventKind};
use kiln_wire::{FailureClass, LogIndex};

/// Counts of one process.
#[derive(Debug, Default)]
pub struct Tally {
    /// The last entry that the disk held when the process started.
    after: LogIndex,
    counted: Mutex<Counted>,
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Attempts that built their job.
    pub built: u64,
    /// Attempts that failed, by class.
    pub failed: BTreeMap<FailureClass, u64>,
    /// Second attempts that began.
    pub copies_begun: u64,
    /// Those of them that made their job's outputs first.
    pub copies_won: u64,
    /// Attempts that were outrun and had made the same outputs.
    pub copies_same: u64,
    /// Attempts that were outrun and had made other outputs.
    pub copies_differing: u64,
    /// From when jobs could begin to when they did, by the platform that they need.
    pub waits: BTreeMap<String, Durations>,
    /// From the beginning of attempts to their end, by the platform that their jobs need.
    pub runs: BTreeMap<String, Durations>,
    /// Bytes of inputs of attempts that began.
    pub inputs: InputBytes,
}

/// How long things took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// Their sum in milliseconds.
    pub sum_ms: u64,
    /// How many in each bucket of [`BOUNDS_MS`], and beyond the last.
    pub buckets: [u64; BOUNDS_MS.len() + 1],
}

/// Upper bounds of the buckets in milliseconds: from a job that only writes a file to a day of a browser's build on a small machine.
pub const BOUNDS_MS: [u64; 13] =
    [100, 300, 1_000, 3_000, 10_000, 30_000, 60_000, 180_000, 600_000, 1_800_000, 3_600_000, 10_800_000, 86_400_000];

impl Durations {
    fn add(&mut self, ms: u64) {
        self.sum_ms = self.sum_ms.saturating_add(ms);
        self.buckets[BOUNDS_MS.partition_point(|bound| *bound < ms)] += 1;
    }
}

impl Tally {
    /// Counts what comes after an entry.
    pub fn after(after: LogIndex) -> Self {
        Self { after, counted: Mutex::default() }
    }

    /// Takes in what an applied entry did; `farm` is as it is behind that.
    pub fn note(&self, index: LogIndex, effects: &[Effect], farm: &Farm) {
        if index <= self.after {
            return;
        }
        for effect in effects {
            match effect {
                Effect::Notify { event, .. } => self.with(|counted| counted.event(event, farm)),
                Effect::Copied { copied, .. } => self.with(|counted| counted.copied(*copied)),
                Effect::Welcome { .. }
                | Effect::Dispatch { .. }
                | Effect::Revoke(_)
                | Effect::Acknowledge { .. }
                | Effect::Publish { .. }
                | Effect::Resolve { .. }
                | Effect::Judged { .. }
                | Effect::Archive(_)
                | Effect::Answer(_) => {}
            }
        }
    }

    /// Returns what was counted.
    pub fn read(&self) -> Counted {
        self.with(|counted| counted.clone())
    }

    fn with<R>(&self, act: impl FnOnce(&mut Counted) -> R) -> R {
        act(&mut self.counted.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Counted {
    fn event(&mut self, Event { at, derivation, kind }: &Event, farm: &Farm) {
        match kind {
            EventKind::Started { attempt, worker } => {
                if let Some(waited) = farm.waited(derivation, *attempt) {
                    add(&mut self.waits, waited);
                }
                let InputBytes { had, lacked } = farm.input_bytes(derivation, worker);
                self.inputs.had = self.inputs.had.saturating_add(had);
                self.inputs.lacked = self.inputs.lacked.saturating_add(lacked);
            }
            // What exists already, as a resolved derivation may, has no attempt.
            EventKind::Built { .. } => {
                if let Some(ran) = farm.ran(derivation, *at) {
                    self.built += 1;
                    add(&mut self.runs, ran);
                }
            }
            EventKind::Retried { class, .. } | EventKind::Failed { class, .. } => {
                // A job may fail without any: one that nothing could run, or whose derivation cannot be resolved.
                if let Some(ran) = farm.ran(derivation, *at) {
                    *self.failed.entry(*class).or_default() += 1;
                    add(&mut self.runs, ran);
                }
            }
            EventKind::Ready | EventKind::DependencyFailed { .. } | EventKind::Cancelled => {}
        }
    }

    fn copied(&mut self, copied: Copied) {
        match copied {
            Copied::Begun { .. } => self.copies_begun += 1,
            Copied::Won { by_copy, .. } => self.copies_won += u64::from(by_copy),
            Copied::Same(_) => self.copies_same += 1,
            Copied::Differs(_) => self.copies_differing += 1,
        }
    }
}

/// Adds a duration to those of its system. Only what runs has one, so that workers alone say which systems there are; a number of them
/// that no farm has is bounded all the same.
fn add(by_system: &mut BTreeMap<String, Durations>, Spent { system, ms }: Spent<'_>) {
    let system = if by_system.len() < SYSTEMS_MAX || by_system.contains_key(system) { system } else { OTHER };
    match by_system.get_mut(system) {
        Some(durations) => durations.add(ms),
        None => by_system.entry(system.to_owned()).or_default().add(ms),
    }
}

/// What is counted of systems beyond [`SYSTEMS_MAX`].
pub const OTHER: &str = "other";
/// Systems that are told apart. Each has two histograms.
const SYSTEMS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use kiln_core::{Command, Placement};
    use kiln_wire::worker::Offer;
    use kiln_wire::{
        AttemptId, DrvPath, Epoch, Failure, JobKind, JobSpec, Order, Outcome, RequestId, Resources, Subject, Timestamp, Usage, WorkerId,
    };

    use super::*;

    fn drv() -> DrvPath {
        DrvPath::parse("00000000000000000000000000000000-a.drv").expect("a path")
    }

    /// A farm in which a job waits for 400 ms, and fails for the farm's reasons after another 2,000: its entries, in order.
    fn entries() -> Vec<Command> {
        let worker = WorkerId::parse("w1").expect("a name");
        let offer = Offer { systems: ["x86_64-linux".to_owned()].into(), slots: 1, ..Offer::default() };
        let spec = JobSpec {
            derivation: drv(),
            system: "x86_64-linux".to_owned(),
            required_features: Default::default(),
            outputs: Default::default(),
            inputs: Default::default(),
            kind: JobKind::Ordinary,
            prefer_local: false,
            resources: Resources::default(),
            limits: Default::default(),
            resolve: false,
        };
        let (request, now) = (RequestId(1), Timestamp(100));
        let placement =
            Placement { derivation: drv(), worker: worker.clone(), epoch: Epoch(1), resources: None, light: false, after: None };
        vec![
            Command::Register { worker, offer, attempts: Vec::new(), since: None, judge: false, now },
            Command::Stage { request, jobs: vec![spec], now },
            Command::Submit { request, name: String::new(), roots: Vec::new(), keep_going: true, asker: None, now },
            Command::Assign { placements: vec![placement], now: Timestamp(500) },
        ]
    }

    fn run(tally: &Tally) {
        let (mut farm, mut index) = (Farm::new(), 0);
        let mut apply = |farm: &mut Farm, command: Command| {
            index += 1;
            let effects = farm.apply(LogIndex(index), command);
            tally.note(LogIndex(index), &effects, farm);
        };
        entries().into_iter().for_each(|command| apply(&mut farm, command));
        let lease = farm.live_lease(&drv()).expect("it runs");
        let failure = Failure { class: FailureClass::Infrastructure, message: "no".to_owned() };
        let outcome = Outcome::Failed { failure, usage: Usage::default() };
        apply(&mut farm, Command::Finish { lease, outcome, learn: false, judge: false, now: Timestamp(2_500) });
    }

    fn of(durations: &BTreeMap<String, Durations>) -> Vec<(&str, u64, u64)> {
        durations.iter().map(|(system, of)| (system.as_str(), of.sum_ms, of.buckets.iter().sum())).collect()
    }

    #[test]
    fn what_is_applied_is_counted_and_what_is_applied_again_is_not() {
        let tally = Tally::default();
        run(&tally);
        let counted = tally.read();
        assert_eq!(counted.failed, BTreeMap::from([(FailureClass::Infrastructure, 1)]));
        assert_eq!((of(&counted.waits), of(&counted.runs)), (vec![("x86_64-linux", 400, 1)], vec![("x86_64-linux", 2_000, 1)]));
        // The process ends, and the next one finds the first four entries on its disk.
        let restarted = Tally::after(LogIndex(4));
        run(&restarted);
        let counted = restarted.read();
        assert_eq!((of(&counted.waits), of(&counted.runs)), (Vec::new(), vec![("x86_64-linux", 2_000, 1)]), "the start was counted before");
    }

    #[test]
    fn a_job_that_is_stopped_before_it_began_is_no_attempt() {
        let (tally, mut farm) = (Tally::default(), Farm::new());
        let stop = Command::Steer { subject: Subject::Job(drv()), order: Order::Cancel, by: String::new(), now: Timestamp(700) };
        let waits = entries().into_iter().filter(|command| !matches!(command, Command::Assign { .. }));
        for (index, command) in (1..).zip(waits.chain([stop])) {
            let effects = farm.apply(LogIndex(index), command);
            tally.note(LogIndex(index), &effects, &farm);
        }
        assert_eq!(farm.counts().failed, 1);
        assert_eq!(tally.read(), Counted::default());
    }

    #[test]
    fn second_attempts_are_counted_by_what_becomes_of_them() {
        let tally = Tally::default();
        let [one, other] = [AttemptId(1), AttemptId(2)];
        let told = [
            Copied::Begun { attempt: other, of: one },
            Copied::Won { attempt: one, by_copy: false },
            Copied::Won { attempt: other, by_copy: true },
            Copied::Same(one),
            Copied::Differs(one),
            Copied::Differs(other),
        ];
        let effects: Vec<Effect> = told.into_iter().map(|copied| Effect::Copied { derivation: drv(), copied }).collect();
        tally.note(LogIndex(1), &effects, &Farm::new());
        let counted = tally.read();
        let copies = (counted.copies_begun, counted.copies_won, counted.copies_same, counted.copies_differing);
        assert_eq!(copies, (1, 1, 1, 2));
    }

    #[test]
    fn a_duration_counts_in_the_first_bucket_that_holds_it() {
        let mut durations = Durations::default();
        for ms in [100, 101, 90_000_000] {
            durations.add(ms);
        }
        assert_eq!((durations.buckets[0], durations.buckets[1], durations.buckets[BOUNDS_MS.len()]), (1, 1, 1));
    }

    #[test]
    fn systems_beyond_a_number_are_counted_together() {
        let mut by_system = BTreeMap::new();
        for number in 0..SYSTEMS_MAX + 5 {
            add(&mut by_system, Spent { system: &format!("system-{number}"), ms: 1 });
        }
        add(&mut by_system, Spent { system: "system-0", ms: 1 });
        assert_eq!((by_system.len(), by_system[OTHER].sum_ms, by_system["system-0"].sum_ms), (SYSTEMS_MAX + 1, 5, 2));
    }
}
