//! What a group's kernel files can be waited for: the end of a build's memory or processes, at once and without asking in turns.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFlags, eventfd};

use super::group::Group;
use super::{CgroupError, Limits};

/// A descriptor that tells of one thing.
#[derive(Debug)]
pub struct Alarm {
    fd: OwnedFd,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// An event counter of v1: readable once the group is out of memory.
    OutOfMemory,
    /// `pids.events`: changed.
    Pids,
    /// `memory.pressure` with a trigger.
    Stall,
}

/// What an alarm tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alert {
    /// The group needs more memory than it may have.
    OutOfMemory,
    /// A process could not be made for the group's limit.
    Pids,
}

/// Within which waits for memory are added up: the longest time that the kernel takes.
const STALL_WINDOW_MS: u32 = 10_000;

impl Group {
    /// Returns what this group can be waited for from its start on, given its kernel.
    ///
    /// # Errors
    /// [`CgroupError`] if the kernel has a file but refuses to notify.
    pub fn alarms(&self) -> Result<Vec<Alarm>, CgroupError> {
        Ok([self.oom_event()?, self.pids_event()?].into_iter().flatten().collect())
    }

    /// With v1 the kernel kills one process of the group. All of it is to be killed, as v2 does by itself.
    fn oom_event(&self) -> Result<Option<Alarm>, CgroupError> {
        let Some(dir) = self.memory.as_ref().filter(|_| !self.v2) else { return Ok(None) };
        let path = dir.join("memory.oom_control");
        let control = File::open(&path).map_err(CgroupError::io("open", &path))?;
        let fd =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from).map_err(CgroupError::io("watch", &path))?;
        let line = format!("{} {}", fd.as_raw_fd(), control.as_raw_fd());
        let register = dir.join("cgroup.event_control");
        fs::write(&register, line).map_err(CgroupError::io("write", &register))?;
        Ok(Some(Alarm { fd, kind: Kind::OutOfMemory }))
    }

    fn pids_event(&self) -> Result<Option<Alarm>, CgroupError> {
        let Some(path) = self.pids_events().filter(|path| path.exists()) else { return Ok(None) };
        let file = File::open(&path).map_err(CgroupError::io("open", &path))?;
        let alarm = Alarm { fd: file.into(), kind: Kind::Pids };
        // What was read once is news only when it changes.
        alarm.pids_refused().map_err(CgroupError::io("read", &path))?;
        Ok(Some(alarm))
    }

    /// Returns what tells of a group that stalls for want of memory, which shows within seconds only. Not for a group that may end
    /// sooner: the kernel takes some 10 ms to let go of the alarm. The unified hierarchy tells, also where v1 holds the limit; a
    /// kernel may lack it, or have it switched off.
    ///
    /// # Errors
    /// [`CgroupError`] if the kernel has the file but refuses to notify.
    pub fn stall_alarm(&self, limits: &Limits) -> Result<Option<Alarm>, CgroupError> {
        let Some(dir) = self.memory.as_ref().and(self.unified.as_ref()) else { return Ok(None) };
        let path = dir.join("memory.pressure");
        let Ok(mut file) = File::options().read(true).write(true).open(&path) else { return Ok(None) };
        match file.write_all(trigger(limits.memory_stall_ms_max).as_bytes()) {
            Ok(()) => Ok(Some(Alarm { fd: file.into(), kind: Kind::Stall })),
            Err(err) if err.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
            Err(err) => Err(CgroupError::io("watch", path)(err)),
        }
    }
}

/// The kernel's words for a trigger, with the zero byte that it wants.
fn trigger(stall_ms_max: u32) -> String {
    format!("full {}000 {STALL_WINDOW_MS}000\0", stall_ms_max.clamp(1, STALL_WINDOW_MS))
}

impl Alarm {
    /// Returns what to wait for.
    pub fn flags(&self) -> PollFlags {
        match self.kind {
            Kind::OutOfMemory => PollFlags::IN,
            Kind::Pids | Kind::Stall => PollFlags::PRI,
        }
    }

    /// Whether it must also be looked at every now and then: kernels do not tell of a change of v1's `pids.events`.
    pub fn is_silent(&self) -> bool {
        match self.kind {
            Kind::OutOfMemory | Kind::Stall => false,
            Kind::Pids => true,
        }
    }

    /// Returns what a wait's end, or a look, means: nothing, if what is waited for has not happened.
    pub fn alert(&self, ready: PollFlags) -> Option<Alert> {
        match self.kind {
            Kind::OutOfMemory => ready.contains(PollFlags::IN).then_some(Alert::OutOfMemory),
            // An error with it would tell that the group is gone.
            Kind::Stall => (ready.contains(PollFlags::PRI) && !ready.contains(PollFlags::ERR)).then_some(Alert::OutOfMemory),
            // The read also makes the file quiet until the next change.
            Kind::Pids => self.pids_refused().is_ok_and(|refused| refused > 0).then_some(Alert::Pids),
        }
    }

    fn pids_refused(&self) -> io::Result<u64> {
        let mut file = File::from(self.fd.try_clone()?);
        file.rewind()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok(text.lines().find_map(|line| line.strip_prefix("max ")?.trim().parse().ok()).unwrap_or(0))
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trigger_is_what_the_kernel_reads() {
        for (stall_ms_max, want) in [(9000, "full 9000000 10000000\0"), (0, "full 1000 10000000\0"), (u32::MAX, "full 10000000 10000000\0")]
        {
            assert_eq!(trigger(stall_ms_max), want);
        }
    }
}
