//! Damage of every kind that a disk, a crash or a person can do to a log, and what recovery makes of it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use tempfile::TempDir;

use super::layout::{BLOCK_BYTES, Found, Header, RECORDS_AT, RecordHead, decode_record, encode_record, encode_seal};
use super::{Kind, NewRecord, Wal, WalError};

const SEGMENT_BYTES: u64 = 4096;

type Read = Vec<(Kind, u64, Vec<u8>)>;

fn entry(index: u64) -> NewRecord {
    let payload = (0..40 + index % 7).map(|i| u8::try_from((i * 3 + index) % 255 + 1).expect("below 256")).collect();
    NewRecord { kind: Kind::Entry, index, version: 1, payload }
}

fn other(kind: Kind, index: u64, payload: &[u8]) -> NewRecord {
    NewRecord { kind, index, version: 1, payload: payload.to_owned() }
}

fn open(dir: &Path) -> Result<(Wal, Read), WalError> {
    let mut read = Vec::new();
    let wal = Wal::open(dir, SEGMENT_BYTES, |stored| {
        read.push((stored.kind, stored.index, stored.payload.to_owned()));
        Ok(())
    })?;
    Ok((wal, read))
}

/// Writes one batch and waits until it is durable.
fn write(wal: &Wal, records: Vec<NewRecord>) {
    let (done, outcome) = mpsc::channel();
    wal.append(records, Box::new(move |result| done.send(result).expect("the test waits")));
    outcome.recv().expect("told").expect("written");
}

/// A log with `batches`, closed.
fn log(batches: Vec<Vec<NewRecord>>) -> TempDir {
    let dir = TempDir::new().expect("a directory");
    let (wal, _) = open(dir.path()).expect("a new log");
    batches.into_iter().for_each(|batch| write(&wal, batch));
    dir
}

fn singles(indexes: impl IntoIterator<Item = u64>) -> Vec<Vec<NewRecord>> {
    indexes.into_iter().map(|index| vec![entry(index)]).collect()
}

fn segment(dir: &Path, number: u64) -> PathBuf {
    super::segment::path(dir, number)
}

fn copy(dir: &Path) -> TempDir {
    let copied = TempDir::new().expect("a directory");
    for file in fs::read_dir(dir).expect("lists") {
        let file = file.expect("lists").path();
        fs::copy(&file, copied.path().join(file.file_name().expect("a file"))).expect("copies");
    }
    copied
}

/// Where the records of a segment begin and end.
fn places(path: &Path) -> Vec<std::ops::Range<usize>> {
    let bytes = fs::read(path).expect("reads");
    let header = Header::decode(bytes[..BLOCK_BYTES].try_into().expect("64 bytes")).expect("a header");
    let mut places = Vec::new();
    let mut at = RECORDS_AT as usize;
    while let Found::Record(_, _, size) = decode_record(&header, &bytes[at..]) {
        places.push(at..at + size);
        at += size;
    }
    places
}

fn entries(read: &Read) -> Vec<u64> {
    read.iter().filter(|(kind, ..)| *kind == Kind::Entry).map(|(_, index, _)| *index).collect()
}

fn change(path: &Path, at: usize, change: impl FnOnce(u8) -> u8) {
    let file = fs::File::options().read(true).write(true).open(path).expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).expect("reads");
    file.write_all_at(&[change(byte[0])], at as u64).expect("writes");
}

/// Opens a damaged log and returns the file and offset that the error names.
fn damage(dir: &Path) -> (PathBuf, u64) {
    match open(dir) {
        Err(WalError::Damaged { path, offset, .. }) => (path, offset),
        Err(err) => panic!("want damage, got {err}"),
        Ok((_, read)) => panic!("want damage, read entries {:?}", entries(&read)),
    }
}

#[test]
fn a_log_reads_back_what_was_written() {
    let batches = vec![vec![other(Kind::Vote, 0, b"a vote")], vec![entry(1), entry(2)], vec![entry(3)]];
    let dir = log(batches.clone());
    let want: Read = batches.into_iter().flatten().map(|record| (record.kind, record.index, record.payload)).collect();
    assert_eq!(open(dir.path()).expect("opens").1, want);
}

#[test]
fn a_record_larger_than_a_segment_gets_a_larger_segment() {
    let large = NewRecord { payload: vec![7; 3 * SEGMENT_BYTES as usize], ..entry(2) };
    let dir = log(vec![vec![entry(1)], vec![large.clone()], vec![entry(3)]]);
    let (_, read) = open(dir.path()).expect("opens");
    assert_eq!(entries(&read), [1, 2, 3]);
    assert!(read.contains(&(Kind::Entry, 2, large.payload)));
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_and_the_log_goes_on() {
    let dir = log(singles(1..=4));
    let last = places(&segment(dir.path(), 1)).pop().expect("four records");
    for torn in [0x00, 0xff] {
        for at in last.clone() {
            let copied = copy(dir.path());
            let path = segment(copied.path(), 1);
            let whole = fs::read(&path).expect("reads");
            (at..last.end).for_each(|at| change(&path, at, |_| torn));
            let want: &[u64] = if fs::read(&path).expect("reads") == whole { &[1, 2, 3, 4] } else { &[1, 2, 3] };
            let (wal, read) = open(copied.path()).unwrap_or_else(|err| panic!("torn at {at}: {err}"));
            assert_eq!(entries(&read), want, "torn at {at}");
            write(&wal, vec![entry(9)]);
            drop(wal);
            assert_eq!(entries(&open(copied.path()).expect("opens again").1).last(), Some(&9), "torn at {at}");
        }
    }
}

#[test]
fn a_batch_torn_in_its_middle_is_cut_though_its_later_records_survive() {
    let dir = log(vec![vec![entry(1)], vec![entry(2), entry(3), entry(4)]]);
    let path = segment(dir.path(), 1);
    let third = places(&path)[2].clone();
    third.for_each(|at| change(&path, at, |_| 0));
    let (wal, read) = open(dir.path()).expect("a crash may do this");
    assert_eq!(entries(&read), [1, 2]);
    // A record of the same length takes the torn one's place: what lay behind it must not come back.
    write(&wal, vec![entry(3)]);
    drop(wal);
    assert_eq!(entries(&open(dir.path()).expect("opens").1), [1, 2, 3]);
}

#[test]
fn a_flip_of_any_byte_of_a_durable_record_is_named() {
    let dir = log(singles(1..=4));
    for place in &places(&segment(dir.path(), 1))[..3] {
        for at in place.clone() {
            for bits in [0x01, 0x80, 0xff] {
                let copied = copy(dir.path());
                let path = segment(copied.path(), 1);
                change(&path, at, |byte| byte ^ bits);
                assert_eq!(damage(copied.path()), (path, place.start as u64), "byte {at}, bits {bits:x}");
            }
        }
    }
}

#[test]
fn a_durable_record_replaced_by_zeros_is_named() {
    let dir = log(singles(1..=4));
    let path = segment(dir.path(), 1);
    let second = places(&path)[1].clone();
    second.clone().for_each(|at| change(&path, at, |_| 0));
    assert_eq!(damage(dir.path()), (path, second.start as u64));
}

#[test]
fn a_flip_of_any_byte_of_a_complete_segment_is_named() {
    let dir = log(singles(1..=60));
    let path = segment(dir.path(), 1);
    let used = places(&path).last().expect("records").end;
    for at in 0..used {
        let copied = copy(dir.path());
        let path = segment(copied.path(), 1);
        change(&path, at, |byte| byte ^ 0x10);
        assert_eq!(damage(copied.path()).0, path, "byte {at}");
    }
}

#[test]
fn a_flip_of_any_byte_of_the_newest_header_or_seal_is_named() {
    let dir = log(singles(1..=3));
    for at in 0..RECORDS_AT as usize {
        let copied = copy(dir.path());
        let path = segment(copied.path(), 1);
        change(&path, at, |byte| byte ^ 0x04);
        assert_eq!(damage(copied.path()).0, path, "byte {at}");
    }
}

#[test]
fn a_file_cut_short_is_named_wherever_it_was_cut() {
    let dir = log(singles(1..=3));
    for size in (0..SEGMENT_BYTES).step_by(61) {
        let copied = copy(dir.path());
        let path = segment(copied.path(), 1);
        fs::File::options().write(true).open(&path).and_then(|file| file.set_len(size)).expect("cuts");
        assert_eq!(damage(copied.path()).0, path, "cut at {size}");
    }
}

#[test]
fn segments_that_are_missing_swapped_or_foreign_are_named() {
    let dir = log(singles(1..=200));
    let other_log = log(singles(1..=200));
    assert!(segment(dir.path(), 4).exists(), "four segments");
    let newest = super::segment::list(dir.path()).expect("lists").pop().expect("four segments");
    type Harm<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, Harm<'_>, u64); 5] = [
        ("missing in the middle", &|dir| fs::remove_file(segment(dir, 2)).expect("removes"), 3),
        ("missing at the end", &|dir| fs::remove_file(segment(dir, newest)).expect("removes"), newest - 1),
        ("swapped", &|dir| swap(&segment(dir, 2), &segment(dir, 3)), 2),
        ("an old one under a new name", &|dir| clone_file(&segment(dir, 1), &segment(dir, newest + 1)), newest + 1),
        ("of another log", &|dir| clone_file(&segment(other_log.path(), 2), &segment(dir, 2)), 2),
    ];
    for (name, harm, named) in cases {
        let copied = copy(dir.path());
        harm(copied.path());
        assert_eq!(damage(copied.path()).0, segment(copied.path(), named), "{name}");
    }
}

fn clone_file(from: &Path, to: &Path) {
    fs::copy(from, to).expect("copies");
}

fn swap(a: &Path, b: &Path) {
    let aside = a.with_extension("aside");
    for (from, to) in [(a, aside.as_path()), (b, a), (&aside, b)] {
        fs::rename(from, to).expect("renames");
    }
}

#[test]
fn old_records_in_recycled_space_are_never_taken_for_new_ones() {
    let dir = log(singles(1..=60));
    let newest = super::segment::list(dir.path()).expect("lists").pop().expect("segments");
    let before = entries(&open(dir.path()).expect("opens").1);
    let old = fs::read(segment(dir.path(), 1)).expect("reads");
    let path = segment(dir.path(), newest);
    let end = places(&path).last().map_or(RECORDS_AT as usize, |place| place.end);
    let file = fs::File::options().write(true).open(&path).expect("opens");
    let free = SEGMENT_BYTES as usize - end;
    file.write_all_at(&old[RECORDS_AT as usize..][..free.min(old.len() - RECORDS_AT as usize)], end as u64).expect("writes");
    assert_eq!(entries(&open(dir.path()).expect("stale bytes are no damage").1), before);
}

#[test]
fn a_file_that_is_none_of_the_log_is_named() {
    let dir = log(singles(1..=3));
    for name in ["notes.txt", "1.wal", "000000000000000x.wal"] {
        let path = dir.path().join(name);
        fs::write(&path, "").expect("writes");
        assert!(matches!(open(dir.path()), Err(WalError::Stranger { path: named }) if named == path), "{name}");
        fs::remove_file(&path).expect("removes");
    }
}

#[test]
fn a_crash_before_the_seal_is_mended() {
    let dir = log(singles(1..=60));
    let path = segment(dir.path(), 1);
    (BLOCK_BYTES..2 * BLOCK_BYTES).for_each(|at| change(&path, at, |_| 0));
    assert_eq!(entries(&open(dir.path()).expect("opens").1).len(), 60);
    let bytes = fs::read(&path).expect("reads");
    let header = Header::decode(bytes[..BLOCK_BYTES].try_into().expect("64 bytes")).expect("a header");
    let last_seq = header.first_seq + places(&path).len() as u64 - 1;
    assert_eq!(bytes[BLOCK_BYTES..2 * BLOCK_BYTES], encode_seal(&header, last_seq), "sealed again");
}

#[test]
fn purging_deletes_whole_segments_and_keeps_the_vote() {
    let dir = TempDir::new().expect("a directory");
    let (wal, _) = open(dir.path()).expect("a new log");
    write(&wal, vec![other(Kind::Vote, 0, b"a vote")]);
    singles(1..=120).into_iter().for_each(|batch| write(&wal, batch));
    write(&wal, vec![other(Kind::Purge, 100, b"up to 100")]);
    drop(wal);
    assert!(!segment(dir.path(), 1).exists() && !segment(dir.path(), 2).exists());
    let (_, read) = open(dir.path()).expect("opens");
    assert!(read.contains(&(Kind::Vote, 0, b"a vote".to_vec())));
    assert!(entries(&read).ends_with(&(101..=120).collect::<Vec<_>>()));
}

/// Version 1 for ever: `UPDATE_GOLDEN=1` writes the file anew, which only a new version may need.
#[test]
fn the_bytes_of_version_1_stay_as_they_are() {
    let header = Header { log_id: 0x0123_4567_89ab_cdef, number: 7, first_seq: 41, head_end: 41, size_bytes: 4096 };
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(&encode_seal(&header, 45));
    let kinds = [Kind::Entry, Kind::Vote, Kind::Truncate, Kind::Purge, Kind::Committed];
    for (seq, kind) in (41..).zip(kinds) {
        let head = RecordHead { seq, durable: 40, index: 9, kind, version: 1 };
        encode_record(&header, &head, format!("{kind:?}").as_bytes(), &mut bytes);
    }
    let text: String = bytes.chunks(16).map(|row| row.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n").collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/raft/segment-v1.hex");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(path, &text).expect("writes");
    }
    assert_eq!(text, fs::read_to_string(path).expect("the golden file"));
}
