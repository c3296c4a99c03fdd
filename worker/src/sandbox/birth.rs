//! Birth and death of the child: `clone3` with every namespace at once, and the wait for its end.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::time::Duration;

use super::plan::{Birth, Plan};
use super::{Status, child, raw};

/// A child that was not reaped yet. Dropping it kills and reaps it, and with it its whole process id namespace.
///
/// It shares the worker's memory until it executes the builder: copying hundreds of mebibytes' page tables, and the page faults of
/// every thread afterwards, cost more than the whole sandbox. Until then it reads the plan, hence the borrow.
pub(super) struct Child<'plan> {
    pid: libc::pid_t,
    pidfd: OwnedFd,
    reaped: bool,
    stack: ManuallyDrop<Stack>,
    _plan: PhantomData<&'plan Plan>,
}

/// What the kernel told when a child was reaped.
pub(super) struct Reaped {
    pub status: Status,
    /// Processor time of the child and of those it waited for.
    pub cpu: Duration,
    /// Highest resident memory of one process.
    pub memory_peak_bytes: u64,
}

impl<'plan> Child<'plan> {
    /// Makes the child, which enters its control groups and then waits for its id maps.
    ///
    /// The calling thread must outlive the child: its end is the child's death.
    pub(super) fn new(plan: &'plan Plan, birthplace: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let stack = Stack::new()?;
        let mut pidfd: libc::c_int = -1;
        let mut flags = libc::CLONE_VM
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | libc::CLONE_PIDFD;
        if plan.network == Birth::New {
            flags |= libc::CLONE_NEWNET;
        }
        // SAFETY: all-zero is a valid set of arguments: no thread-local storage, no signal at its end.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.flags = u64::from(flags.cast_unsigned());
        arguments.pidfd = (&raw mut pidfd) as u64;
        arguments.stack = stack.start as u64;
        arguments.stack_size = STACK_BYTES as u64;
        if let Some(group) = birthplace {
            arguments.flags |= CLONE_INTO_CGROUP;
            arguments.cgroup = u64::from(group.as_raw_fd().cast_unsigned());
        }
        let groups = Groups::set_aside()?;
        let unblocked = block_signals();
        // SAFETY: memory is shared; the stack lives in the child's handle and the plan is borrowed by it, and the handle outlives the
        // child; `enter` makes bare system calls only.
        let pid = unsafe { raw::clone3(&mut arguments, child::enter, plan) };
        // They were this thread's a moment ago, and the right to set them is unchanged.
        let _ = groups.restore();
        restore_signals(unblocked);
        // SAFETY: the kernel has just put this descriptor there, and nobody else knows it.
        let adopt = |pid| Self {
            pid,
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
            reaped: false,
            stack: ManuallyDrop::new(stack),
            _plan: PhantomData,
        };
        pid.map(adopt)
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

    /// Returns the bytes that the processes of the namespace wrote to files on a disk, written back or not, once the child has ended and
    /// before it is reaped; none if the kernel does not count them. Those whose parent did not wait for them are not among them.
    pub(super) fn file_write_bytes(&self) -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/io", self.pid)).ok()?;
        let field = |name| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        // What was deleted before it was written back was written all the same.
        field("write_bytes:")
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

impl Drop for Child<'_> {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            if self.reap().is_err() {
                // It may still run, on a stack that nobody else must get.
                return;
            }
        }
        // SAFETY: nobody else drops it, and its user is gone.
        unsafe { ManuallyDrop::drop(&mut self.stack) };
    }
}

/// The stack of a child between its birth and `execve`. What lies below it faults.
struct Stack {
    start: *mut libc::c_void,
}

/// The steps use a few kibibytes, most of it in a build without optimisation.
const STACK_BYTES: usize = 128 << 10;
/// At least a page of every processor that we run on.
const GUARD_BYTES: usize = 64 << 10;

impl Stack {
    fn new() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        // SAFETY: a fresh mapping, of which the part above the guard becomes accessible.
        unsafe {
            let mapping = libc::mmap(std::ptr::null_mut(), GUARD_BYTES + STACK_BYTES, libc::PROT_NONE, flags, -1, 0);
            if mapping == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let stack = Self { start: mapping.byte_add(GUARD_BYTES) };
            if libc::mprotect(stack.start, STACK_BYTES, libc::PROT_READ | libc::PROT_WRITE) == 0 {
                Ok(stack)
            } else {
                Err(io::Error::last_os_error())
            }
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, which nobody uses any more. It can only fail for a mapping that is none.
        unsafe { libc::munmap(self.start.byte_sub(GUARD_BYTES), GUARD_BYTES + STACK_BYTES) };
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

/// No handler of the worker may run in the child, the C library's own two included, hence the bare call. Returns what was blocked.
fn block_signals() -> u64 {
    let mut before = 0;
    change_signals(u64::MAX, &mut before);
    before
}

fn restore_signals(before: u64) {
    change_signals(before, &mut 0);
}

fn change_signals(blocked: u64, before: &mut u64) {
    let arguments = [
        libc::c_long::from(libc::SIG_SETMASK),
        (&raw const blocked) as libc::c_long,
        std::ptr::from_mut(before) as libc::c_long,
        size_of::<u64>() as libc::c_long,
        0,
    ];
    // SAFETY: reads and writes the two sets, whose size is told. With valid arguments it cannot fail.
    let _ = unsafe { raw::call(libc::SYS_rt_sigprocmask, arguments) };
}

/// Whether this process is in a user namespace that denies `setgroups`.
fn groups_are_fixed() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|word| word.trim() == "deny")
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
        match set_aside.set(&[]) {
            // A launcher without root, and without an id for each build, is in a namespace that lets nobody give up a group. What its builds
            // see of the machine, inputs and devices, is nobody's group's.
            Err(err) if err.raw_os_error() == Some(libc::EPERM) && groups_are_fixed() => Ok(Self(Vec::new())),
            other => other.map(|()| set_aside),
        }
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
