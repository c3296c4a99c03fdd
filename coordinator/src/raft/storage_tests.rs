//! openraft's own suite against our storage, a comparison with a plain model, and the golden payloads.

use std::collections::BTreeMap;
use std::path::Path;

use kiln_core::{Command, Placement, Resolution, ResolvedInput};
use kiln_wire::{
    AttemptId, Blake3Hash, Blob, BuildId, BuiltOutput, DrvPath, Epoch, Evaluation, Failure, FailureClass, Lease, Measured, Outcome,
    OutputName, PathInfo, RequestId, Resources, Sha256Hash, StorePath, Timestamp, Usage, Version, WorkerId,
};
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, RaftLogReader, StorageError};
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::log_state::Found;
use super::log_store::LogStore;
use super::member::{DirectoryId, Member};
use super::record::{Record, VERSION, VERSION_FIRST};
use super::snapshot::{Snapshot, SnapshotDir};
use super::state_machine::{Led, StateMachine};
use super::types::{Change, Entry, LeaderId, LogId, Membership, TypeConfig, Vote};
use super::version::this_program;
use super::wal::{Kind, NewRecord, Stored, Wal, WalError};

const SEGMENT_BYTES: u64 = 2048;

struct Stores;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Stores {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = TempDir::new().expect("a directory");
        let log = open(&dir.path().join("log"));
        let snapshots = SnapshotDir::open(dir.path().join("snapshot")).expect("a directory");
        let led = Led { node: 0, after_term: 0, after_index: 0 };
        let machine = StateMachine::new(Snapshot::default(), snapshots, led, this_program(), mpsc::unbounded_channel().0);
        Ok((dir, log, machine))
    }
}

fn open(dir: &Path) -> LogStore {
    LogStore::open(dir, SEGMENT_BYTES, u64::MAX).expect("opens")
}

#[tokio::test]
async fn the_storage_passes_openrafts_suite() {
    Suite::test_all(Stores).await.expect("the suite passes");
}

pub(super) fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: 1 }, index }
}

fn entry(term: u64, index: u64) -> Entry {
    let command = Command::Cancel { build: BuildId(index * 31), now: Timestamp(term) };
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(Change::Command(command)) }
}

#[derive(Clone, Debug)]
enum Step {
    Append(u64),
    Truncate(u64),
    Purge(u64),
    Vote,
    Commit,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1..20u64).prop_map(Step::Append),
        2 => (0..30u64).prop_map(Step::Truncate),
        2 => (0..30u64).prop_map(Step::Purge),
        1 => Just(Step::Vote),
        2 => Just(Step::Commit),
        2 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..40)
}

/// What a log must hold, as plainly as it can be said.
#[derive(Debug, Default, PartialEq)]
struct Model {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: Vec<Entry>,
}

impl Model {
    fn of(log: &LogStore) -> Self {
        let (vote, committed, purged, found) = {
            let state = log.state();
            (state.vote(), state.committed(), state.purged(), state.entries(..))
        };
        Self { vote, committed, purged, entries: log.read_back(found).expect("reads") }
    }

    fn next(&self) -> u64 {
        self.entries.last().map(|last| last.log_id).or(self.purged).map_or(0, |last| last.index + 1)
    }
}

/// Does one step to both and returns whether the log waited for its disk. Positions count back from the end, so that most hit an
/// entry.
async fn step(log: &mut LogStore, model: &mut Model, term: u64, step: &Step) -> bool {
    let back = |count: u64| model.entries.len().checked_sub(1 + usize::try_from(count).expect("small"));
    match step {
        Step::Append(count) => {
            let new: Vec<Entry> = (model.next()..model.next() + count).map(|index| entry(term, index)).collect();
            log.blocking_append(new.clone()).await.expect("appends");
            model.entries.extend(new);
        }
        Step::Truncate(count) => {
            let Some(last) = back(*count) else { return false };
            log.truncate_after(Some(model.entries[last].log_id)).await.expect("truncates");
            model.entries.truncate(last + 1);
        }
        Step::Purge(count) => {
            let Some(last) = back(*count) else { return false };
            let upto = model.entries[last].log_id;
            log.purge(upto).await.expect("purges");
            model.purged = Some(upto);
            model.entries.drain(..=last);
        }
        Step::Vote => {
            let vote = Vote::new_committed(term, 1);
            log.save_vote(&vote).await.expect("saves");
            model.vote = Some(vote);
        }
        Step::Commit => {
            let last = model.entries.last().map(|last| last.log_id);
            log.save_committed(last).await.expect("saves");
            model.committed = last;
            return false;
        }
        Step::Reopen => return false,
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_log_holds_what_a_list_would_hold(steps in steps(), held_bytes in prop_oneof![Just(u64::MAX), 0..1500u64]) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let dir = TempDir::new().expect("a directory");
        let (mut log, mut model) = (open(dir.path()), Model::default());
        log.state().hold_at_most(held_bytes);
        for (term, next) in (1..).zip(&steps) {
            let waited = runtime.block_on(step(&mut log, &mut model, term, next));
            prop_assert_eq!(&Model::of(&log), &model);
            if waited {
                // The image that a crash would leave at this point; the log still has it open.
                prop_assert_eq!(&Model::of(&open(image(dir.path()).path())), &model);
            }
            if matches!(next, Step::Reopen) {
                drop(log);
                log = open(dir.path());
                log.state().hold_at_most(held_bytes);
                prop_assert_eq!(&Model::of(&log), &model);
            }
        }
    }
}

fn image(dir: &Path) -> TempDir {
    let image = TempDir::new().expect("a directory");
    for file in std::fs::read_dir(dir).expect("lists") {
        let file = file.expect("lists").path();
        if file.extension().is_some_and(|ending| ending == "wal") {
            std::fs::copy(&file, image.path().join(file.file_name().expect("a file"))).expect("copies");
        }
    }
    image
}

#[tokio::test]
async fn a_missing_oldest_segment_is_refused() {
    let dir = TempDir::new().expect("a directory");
    let mut log = open(dir.path());
    log.blocking_append((0..100).map(|index| entry(1, index)).collect::<Vec<_>>()).await.expect("appends");
    drop(log);
    std::fs::remove_file(dir.path().join("0000000000000001.wal")).expect("removes");
    let err = LogStore::open(dir.path(), SEGMENT_BYTES, u64::MAX).expect_err("entries are missing").to_string();
    assert!(err.contains("log entries 0 to ") && err.contains("are missing"), "{err}");
}

#[tokio::test]
async fn the_purge_point_keeps_entries_and_bytes_within_bounds() {
    let dir = TempDir::new().expect("a directory");
    let mut log = open(dir.path());
    log.blocking_append((0..100).map(|index| entry(1, index)).collect::<Vec<_>>()).await.expect("appends");
    assert_eq!(log.state().purge_point(90, 20, u64::MAX), Some(79));
    assert_eq!(log.state().purge_point(50, 20, u64::MAX), Some(50));
    assert_eq!(log.state().purge_point(90, 1000, 1), Some(90));
    assert_eq!(log.state().purge_point(90, 1000, u64::MAX), None);
    assert_eq!(log.try_get_log_entries(98..200).await.expect("reads").len(), 2);
}

#[tokio::test]
async fn a_message_to_a_follower_holds_what_fits_and_at_least_one_entry() {
    let dir = TempDir::new().expect("a directory");
    let mut log = open(dir.path());
    log.blocking_append((0..100).map(|index| entry(1, index)).collect::<Vec<_>>()).await.expect("appends");
    let index = |found: &Found| match found {
        Found::Here(entry) => entry.log_id.index,
        Found::There(id) => id.index,
    };
    let indexes = |bytes_max| -> Vec<u64> { log.state().entries_within(10..20, bytes_max).iter().map(index).collect() };
    assert_eq!(indexes(u64::MAX), (10..20).collect::<Vec<_>>());
    assert_eq!(indexes(0), [10], "the very first, whatever its size");
    let some = indexes(250);
    assert!((2..10).contains(&some.len()) && some.starts_with(&[10, 11]), "{some:?}");
}

#[tokio::test]
async fn old_entries_are_read_back_and_no_more_are_held_than_may_be() {
    let dir = TempDir::new().expect("a directory");
    let mut log = open(dir.path());
    log.state().hold_at_most(500);
    let written: Vec<Entry> = (0..200).map(|index| entry(1, index)).collect();
    log.blocking_append(written.clone()).await.expect("appends");
    assert!((1..20).contains(&log.state().held()), "{} are held", log.state().held());
    assert_eq!(log.try_get_log_entries(0..200).await.expect("reads"), written);
    // Others in their place are other entries, though older records of these indexes are in the files.
    log.truncate_after(Some(log_id(1, 49))).await.expect("truncates");
    let others: Vec<Entry> = (50..120).map(|index| entry(2, index)).collect();
    log.blocking_append(others.clone()).await.expect("appends");
    assert_eq!(log.try_get_log_entries(40..500).await.expect("reads"), [&written[40..50], &others[..]].concat());
    log.purge(log_id(2, 99)).await.expect("purges");
    assert_eq!(log.try_get_log_entries(0..500).await.expect("reads"), others[50..]);
    drop(log);
    let mut log = open(dir.path());
    log.state().hold_at_most(0);
    assert_eq!(log.try_get_log_entries(0..500).await.expect("reads"), others[50..]);
    log.blocking_append([entry(3, 120)]).await.expect("appends");
    assert_eq!(log.state().held(), 0);
    assert_eq!(log.try_get_log_entries(119..121).await.expect("reads"), [others[69].clone(), entry(3, 120)]);
}

#[tokio::test]
async fn what_is_cut_off_or_purged_while_it_is_read_back_is_left_out() {
    let dir = TempDir::new().expect("a directory");
    let mut log = open(dir.path());
    log.state().hold_at_most(0);
    let written: Vec<Entry> = (0..20).map(|index| entry(1, index)).collect();
    log.blocking_append(written.clone()).await.expect("appends");
    let found = log.state().entries(0..20);
    log.truncate_after(Some(log_id(1, 9))).await.expect("truncates");
    log.blocking_append((10..20).map(|index| entry(2, index))).await.expect("appends");
    assert_eq!(log.read_back(found).expect("no damage"), written[..10], "what another leader wrote is none of these");
    let found = log.state().entries(0..10);
    log.purge(log_id(1, 4)).await.expect("purges");
    assert_eq!(log.read_back(found).expect("no damage"), written[5..10]);
}

/// Version 2 for ever: `UPDATE_GOLDEN=1` writes the file anew, which only a new version may need.
#[test]
fn the_payloads_of_version_2_stay_readable() {
    let member = Member { link: "c1.example:7420".into(), http: "c1.example:7480".into(), directory: DirectoryId(9) };
    let alone = Membership::new(vec![[1].into()], BTreeMap::from([(1, member)])).expect("a group");
    let records = [
        Record::Entry(Entry { log_id: log_id(2, 3), payload: EntryPayload::Blank }),
        Record::Entry(Entry { log_id: log_id(2, 4), payload: EntryPayload::Membership(alone) }),
        Record::Entry(entry(2, 5)),
        Record::Vote(Vote::new_committed(2, 1)),
        Record::Truncate(None),
        Record::Truncate(Some(log_id(2, 4))),
        Record::Purge(log_id(2, 4)),
        Record::Committed(Some(log_id(2, 5))),
    ];
    let mut text = String::new();
    for record in &records {
        let new = record.encode().expect("encodes");
        assert_eq!(new.version, VERSION_FIRST, "a coordinator of a farm at version 1 can read it: {record:?}");
        let hex: String = new.payload.iter().map(|byte| format!("{byte:02x}")).collect();
        text += &format!("{:?} {} {hex}\n", new.kind, new.index);
        let stored = Stored { kind: new.kind, index: new.index, version: VERSION_FIRST, payload: &new.payload };
        assert_eq!(format!("{:?}", Record::decode(stored).expect("decodes")), format!("{record:?}"));
        assert!(Record::decode(Stored { version: VERSION + 1, ..stored }).is_err());
        assert!(Record::decode(Stored { index: new.index + 1, ..stored }).is_err());
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/raft/payloads-v2.hex");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &text).expect("writes");
    }
    assert_eq!(text, std::fs::read_to_string(path).expect("the golden file"));
}

/// A log from before members had more than an address; the file is never written again.
#[test]
fn the_payloads_of_version_1_stay_readable() {
    let member = Member { link: "localhost".into(), ..Member::default() };
    let alone = Membership::new(vec![[1].into()], BTreeMap::from([(1, member)])).expect("a group");
    let wanted = [
        Record::Entry(Entry { log_id: log_id(2, 3), payload: EntryPayload::Blank }),
        Record::Entry(Entry { log_id: log_id(2, 4), payload: EntryPayload::Membership(alone) }),
        Record::Entry(entry(2, 5)),
        Record::Vote(Vote::new_committed(2, 1)),
        Record::Truncate(None),
        Record::Truncate(Some(log_id(2, 4))),
        Record::Purge(log_id(2, 4)),
        Record::Committed(Some(log_id(2, 5))),
    ];
    let lines = include_str!("../../tests/raft/payloads-v1.hex").lines();
    assert_eq!(lines.clone().count(), wanted.len());
    for (line, wanted) in lines.zip(wanted) {
        let hex = line.rsplit(' ').next().expect("a payload");
        let payload: Vec<u8> = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal")).collect();
        let new = wanted.encode().expect("encodes");
        let stored = Stored { kind: new.kind, index: new.index, version: 1, payload: &payload };
        assert_eq!(format!("{:?}", Record::decode(stored).expect("decodes")), format!("{wanted:?}"));
    }
}

/// Checks what a record has been since some version, for ever.
pub(super) fn check_golden(record: &Record, version: u8, what: &str) {
    let new = record.encode().expect("encodes");
    assert_eq!(new.version, version, "no coordinator of an older version may take it for something else");
    let hex: String = new.payload.iter().map(|byte| format!("{byte:02x}")).collect();
    let text = format!("{:?} {} {hex}\n", new.kind, new.index);
    let stored = Stored { kind: new.kind, index: new.index, version, payload: &new.payload };
    assert_eq!(format!("{:?}", Record::decode(stored).expect("decodes")), format!("{record:?}"));
    let path = format!("{}/tests/raft/payloads-v{version}{what}.hex", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).expect("writes");
    }
    assert_eq!(text, std::fs::read_to_string(path).expect("the golden file"));
}

/// Versions 3 to 7 for ever: what the version before each lacks.
#[test]
fn the_payloads_of_versions_3_to_7_stay_readable() {
    for (version, to) in [(3, Version(2)), (4, Version(3)), (5, Version(4)), (6, Version(5)), (7, Version(6))] {
        check_golden(&Record::Entry(Entry { log_id: log_id(2, 6), payload: EntryPayload::Normal(Change::Raise(to)) }), version, "");
    }
}

/// What a derivation comes to that needed outputs whose paths only builds tell, each of the three.
#[test]
fn resolutions_stay_readable() {
    let hash = "0hm2f1psjpcwg8fijsmr4wwxrx59s092";
    let path = |name: &str| StorePath::parse(&format!("{hash}-{name}")).expect("a path");
    let drv = |name: &str| DrvPath::from_path(path(&format!("{name}.drv"))).expect("a path");
    let out = OutputName::parse("out").expect("a name");
    let blob = Blob { size_bytes: 5, blake3: Blake3Hash([1; 32]), sha256: Sha256Hash([2; 32]) };
    let info = PathInfo {
        path: path("b"),
        nar_hash: Sha256Hash([3; 32]),
        nar_size_bytes: 6,
        references: [path("a")].into(),
        deriver: None,
        content_address: None,
        blob,
    };
    let exists = vec![BuiltOutput { name: out.clone(), info }];
    for (what, to) in [
        ("-build", Resolution::Build { derivation: drv("r"), outputs: [(out.clone(), path("b"))].into() }),
        ("-exists", Resolution::Exists { derivation: drv("r"), outputs: exists }),
        ("-impossible", Resolution::Impossible { message: "why".into() }),
    ] {
        let inputs = vec![ResolvedInput { derivation: drv("a"), output: out.clone(), path: path("a") }];
        let command = Command::Resolve { derivation: drv("b"), inputs, to, now: Timestamp(9) };
        let entry = Entry { log_id: log_id(2, 6), payload: EntryPayload::Normal(Change::Command(command)) };
        check_golden(&Record::Entry(entry), 4, what);
    }
}

/// What version 4 of a farm brought, for ever: a job turns out to need what its inputs made.
#[test]
fn a_growth_stays_readable() {
    let drv = |name: &str| DrvPath::parse(&format!("0hm2f1psjpcwg8fijsmr4wwxrx59s092-{name}.drv")).expect("a path");
    let to = Resolution::Grow { request: RequestId(7), needs: vec![drv("made"), drv("other")] };
    let path = StorePath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-made.drv").expect("a path");
    let inputs = vec![ResolvedInput { derivation: drv("a"), output: OutputName::parse("out").expect("a name"), path }];
    let command = Command::Resolve { derivation: drv("b"), inputs, to, now: Timestamp(9) };
    let entry = Entry { log_id: log_id(2, 8), payload: EntryPayload::Normal(Change::Command(command)) };
    check_golden(&Record::Entry(entry), 5, "-grow");
}

/// What version 4 of a farm brought to learn from, for ever: a report that counts, what was measured elsewhere, and a lease of another size.
#[test]
fn what_a_farm_learns_from_stays_readable() {
    let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar-1.2.drv").expect("a path");
    let (worker, epoch, now) = (WorkerId::parse("w1").expect("a name"), Epoch(4), Timestamp(9));
    let lease = Lease { derivation: derivation.clone(), attempt: AttemptId(5), worker: worker.clone(), epoch };
    let usage = Usage { wall_ms: 7, cpu_ms: 6, memory_peak_bytes: 5, log_bytes: 4, cpu_throttled_ms: Some(3), disk_write_bytes: None };
    let failure = Failure { class: FailureClass::OutOfMemory, message: "no".into() };
    let measured = Measured {
        pname: "bar".into(),
        version: Some("1.2".into()),
        system: "x86_64-linux".into(),
        wall_ms: 70,
        cpu_ms: Some(60),
        peak_memory_mib: Some(50),
        output_bytes: Some(40),
        fetch: true,
        count: Some(3),
        derivation: Some(derivation.clone()),
    };
    let resources = Some(Resources { cores: 2, memory_mib: 3 });
    let placement = Placement { derivation, worker, epoch, resources, light: true, after: None };
    for (what, command) in [
        ("-learn", Command::Finish { lease, outcome: Outcome::Failed { failure, usage }, learn: true, judge: false, now }),
        ("-durations", Command::ImportDurations { durations: vec![measured], now }),
        ("-placement", Command::Assign { placements: vec![placement], now }),
    ] {
        let entry = Entry { log_id: log_id(2, 8), payload: EntryPayload::Normal(Change::Command(command)) };
        check_golden(&Record::Entry(entry), 5, what);
    }
}

/// What version 6 of a farm brought, for ever: names of what was evaluated, and who is told by webhook.
#[test]
fn what_is_said_of_evaluations_and_to_receivers_stays_readable() {
    let evaluation = Evaluation {
        attributes: [(0, vec!["pkgs.bar".to_owned()])].into(),
        errors: [("pkgs.baz".to_owned(), "error: no".to_owned())].into(),
        errors_more: 2,
        unbuilt: vec![0],
        ..Evaluation::default()
    };
    for (what, command) in [
        ("-describe", Command::Describe { request: RequestId(7), evaluation, now: Timestamp(9) }),
        ("-announce", Command::Announce { receivers: vec!["chat".to_owned()], now: Timestamp(9) }),
        ("-told", Command::Told { receiver: "chat".to_owned(), upto: 4, now: Timestamp(9) }),
    ] {
        let entry = Entry { log_id: log_id(2, 8), payload: EntryPayload::Normal(Change::Command(command)) };
        check_golden(&Record::Entry(entry), 7, what);
    }
}

/// What version 5 of a farm brought, for ever: workers are judged.
#[test]
fn judgements_stay_readable() {
    let (worker, now) = (WorkerId::parse("w1").expect("a name"), Timestamp(9));
    for (what, command) in [
        ("-lose", Command::Lose { worker: worker.clone(), epoch: Epoch(3), judge: true, now }),
        ("-rouse", Command::Rouse { worker: worker.clone(), now }),
        ("-drain", Command::Drain { worker, drain: true, now }),
    ] {
        let entry = Entry { log_id: log_id(2, 8), payload: EntryPayload::Normal(Change::Command(command)) };
        check_golden(&Record::Entry(entry), 6, what);
    }
}

/// What version 5 of a farm brought, for ever: a job takes the place of an attempt that only uploads.
#[test]
fn a_succession_stays_readable() {
    let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar-1.2.drv").expect("a path");
    let (worker, after) = (WorkerId::parse("w1").expect("a name"), Some(AttemptId(5)));
    let placement = Placement { derivation, worker, epoch: Epoch(4), resources: None, light: false, after };
    let command = Command::Assign { placements: vec![placement], now: Timestamp(9) };
    let entry = Entry { log_id: log_id(2, 8), payload: EntryPayload::Normal(Change::Command(command)) };
    check_golden(&Record::Entry(entry), 6, "-after");
}

/// A command that version 3 of a farm brought, for ever.
#[test]
fn a_check_stays_readable() {
    let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path");
    let check = Command::Check { request: RequestId(7), derivations: vec![derivation], now: Timestamp(9) };
    let entry = Entry { log_id: log_id(2, 7), payload: EntryPayload::Normal(Change::Command(check)) };
    let new = Record::Entry(entry.clone()).encode().expect("encodes");
    assert_eq!(new.version, 4, "a program without it must not read on");
    let hex: String = new.payload.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = format!("{}/tests/raft/payload-check.hex", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &hex).expect("writes");
    }
    assert_eq!(hex, std::fs::read_to_string(path).expect("the golden file"));
    let stored = Stored { kind: new.kind, index: new.index, version: new.version, payload: &new.payload };
    assert_eq!(format!("{:?}", Record::decode(stored).expect("decodes")), format!("{:?}", Record::Entry(entry)));
}

/// Writes a log of one entry as somebody else might, and returns why it cannot be opened.
fn refusal(version: u8, payload: &[u8]) -> WalError {
    let dir = TempDir::new().expect("a directory");
    let wal = Wal::open(dir.path(), SEGMENT_BYTES, |_| Ok(())).expect("opens");
    let (done, written) = std::sync::mpsc::channel();
    let record = NewRecord { kind: Kind::Entry, index: 0, version, payload: payload.to_owned() };
    wal.append(vec![record], Box::new(move |result| done.send(result.is_ok()).expect("somebody waits")));
    assert!(written.recv().expect("answers"));
    drop(wal);
    LogStore::open(dir.path(), SEGMENT_BYTES, u64::MAX).map(drop).expect_err("nobody may skip it")
}

#[test]
fn a_log_that_holds_what_this_program_does_not_know_is_refused_and_never_skipped() {
    let blank = Record::Entry(Entry { log_id: log_id(2, 0), payload: EntryPayload::Blank }).encode().expect("encodes").payload;
    let newer = refusal(VERSION + 1, &blank);
    assert!(matches!(newer, WalError::Newer { .. }) && newer.to_string().contains("install the program that wrote it"), "{newer}");
    let place = b"Blank";
    let at = blank.windows(place.len()).position(|window| window == place).expect("its name");
    let mut other = blank;
    other[at..at + place.len()].copy_from_slice(b"Blonk");
    let unknown = refusal(VERSION, &other).to_string();
    assert!(unknown.contains("unknown variant `Blonk`"), "{unknown}");
}
