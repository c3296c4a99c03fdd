//! The loop that waits for a build's end: passes the log on, and stops what runs too long, is silent too long or writes too much.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::birth::Child;
use super::{Limits, Stop, disk};
use crate::cgroup::{self, Alarm, Alert, CgroupError, Group};

/// What is watched.
pub(super) struct Watch<'a> {
    pub child: &'a Child<'a>,
    pub log: BorrowedFd<'a>,
    pub cancel: BorrowedFd<'a>,
    pub group: &'a Group,
    pub alarms: Vec<Alarm>,
    pub resources: &'a cgroup::Limits,
    pub disk: &'a disk::Watch,
    pub limits: Limits,
    pub start: Instant,
}

/// What was seen.
pub(super) struct Watched {
    pub stopped: Option<Stop>,
    pub log_bytes: u64,
    /// The group ran out of memory and was killed for it, maybe before the kernel killed, and counted, anything itself.
    pub out_of_memory: bool,
}

/// A build that cannot be watched.
#[derive(Debug, thiserror::Error)]
pub(super) enum WatchError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Group(#[from] CgroupError),
}

/// Whether more log may come.
#[derive(PartialEq, Eq)]
enum Log {
    Open,
    Ended,
}

/// How often alarms are looked at that the kernel may not sound. Soon enough for a fork bomb, and nothing beside a build.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a build runs before it is watched for stalls, which take seconds to be seen. Shorter builds are spared the alarm's price.
const STALLS_AFTER: Duration = Duration::from_secs(1);
/// Bytes read from the terminal at a time; the kernel hands out at most 4 KiB.
const CHUNK_BYTES: usize = 16 << 10;

impl Watch<'_> {
    /// Waits until the main process has ended and the log is read. The process is not reaped.
    pub(super) fn until_end(mut self, sink: &mut dyn FnMut(&[u8])) -> Result<Watched, WatchError> {
        let mut seen = Watched { stopped: None, log_bytes: 0, out_of_memory: false };
        let mut last_log = self.start;
        let mut log = Log::Open;
        let mut killed = false;
        let mut listens_for_stalls = false;
        loop {
            if !listens_for_stalls && self.start.elapsed() >= STALLS_AFTER {
                self.alarms.extend(self.group.stall_alarm(self.resources)?);
                listens_for_stalls = true;
            }
            let ready = self.poll(&seen, &log, last_log, killed)?;
            if ready.log {
                let before = seen.log_bytes;
                log = self.read(&mut seen, sink)?;
                if seen.log_bytes > before {
                    last_log = Instant::now();
                }
            }
            if ready.ended {
                while log == Log::Open && self.read_once(&mut seen, sink)? {}
                return Ok(seen);
            }
            seen.stopped = seen.stopped.or_else(|| self.stop(&ready, last_log, Instant::now()));
            seen.out_of_memory |= ready.alert == Some(Alert::OutOfMemory);
            if !killed && (seen.stopped.is_some() || seen.out_of_memory) {
                self.child.kill();
                killed = true;
            }
        }
    }

    fn stop(&self, ready: &Ready, last_log: Instant, now: Instant) -> Option<Stop> {
        if ready.cancelled {
            Some(Stop::Cancelled)
        } else if ready.alert == Some(Alert::Pids) {
            Some(Stop::Processes { max: self.resources.pids_max })
        } else if let Some(excess) = ready.disk {
            Some(Stop::Disk(excess))
        } else if now >= self.start + self.limits.wall {
            Some(Stop::Wall)
        } else if now >= last_log + self.limits.silence {
            Some(Stop::Silence)
        } else {
            None
        }
    }

    fn poll(&self, seen: &Watched, log: &Log, last_log: Instant, killed: bool) -> io::Result<Ready> {
        let pidfd = self.child.pidfd();
        let watched = |open: bool| if open { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN), PollFd::new(&self.cancel, watched(!killed))];
        // Once stopped, more log is neither wanted nor counted.
        let disk_at = (!killed).then_some(fds.len());
        fds.extend(disk_at.map(|_| PollFd::new(self.disk, PollFlags::IN)));
        let log_at = (*log == Log::Open && seen.stopped.is_none()).then_some(fds.len());
        fds.extend(log_at.map(|_| PollFd::new(&self.log, PollFlags::IN)));
        let alarms_at = fds.len();
        let alarms = if killed { &[] } else { &self.alarms[..] };
        fds.extend(alarms.iter().map(|alarm| PollFd::new(alarm, alarm.flags())));
        let timeout = (!killed).then(|| {
            let now = Instant::now();
            let due = (self.start + self.limits.wall).min(last_log + self.limits.silence).saturating_duration_since(now);
            let look = alarms.iter().any(Alarm::is_silent).then_some(LOOK_EVERY);
            let stalls = STALLS_AFTER.checked_sub(now.saturating_duration_since(self.start));
            timespec([look, stalls].into_iter().flatten().fold(due, Duration::min))
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
        let is_ready = |at: Option<usize>| at.is_some_and(|at| !fds[at].revents().is_empty());
        let rung = alarms.iter().zip(&fds[alarms_at..]).filter(|(alarm, fd)| alarm.is_silent() || !fd.revents().is_empty());
        let alert = rung.filter_map(|(alarm, fd)| alarm.alert(fd.revents())).next();
        let disk = if is_ready(disk_at) { self.disk.excess() } else { None };
        Ok(Ready { ended: is_ready(Some(0)), cancelled: !killed && is_ready(Some(1)), log: is_ready(log_at), alert, disk })
    }

    /// Reads a few chunks at most, so that a flood cannot keep the limits from being looked at.
    fn read(&self, seen: &mut Watched, sink: &mut dyn FnMut(&[u8])) -> io::Result<Log> {
        for _ in 0..16 {
            match self.chunk(seen, sink)? {
                Chunk::Some => {}
                Chunk::NoneNow => return Ok(Log::Open),
                Chunk::End => return Ok(Log::Ended),
            }
        }
        Ok(Log::Open)
    }

    /// Every writer is dead: what can be read at once is all there is.
    fn read_once(&self, seen: &mut Watched, sink: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
        Ok(seen.stopped.is_none() && matches!(self.chunk(seen, sink)?, Chunk::Some))
    }

    fn chunk(&self, seen: &mut Watched, sink: &mut dyn FnMut(&[u8])) -> io::Result<Chunk> {
        let mut buffer = [0; CHUNK_BYTES];
        let got = match rustix::io::read(self.log, &mut buffer) {
            // A terminal whose other side is closed everywhere answers EIO.
            Ok(0) | Err(rustix::io::Errno::IO) => return Ok(Chunk::End),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Chunk::NoneNow),
            Err(err) => return Err(err.into()),
            Ok(got) => got,
        };
        let room = self.limits.log_bytes.saturating_sub(seen.log_bytes);
        let kept = usize::try_from(room).map_or(got, |room| room.min(got));
        sink(&buffer[..kept]);
        seen.log_bytes += kept as u64;
        if kept < got {
            seen.stopped = seen.stopped.or(Some(Stop::LogBytes));
            return Ok(Chunk::NoneNow);
        }
        Ok(Chunk::Some)
    }
}

/// What one wait found.
struct Ready {
    ended: bool,
    cancelled: bool,
    log: bool,
    alert: Option<Alert>,
    disk: Option<disk::Excess>,
}

enum Chunk {
    Some,
    NoneNow,
    End,
}

/// Rounded up, so that the loop does not spin in the last millisecond.
fn timespec(duration: Duration) -> Timespec {
    let duration = duration + Duration::from_millis(1);
    Timespec { tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(duration.subsec_nanos()) }
}
