//! Birth and death of the child: `clone3` with every namespace at once, and the wait for its end.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::time::Duration;

use super::Status;
use super::child;
use super::plan::Plan;

/// A child that was not reaped yet. Dropping it kills and reaps it, and with it its whole process id namespace.
pub(super) struct Child {
    pid: libc::pid_t,
    pidfd: OwnedFd,
    reaped: bool,
}

/// What the kernel told when a child was reaped.
pub(super) struct Reaped {
    pub status: Status,
    /// Processor time of the child and of those it waited for.
    pub cpu: Duration,
    /// Highest resident memory of one process.
    pub memory_peak_bytes: u64,
}

impl Child {
    /// Makes the child, which waits for its id maps before it does anything.
    ///
    /// The calling thread must outlive the child: its end is the child's death.
    pub(super) fn new(plan: &Plan, birthplace: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let mut pidfd: libc::c_int = -1;
        let mut flags =
            libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_PIDFD;
        if !plan.network {
            flags |= libc::CLONE_NEWNET;
        }
        // SAFETY: all-zero is a valid set of arguments: no stack of its own, no thread-local storage, no signal at its end.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.flags = u64::from(flags.cast_unsigned());
        arguments.pidfd = (&raw mut pidfd) as u64;
        if let Some(group) = birthplace {
            arguments.flags |= CLONE_INTO_CGROUP;
            arguments.cgroup = u64::from(group.as_raw_fd().cast_unsigned());
        }
        let groups = Groups::set_aside()?;
        let unblocked = block_signals();
        // SAFETY: a clone without shared memory is a fork: the child goes on with a copy of this stack, makes system calls only, and
        // never returns from `enter`.
        let pid = unsafe {
            let pid = libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>());
            if pid == 0 {
                child::enter(plan);
            }
            pid
        };
        let failed = (pid < 0).then(io::Error::last_os_error);
        // They were this thread's a moment ago, and the right to set them is unchanged.
        let _ = groups.restore();
        restore_signals(&unblocked);
        match failed {
            Some(err) => Err(err),
            // SAFETY: the kernel has just put this descriptor there, and nobody else knows it.
            None => Ok(Self {
                pid: libc::pid_t::try_from(pid).expect("a process id fits"),
                pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
                reaped: false,
            }),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.cast_unsigned()
    }

    /// Readable when the child has ended.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Kills the child, and with it every process of its namespace.
    pub(super) fn kill(&self) {
        // It can only fail when the child has ended.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
    }

    /// Waits for the end. When this returns, the kernel has killed and reaped every process of the namespace.
    pub(super) fn reap(&mut self) -> io::Result<Reaped> {
        let mut status = 0;
        // SAFETY: all-zero is a valid usage; the call writes both.
        let (reaped, usage) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            (wait(self.pid, &mut status, &mut usage), usage)
        };
        reaped?;
        self.reaped = true;
        let time =
            |time: libc::timeval| Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs());
        Ok(Reaped {
            status: if libc::WIFSIGNALED(status) {
                Status::Signalled(libc::WTERMSIG(status))
            } else {
                Status::Exited(libc::WEXITSTATUS(status))
            },
            cpu: time(usage.ru_utime) + time(usage.ru_stime),
            memory_peak_bytes: usage.ru_maxrss.unsigned_abs() << 10,
        })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            let _ = self.reap();
        }
    }
}

/// Not a bit that fits the C library's type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn wait(pid: libc::pid_t, status: &mut libc::c_int, usage: &mut libc::rusage) -> io::Result<()> {
    loop {
        // SAFETY: writes to the two places that the references lead to.
        if unsafe { libc::wait4(pid, status, libc::__WALL, usage) } == pid {
            return Ok(());
        }
        let err = io::Error::last_os_error();
        if err.kind() != io::ErrorKind::Interrupted {
            return Err(err);
        }
    }
}

/// No handler of the worker may run in the child.
fn block_signals() -> libc::sigset_t {
    // SAFETY: both sets are ours; the mask is this thread's own.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        before
    }
}

fn restore_signals(before: &libc::sigset_t) {
    // SAFETY: reads a set that `block_signals` filled.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::from_ref(before), std::ptr::null_mut()) };
}

/// The supplementary groups of this thread. A build must not inherit the worker's, and cannot drop them itself in a user namespace
/// that denies `setgroups`. The bare system call changes one thread, where the C library's would change all.
struct Groups(Vec<libc::gid_t>);

impl Groups {
    fn set_aside() -> io::Result<Self> {
        // SAFETY: the first call writes nothing; the second writes at most as many ids as the list holds.
        let groups = unsafe {
            let count = usize::try_from(libc::getgroups(0, std::ptr::null_mut())).unwrap_or(0);
            let mut groups = vec![0; count];
            libc::getgroups(libc::c_int::try_from(count).unwrap_or(0), groups.as_mut_ptr());
            groups
        };
        let set_aside = Self(groups);
        set_aside.set(&[])?;
        Ok(set_aside)
    }

    fn restore(self) -> io::Result<()> {
        self.set(&self.0)
    }

    fn set(&self, groups: &[libc::gid_t]) -> io::Result<()> {
        // SAFETY: the kernel reads as many ids as the slice has.
        let refused = !self.0.is_empty() && unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) } != 0;
        if refused { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
