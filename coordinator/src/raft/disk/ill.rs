//! What is wrong with a simulated host's disk, as whoever runs the simulation wills it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Something wrong with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ill {
    /// Files do not grow.
    Full,
    /// What was synced is lost in a crash as if it had not been. Disks that lie exist; against these nothing can be done.
    SyncsNothing,
    /// New names in a directory are lost in a crash although it was synced.
    ForgetsNames,
}

#[derive(Default)]
struct Disks {
    ills: BTreeMap<PathBuf, BTreeSet<Ill>>,
    logs: BTreeMap<PathBuf, Log>,
}

/// A log, by its directory.
#[derive(Default)]
struct Log {
    has_spare: bool,
    /// Bytes to the end of the file last written to.
    left_bytes: u64,
}

thread_local! {
    static DISKS: RefCell<Disks> = RefCell::default();
}

/// Makes the disk on which `dir` lies ill, or well again.
pub fn set(dir: &Path, ill: Ill, is: bool) {
    DISKS.with_borrow_mut(|disks| {
        let ills = disks.ills.entry(dir.to_owned()).or_default();
        if is {
            ills.insert(ill)
        } else {
            ills.remove(&ill)
        };
    });
}

/// Returns whether that is wrong with the disk on which `path` lies.
pub fn is(path: &Path, ill: Ill) -> bool {
    DISKS.with_borrow(|disks| path.ancestors().any(|dir| disks.ills.get(dir).is_some_and(|ills| ills.contains(&ill))))
}

/// Does something as if every disk were well.
pub(in crate::raft) fn despite<T>(what: impl FnOnce() -> T) -> T {
    let ills = DISKS.with_borrow_mut(|disks| std::mem::take(&mut disks.ills));
    let done = what();
    DISKS.with_borrow_mut(|disks| disks.ills = ills);
    done
}

/// Notes that the next segment of the log in `dir` is there, or is not.
pub(in crate::raft) fn has_spare(dir: &Path, has: bool) {
    DISKS.with_borrow_mut(|disks| disks.logs.entry(dir.to_owned()).or_default().has_spare = has);
}

/// Notes how far a file's end is from what was written last.
pub(super) fn wrote(path: &Path, left_bytes: u64) {
    let Some(dir) = path.parent().filter(|_| path.extension().is_some_and(|ending| ending == "wal")) else { return };
    DISKS.with_borrow_mut(|disks| disks.logs.entry(dir.to_owned()).or_default().left_bytes = left_bytes);
}

/// Returns whether whoever writes the log in `dir` must wait for room: on a machine its thread would.
pub(in crate::raft) fn is_stuck(dir: &Path) -> bool {
    let needs_segment = DISKS.with_borrow(|disks| disks.logs.get(dir).is_some_and(|log| !log.has_spare && log.left_bytes < BATCH_BYTES));
    needs_segment && is(dir, Ill::Full)
}

/// More than is written at once, as a rule; what needs more finds room for a segment whatever the disk says.
const BATCH_BYTES: u64 = 4 << 10;
/// How often whoever waits for room looks again.
pub(in crate::raft) const LOOK_EVERY: Duration = Duration::from_millis(20);
