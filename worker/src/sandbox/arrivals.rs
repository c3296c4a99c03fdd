//! The names that came into the directories of stores, as the kernel told of them: what a build made need not be looked for among the mount
//! points of a thousand inputs.
//!
//! The kernel tells of a name before the call that makes it returns, so that after a build's last process all is told. Where it lost count,
//! or keeps none, that is said and the directory has to be listed. Absences: does not know whether a name is still there.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

/// The directories that are watched. One queue of the kernel's serves all.
#[derive(Debug)]
pub(super) struct Arrivals {
    /// Nothing where the kernel grants no more.
    watch: Option<OwnedFd>,
    came: Mutex<BTreeMap<i32, Came>>,
}

/// A directory that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number(i32);

#[derive(Debug, PartialEq, Eq)]
enum Came {
    Names(BTreeSet<CString>),
    /// More than are kept, or more than the kernel keeps.
    Unknown,
}

/// Names that are kept for one directory; one in which more come is listed.
const NAMES_MAX: usize = 1_000;

impl Arrivals {
    pub(super) fn open() -> Self {
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
        if let Err(err) = &watch {
            tracing::warn!(%err, "watch the stores of builds; each is listed after its build");
        }
        Self { watch: watch.ok(), came: Mutex::default() }
    }

    /// Watches a directory until it is removed. Nothing, if the kernel grants no watch.
    pub(super) fn watch(&self, dir: BorrowedFd<'_>) -> Option<Number> {
        let watch = self.watch.as_ref()?;
        let mut came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
        let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
        let number = inotify::add_watch(watch, path, WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR).ok()?;
        came.insert(number, Came::Unknown);
        Some(Number(number))
    }

    /// Forgets what came until now.
    pub(super) fn start(&self, number: Number) {
        self.read_into(|came| came.insert(number.0, Came::Names(BTreeSet::new())));
    }

    /// Returns the names that came since the start, or nothing if that is not known.
    pub(super) fn since_start(&self, number: Number) -> Option<BTreeSet<CString>> {
        match self.read_into(|came| came.insert(number.0, Came::Unknown)) {
            Some(Came::Names(names)) => Some(names),
            Some(Came::Unknown) | None => None,
        }
    }

    fn read_into<T>(&self, then: impl FnOnce(&mut BTreeMap<i32, Came>) -> Option<T>) -> Option<T> {
        let watch = self.watch.as_ref()?;
        let mut came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
        read(watch, &mut came);
        then(&mut came)
    }
}

fn read(watch: &OwnedFd, came: &mut BTreeMap<i32, Came>) {
    let mut buffer = [MaybeUninit::uninit(); 16 << 10];
    let mut events = Reader::new(watch, &mut buffer);
    loop {
        match events.next() {
            Ok(event) => note(came, event.wd(), event.events(), event.file_name()),
            Err(Errno::AGAIN) => return,
            Err(Errno::INTR) => {}
            Err(_) => return came.values_mut().for_each(|came| *came = Came::Unknown),
        }
    }
}

fn note(came: &mut BTreeMap<i32, Came>, number: i32, what: ReadFlags, name: Option<&CStr>) {
    let Some(name) = name else {
        if what.contains(ReadFlags::IGNORED) {
            came.remove(&number);
        } else {
            // The kernel's queue was full.
            came.values_mut().for_each(|came| *came = Came::Unknown);
        }
        return;
    };
    let Some(known) = came.get_mut(&number) else { return };
    match known {
        Came::Names(names) if names.len() < NAMES_MAX => _ = names.insert(name.to_owned()),
        Came::Names(_) => *known = Came::Unknown,
        Came::Unknown => {}
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use rustix::fs::CWD;

    use super::*;
    use crate::sandbox::tree::open_dir;

    /// What is done in a directory, and the names that came; nothing where they are not known.
    #[test]
    fn every_name_that_came_is_told_or_said_to_be_unknown() {
        type Deed = fn(&Path);
        let table: [(&str, Deed, Option<&[&CStr]>); 7] = [
            ("nothing", |_| (), Some(&[])),
            (
                "a file and a directory",
                |dir| fs::write(dir.join("a"), "").and(fs::create_dir(dir.join("b"))).expect("make"),
                Some(&[c"a", c"b"]),
            ),
            ("a second name", |dir| fs::hard_link(dir.join("old"), dir.join("c")).expect("link"), Some(&[c"c"])),
            ("a symbolic link", |dir| std::os::unix::fs::symlink("x", dir.join("d")).expect("link"), Some(&[c"d"])),
            ("one moved in", |dir| fs::rename(dir.with_extension("beside"), dir.join("e")).expect("rename"), Some(&[c"e"])),
            ("one that went again", |dir| fs::write(dir.join("f"), "").and(fs::remove_file(dir.join("f"))).expect("make"), Some(&[c"f"])),
            ("too many", |dir| (0..=NAMES_MAX).for_each(|name| fs::write(dir.join(name.to_string()), "").expect("write")), None),
        ];
        let arrivals = Arrivals::open();
        for (what, deed, want) in table {
            let place = tempfile::tempdir().expect("a temporary directory");
            let (dir, moved) = (place.path().join("dir"), place.path().join("moved"));
            fs::create_dir(&dir).and(fs::write(dir.with_extension("beside"), "")).expect("make");
            let fd = open_dir(CWD, &dir).expect("opens");
            let number = arrivals.watch(std::os::fd::AsFd::as_fd(&fd)).expect("can be watched");
            fs::write(dir.join("old"), "").expect("write");
            fs::write(dir.with_extension("beside"), "").expect("write");
            arrivals.start(number);
            // It is the directory that is watched, whatever its name.
            fs::rename(&dir, &moved).and(fs::rename(dir.with_extension("beside"), moved.with_extension("beside"))).expect("rename");
            deed(&moved);
            let came = arrivals.since_start(number);
            assert_eq!(came.map(Vec::from_iter), want.map(|names| names.iter().map(|name| (*name).to_owned()).collect()), "{what}");
            assert_eq!(arrivals.since_start(number), None, "{what}: told once");
        }
    }

    #[test]
    fn a_full_queue_makes_every_directory_unknown() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let arrivals = Arrivals::open();
        let numbers = ["quiet", "loud"].map(|name| {
            fs::create_dir(place.path().join(name)).expect("mkdir");
            let fd = open_dir(CWD, &place.path().join(name)).expect("opens");
            let number = arrivals.watch(std::os::fd::AsFd::as_fd(&fd)).expect("can be watched");
            arrivals.start(number);
            number
        });
        let queue_max = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("reads");
        let queue_max: usize = queue_max.trim().parse().expect("a number");
        let file = place.path().join("loud/file");
        for _ in 0..=queue_max {
            // The kernel makes one event of two that are alike and follow each other.
            let other = place.path().join("loud/other");
            fs::write(&file, "").and(fs::rename(&file, &other)).and(fs::remove_file(&other)).expect("change");
        }
        assert_eq!(numbers.map(|number| arrivals.since_start(number)), [None, None]);
    }
}
