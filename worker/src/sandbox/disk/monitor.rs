//! The thread that watches the disks of all running builds: it measures each in turn, remembers the most, raises the alarm past a limit,
//! and when the worker's whole disk runs low, at the build that uses the most of it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::gauge::Gauge;
use super::{Excess, Limits, Used};

/// Watches until it is dropped.
#[derive(Debug)]
pub(super) struct Monitor {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    free_bytes_min: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    watched: BTreeMap<u64, Arc<Entry>>,
    next: u64,
    is_over: bool,
}

/// One running build.
#[derive(Debug)]
struct Entry {
    gauge: Arc<Gauge>,
    limits: Limits,
    /// Lists its processes, one a line.
    processes: Option<PathBuf>,
    /// Readable once something is found.
    event: OwnedFd,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    peak: Used,
    last: Used,
    excess: Option<Excess>,
    due: Instant,
}

/// A build that is watched; dropping it ends that.
#[derive(Debug)]
pub(super) struct Watched {
    shared: Arc<Shared>,
    number: u64,
    entry: Arc<Entry>,
}

/// Between two looks at a build whose use the kernel counts, which is one system call.
const LOOK_CHEAP: Duration = Duration::from_millis(100);
/// Least time between two looks at a build whose files are counted one by one.
const LOOK_DEAR: Duration = Duration::from_millis(500);
/// A look waits so many times as long as the last took of a processor: no build costs more than a twentieth of a core for being looked at.
const LOOK_PART: u32 = 20;
/// No build is out of sight for longer.
const LOOK_MAX: Duration = Duration::from_secs(30);
/// Between two looks at the whole disk while something runs.
const LOOK_FLOOR: Duration = Duration::from_millis(250);
/// Within it the files of a build that was ended are gone.
const RELIEF: Duration = Duration::from_secs(30);
/// When the disk runs low, a build that uses less than this part of the floor is not to blame and its end would not help.
const BLAME_PART: u64 = 16;

impl Monitor {
    /// Starts the thread. It watches the free space of the disk that `dir` lies on.
    pub(super) fn start(dir: &Path, free_bytes_min: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared { dir: dir.to_owned(), free_bytes_min, state: Mutex::default(), changed: Condvar::new() });
        let of_thread = shared.clone();
        std::thread::Builder::new().name("kiln-disk".into()).spawn(move || of_thread.run())?;
        Ok(Self { shared })
    }

    /// Starts watching one build.
    pub(super) fn watch(&self, gauge: Arc<Gauge>, limits: Limits, processes: Option<PathBuf>) -> io::Result<Watched> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let seen = Seen { peak: Used::default(), last: Used::default(), excess: None, due: Instant::now() + gauge.look_every(limits) };
        let entry = Arc::new(Entry { gauge, limits, processes, event, seen: Mutex::new(seen) });
        let mut state = self.shared.lock();
        let number = state.next;
        state.next += 1;
        let slept = state.watched.insert(number, entry.clone()).is_none() && state.watched.len() == 1;
        drop(state);
        // With others to look at, the thread wakes by itself, soon enough.
        if slept {
            self.shared.changed.notify_all();
        }
        Ok(Watched { shared: self.shared.clone(), number, entry })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.changed.notify_all();
    }
}

impl Watched {
    /// Returns what is readable once a limit is passed.
    pub(super) fn event(&self) -> &OwnedFd {
        &self.entry.event
    }

    /// Returns what was found, if anything was.
    pub(super) fn excess(&self) -> Option<Excess> {
        self.entry.seen().excess
    }

    /// Looks once more, now that nothing changes any more, and returns the limit that a failed build ran into, if it did.
    pub(super) fn blame(&self) -> Option<Excess> {
        self.entry.gauge.settle();
        if let Err(err) = self.entry.look() {
            tracing::warn!(%err, "measure the disk of a build");
        }
        let seen = self.entry.seen();
        seen.excess.or_else(|| self.entry.gauge.blames(seen.peak, self.entry.limits))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.shared.lock().watched.remove(&self.number);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the list whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut blamed = None;
        while let Some(entries) = self.wait() {
            for entry in entries.iter().filter(|entry| entry.seen().due <= Instant::now()) {
                if let Err(err) = entry.look() {
                    tracing::warn!(%err, "measure the disk of a build");
                }
            }
            match free_bytes(&self.dir).filter(|free| *free < self.free_bytes_min) {
                Some(free_bytes) if blamed.is_none_or(|blamed| is_in_vain(blamed, free_bytes, Instant::now())) => {
                    if self.relieve(&entries, free_bytes) {
                        blamed = Some((Instant::now(), free_bytes));
                    }
                }
                Some(_) => {}
                None => blamed = None,
            }
        }
    }

    /// Waits until somebody is due, and returns all that are watched; nothing once the worker is gone.
    fn wait(&self) -> Option<Vec<Arc<Entry>>> {
        let mut state = self.lock();
        loop {
            if state.is_over {
                return None;
            }
            let now = Instant::now();
            let next = state.watched.values().map(|entry| entry.seen().due).min();
            let Some(next) = next else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = next.saturating_duration_since(now).clamp(Duration::from_millis(10), LOOK_FLOOR);
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            if !state.is_over && !state.watched.is_empty() {
                return Some(state.watched.values().cloned().collect());
            }
        }
    }

    /// Ends the build that uses the most, if that would help.
    fn relieve(&self, entries: &[Arc<Entry>], free_bytes: u64) -> bool {
        let on_disk = || entries.iter().filter(|entry| entry.gauge.is_on_disk());
        for entry in on_disk() {
            // What was seen last may be old.
            let _ = entry.look();
        }
        let unblamed = on_disk().filter(|entry| entry.seen().excess.is_none());
        let most = unblamed.map(|entry| (entry.seen().last.bytes, entry)).max_by_key(|(used_bytes, _)| *used_bytes);
        let most = most.filter(|(used_bytes, _)| *used_bytes >= self.free_bytes_min / BLAME_PART);
        if let Some((used_bytes, entry)) = most {
            entry.alarm(Excess::Floor { free_bytes, free_bytes_min: self.free_bytes_min, used_bytes });
        }
        most.is_some()
    }
}

/// Whether the end of the build that was blamed, then and with so much left, was not enough. Its files go away after it, one by one, and
/// until then no other may pay for them.
fn is_in_vain((then, free_bytes_then): (Instant, u64), free_bytes: u64, now: Instant) -> bool {
    now >= then + RELIEF || free_bytes < free_bytes_then / 2
}

impl Entry {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) -> io::Result<()> {
        let before = own_cpu();
        let used = self.gauge.read(self.limits.inodes_max, self.processes.as_deref());
        let wait = (own_cpu().saturating_sub(before) * LOOK_PART).clamp(self.gauge.look_every(self.limits), LOOK_MAX);
        let mut seen = self.seen();
        seen.due = Instant::now() + wait;
        let used = used?;
        seen.last = used;
        seen.peak = Used { bytes: seen.peak.bytes.max(used.bytes), inodes: seen.peak.inodes.max(used.inodes) };
        drop(seen);
        if let Some(excess) = self.gauge.passes(used, self.limits) {
            self.alarm(excess);
        }
        Ok(())
    }

    fn alarm(&self, excess: Excess) {
        self.seen().excess.get_or_insert(excess);
        // It can only fail when it is readable already.
        let _ = rustix::io::write(self.event.as_fd(), &1_u64.to_ne_bytes());
    }
}

/// Returns the processor time of this thread. Not the time that passed: a machine with much to do must not look the less.
fn own_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Returns the free bytes of the disk that `dir` lies on, if the kernel tells.
pub(super) fn free_bytes(dir: &Path) -> Option<u64> {
    rustix::fs::statvfs(dir).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

impl Gauge {
    fn look_every(&self, limits: Limits) -> Duration {
        match (self.is_cheap(), limits == Limits::NONE) {
            (true, _) => LOOK_CHEAP,
            (false, false) => LOOK_DEAR,
            (false, true) => LOOK_MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_is_blamed_until_the_end_of_the_first_must_have_helped_or_things_get_much_worse() {
        let then = Instant::now();
        for (seconds, free_bytes, want) in [(0, 100, false), (29, 51, false), (29, 49, true), (30, 100, true)] {
            assert_eq!(is_in_vain((then, 100), free_bytes, then + Duration::from_secs(seconds)), want, "{seconds} s, {free_bytes} bytes");
        }
    }
}
