//! Which names came, went or changed places in the directories that inputs lie in, since when: so that a store that stands ready need not
//! look again at each of a thousand inputs that nobody touched.
//!
//! Everything here errs towards looking again. Absences: does not look at inputs; does not see a file system that another machine changes,
//! which a worker's own store is not.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

/// The directories that are watched.
#[derive(Debug)]
pub(super) struct Sources {
    /// Nothing where the kernel grants no more.
    watch: Option<OwnedFd>,
    seen: Mutex<Seen>,
}

/// A point in the order of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(u64);

#[derive(Debug)]
struct Seen {
    now: Moment,
    /// What was looked at before counts for nothing.
    floor: Moment,
    dirs: BTreeMap<PathBuf, Watched>,
    changes: VecDeque<(Moment, Vec<u8>)>,
}

#[derive(Debug, PartialEq, Eq)]
struct Watched {
    number: i32,
    device: u64,
    inode: u64,
}

/// A worker has one store; more are those of other workers in one process, and of tests.
const DIRS_MAX: usize = 64;
/// Changes that are remembered. What comes and goes with a build is a few.
const CHANGES_MAX: usize = 10_000;

impl Sources {
    pub(super) fn open() -> Self {
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
        if let Err(err) = &watch {
            tracing::warn!(%err, "watch the directories of inputs; each input is looked at for each build");
        }
        let seen = Seen { now: Moment(0), floor: Moment(0), dirs: BTreeMap::new(), changes: VecDeque::new() };
        Self { watch: watch.ok(), seen: Mutex::new(seen) }
    }

    /// Returns the present, or nothing if changes in these directories cannot be seen.
    pub(super) fn now<'a>(&self, dirs: impl Iterator<Item = &'a Path>) -> Option<Moment> {
        let watch = self.watch.as_ref()?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.read(watch);
        for dir in dirs {
            seen.include(watch, dir).ok()?;
        }
        Some(seen.now)
    }

    /// Whether one of the names for which `is_input` is true may stand for something else than at `since`.
    pub(super) fn changed(&self, since: Moment, is_input: impl Fn(&[u8]) -> bool) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let later = seen.changes.iter().rev().take_while(|(moment, _)| *moment > since);
        since < seen.floor || later.into_iter().any(|(_, name)| is_input(name))
    }
}

impl Seen {
    /// Watches a directory, if it is not the one that is watched under this name already.
    fn include(&mut self, watch: &OwnedFd, dir: &Path) -> io::Result<()> {
        let found = std::fs::metadata(dir)?;
        if self.dirs.get(dir).is_some_and(|watched| watched.device == found.dev() && watched.inode == found.ino()) {
            return Ok(());
        }
        if self.dirs.len() >= DIRS_MAX {
            return Err(io::Error::other("too many directories"));
        }
        let what = WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO | WatchFlags::DELETE_SELF | WatchFlags::ONLYDIR;
        let number = inotify::add_watch(watch, dir, what)?;
        // Another directory may have come to lie there between the two.
        let found = std::fs::metadata(dir)?;
        if self.dirs.insert(dir.to_owned(), Watched { number, device: found.dev(), inode: found.ino() }).is_some() {
            self.forget();
        }
        Ok(())
    }

    fn read(&mut self, watch: &OwnedFd) {
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut events = Reader::new(watch, &mut buffer);
        loop {
            match events.next() {
                Ok(event) => self.note(event.wd(), event.events(), event.file_name()),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => return self.forget(),
            }
        }
    }

    fn note(&mut self, number: i32, what: ReadFlags, name: Option<&CStr>) {
        let Some(name) = name else {
            // The directory itself went, or there were more changes than the kernel could keep.
            if what.contains(ReadFlags::IGNORED) {
                self.dirs.retain(|_, watched| watched.number != number);
            }
            return self.forget();
        };
        self.now.0 += 1;
        self.changes.push_back((self.now, name.to_bytes().to_vec()));
        if self.changes.len() > CHANGES_MAX {
            self.floor = self.changes.pop_front().map_or(self.now, |(moment, _)| moment);
        }
    }

    fn forget(&mut self) {
        self.now.0 += 1;
        self.floor = self.now;
        self.changes.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What was done to a directory `dir` with a file `input`, and whether `input` has to be looked at again.
    #[test]
    fn an_input_that_may_have_changed_is_noticed_and_no_other() {
        type Deed = fn(&Path);
        let table: [(&str, Deed, bool); 8] = [
            ("nothing", |_| (), false),
            ("another came", |dir| fs::write(dir.join("other"), "").expect("write"), false),
            (
                "another came and went",
                |dir| (0..3).for_each(|_| fs::write(dir.join("x"), "").and(fs::remove_file(dir.join("x"))).expect("x")),
                false,
            ),
            ("it went", |dir| fs::remove_file(dir.join("input")).expect("remove"), true),
            ("it was moved away", |dir| fs::rename(dir.join("input"), dir.join("elsewhere")).expect("rename"), true),
            (
                "another was put over it",
                |dir| fs::write(dir.join("y"), "").and(fs::rename(dir.join("y"), dir.join("input"))).expect("rename"),
                true,
            ),
            ("the directory went", |dir| fs::remove_dir_all(dir).expect("remove"), true),
            (
                "another directory came in its place",
                |dir| fs::rename(dir, dir.with_extension("old")).and(fs::create_dir(dir)).expect("replace"),
                true,
            ),
        ];
        for (what, deed, changed) in table {
            let place = tempfile::tempdir().expect("a temporary directory");
            let dir = place.path().join("dir");
            fs::create_dir(&dir).expect("mkdir");
            fs::write(dir.join("input"), "").expect("write");
            let sources = Sources::open();
            let since = sources.now([dir.as_path()].into_iter()).expect("the directory can be watched");
            deed(&dir);
            // A directory that is not there any more cannot be watched, and is looked at for that.
            let noticed = match sources.now([dir.as_path()].into_iter()) {
                Some(_) => sources.changed(since, |name| name == b"input"),
                None => true,
            };
            assert_eq!(noticed, changed, "{what}");
        }
    }

    #[test]
    fn more_changes_than_are_kept_count_as_a_change_of_everything() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let sources = Sources::open();
        let dirs = || [place.path()].into_iter();
        let since = sources.now(dirs()).expect("the directory can be watched");
        for number in 0..=CHANGES_MAX {
            // The kernel makes one of two that are alike.
            let file = place.path().join(number.to_string());
            fs::write(&file, "").and(fs::remove_file(&file)).expect("change");
            if number % 1000 == 0 {
                sources.now(dirs());
            }
        }
        let late = sources.now(dirs()).expect("the directory can be watched");
        assert!(sources.changed(since, |_| false));
        assert!(!sources.changed(late, |_| true));
    }
}
