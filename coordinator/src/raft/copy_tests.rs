//! The golden payloads of second attempts, for ever: the command in a log record, and a farm in a snapshot whose job runs in two places and
//! has failed in one of two.

use std::collections::BTreeSet;

use kiln_core::{Command, Farm, Placement};
use kiln_wire::worker::Offer;
use kiln_wire::{
    AttemptId, DrvPath, Epoch, Failure, FailureClass, JobKind, JobLimits, JobSpec, Lease, LogIndex, Outcome, OutputName, RequestId,
    Resources, StorePath, Timestamp, Usage, WorkerId,
};
use openraft::EntryPayload;

use super::record::Record;
use super::storage_tests::{check_golden, log_id};
use super::types::{Change, Entry};

const NOW: Timestamp = Timestamp(9);

fn placement(name: &str, worker: &str, epoch: u64) -> Placement {
    let (derivation, worker) = (derivation(name), WorkerId::parse(worker).expect("a name"));
    Placement { derivation, worker, epoch: Epoch(epoch), resources: None, light: false, after: None }
}

fn derivation(name: &str) -> DrvPath {
    DrvPath::parse(&format!("0hm2f1psjpcwg8fijsmr4wwxrx59s092-{name}.drv")).expect("a path")
}

fn spec(name: &str) -> JobSpec {
    let path = StorePath::parse(&format!("1hm2f1psjpcwg8fijsmr4wwxrx59s092-{name}")).expect("a path");
    JobSpec {
        derivation: derivation(name),
        system: "x86_64-linux".into(),
        required_features: BTreeSet::new(),
        outputs: [(OutputName::parse("out").expect("a name"), Some(path))].into(),
        inputs: Vec::new(),
        kind: JobKind::Ordinary,
        prefer_local: false,
        resources: Resources { cores: 1, memory_mib: 5 },
        limits: JobLimits::default(),
        resolve: false,
    }
}

#[test]
fn a_second_attempt_stays_readable() {
    let resources = Some(Resources { cores: 3, memory_mib: 70 });
    let after = Placement { resources, after: Some(AttemptId(4)), ..placement("bar", "w2", 6) };
    for (what, placement) in [("-copy", placement("bar", "w2", 6)), ("-copy-after", after)] {
        let command = Command::Copy { of: AttemptId(5), placement, now: NOW };
        let entry = Entry { log_id: log_id(2, 8), payload: EntryPayload::Normal(Change::Command(command)) };
        check_golden(&Record::Entry(entry), 7, what);
    }
}

/// A farm with a job that runs in two places, and one of which one of two attempts has failed.
fn farm() -> Farm {
    let mut farm = Farm::new();
    let mut index = 0;
    let mut apply = |command| {
        index += 1;
        farm.apply(LogIndex(index), command);
    };
    let capacity = Resources { cores: 8, memory_mib: 800 };
    let offer = Offer { systems: ["x86_64-linux".to_owned()].into(), capacity, slots: 60, ..Offer::default() };
    for name in ["w1", "w2"] {
        let worker = WorkerId::parse(name).expect("a name");
        apply(Command::Register { worker, offer: offer.clone(), attempts: Vec::new(), since: None, judge: false, now: NOW });
    }
    let request = RequestId(7);
    apply(Command::Stage { request, jobs: vec![spec("foo"), spec("bar")], now: NOW });
    apply(Command::Submit { request, name: "two".into(), roots: Vec::new(), keep_going: true, asker: None, now: NOW });
    for name in ["foo", "bar"] {
        apply(Command::Assign { placements: vec![placement(name, "w1", 1)], now: NOW });
    }
    apply(Command::Copy { of: AttemptId(5), placement: placement("foo", "w2", 2), now: NOW });
    apply(Command::Copy { of: AttemptId(6), placement: placement("bar", "w2", 2), now: NOW });
    let lease =
        Lease { derivation: derivation("bar"), attempt: AttemptId(8), worker: WorkerId::parse("w2").expect("a name"), epoch: Epoch(2) };
    let usage = Usage { memory_peak_bytes: 3 << 20, ..Usage::default() };
    let failure = Failure { class: FailureClass::OutOfMemory, message: "killed".into() };
    apply(Command::Finish { lease, outcome: Outcome::Failed { failure, usage }, learn: false, judge: false, now: NOW });
    farm
}

#[test]
fn a_snapshot_keeps_both_attempts_and_what_one_of_two_failed_of() {
    let farm = farm();
    assert_eq!(farm.live_leases(&derivation("foo")).len(), 2, "it runs in two places");
    let hex: String = farm.to_snapshot().iter().map(|byte| format!("{byte:02x}")).collect();
    let path = format!("{}/tests/raft/snapshot-copies.hex", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, format!("{hex}\n")).expect("writes");
    }
    let golden = std::fs::read_to_string(path).expect("the golden file");
    assert_eq!(golden.trim(), hex);
    assert_eq!(Farm::from_snapshot(&farm.to_snapshot()).expect("it can be read"), farm);
}
