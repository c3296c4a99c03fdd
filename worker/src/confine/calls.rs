//! Which system calls a worker may make: those that files, sockets, threads and clocks need. Everything else answers ENOSYS, as on a
//! kernel that does not have it, so that libraries fall back: programs cannot be executed, processes not forked, nothing mounted, traced
//! or loaded, no kernel facility be reached that was invented since.

use std::collections::BTreeMap;
use std::io;

use libc::{c_int, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

/// Files of the worker's own user.
const FILES: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_chdir,
    libc::SYS_chmod,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_flock,
    libc::SYS_fremovexattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_lchown,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_lstat,
    libc::SYS_memfd_create,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pipe,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_rmdir,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_stat,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_umask,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Sockets; of which families is said by [`FAMILIES`].
const SOCKETS: &[c_long] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

/// Memory, threads, waiting, clocks, and questions about the process itself.
const PROCESS: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mincore,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_prlimit64,
    libc::SYS_pselect6,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_select,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_tgkill,
    libc::SYS_time,
    libc::SYS_uname,
    // For the launcher's end.
    libc::SYS_wait4,
    libc::SYS_waitid,
];

/// Families of sockets that reach the farm. None of the machine's own (`AF_UNIX`): a service manager or a container engine that listens on
/// a path would run programs for the worker, and Landlock does not keep anybody from connecting. Lookups of names by such services fall
/// back to files and DNS.
const FAMILIES: [c_int; 2] = [libc::AF_INET, libc::AF_INET6];
/// `FIONBIO`, `FIONREAD`, `FIOCLEX`, and what asks whether standard error is a terminal.
const IOCTLS: [u64; 5] = [0x5421, 0x541b, 0x5451, 0x5401, 0x5413];
/// `PR_SET_NAME`, and `PR_SET_VMA`, by which the C library names its memory.
const PRCTLS: [u64; 2] = [15, 0x5356_4d41];

/// Restricts this thread and those that it starts.
pub(super) fn restrict() -> io::Result<()> {
    apply_filter(&program()?).map_err(io::Error::other)
}

fn program() -> io::Result<BpfProgram> {
    let refuse = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules()?, refuse, SeccompAction::Allow, arch).map_err(io::Error::other)?;
    BpfProgram::try_from(filter).map_err(io::Error::other)
}

fn rules() -> io::Result<BTreeMap<c_long, Vec<SeccompRule>>> {
    let mut rules: BTreeMap<_, _> = [FILES, SOCKETS, PROCESS].into_iter().flatten().map(|call| (*call, Vec::new())).collect();
    let number = |value: c_int| u64::from(value.cast_unsigned());
    let mut sockets = one_of(0, &FAMILIES.map(number))?;
    // Name lookups ask which addresses the machine has.
    sockets.push(
        SeccompRule::new(vec![equals(0, number(libc::AF_NETLINK))?, equals(2, number(libc::NETLINK_ROUTE))?]).map_err(io::Error::other)?,
    );
    rules.insert(libc::SYS_socket, sockets);
    // Pairs, such as those to the launcher, reach nobody else.
    rules.insert(libc::SYS_socketpair, one_of(0, &[number(libc::AF_UNIX)])?);
    rules.insert(libc::SYS_ioctl, one_of(1, &IOCTLS)?);
    rules.insert(libc::SYS_prctl, one_of(0, &PRCTLS)?);
    // A thread, not a process. `clone3`, whose flags lie behind a pointer, is refused: the C library falls back to this.
    let threads = u64::from(libc::CLONE_THREAD.cast_unsigned());
    let thread = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(threads), threads).map_err(io::Error::other)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![thread]).map_err(io::Error::other)?]);
    Ok(rules)
}

fn one_of(argument: u8, values: &[u64]) -> io::Result<Vec<SeccompRule>> {
    values.iter().map(|value| SeccompRule::new(vec![equals(argument, *value)?]).map_err(io::Error::other)).collect()
}

fn equals(argument: u8, value: u64) -> io::Result<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::ToSocketAddrs as _;
    use std::process::Command;
    use std::thread;

    use nix::errno::Errno;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

    use super::*;

    /// Does `work` in a thread that has the worker's calls only.
    fn restricted<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            nix::sys::prctl::set_no_new_privs().expect("any process may");
            restrict().expect("a kernel with seccomp");
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join().expect("no panic"))
    }

    #[test]
    fn what_a_worker_has_no_use_for_answers_as_if_the_kernel_lacked_it() {
        let found = restricted(|| {
            let mount = nix::mount::mount(None::<&str>, "/", None::<&str>, nix::mount::MsFlags::MS_REMOUNT, None::<&str>);
            let of_thread = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUTS);
            let local = std::os::unix::net::UnixStream::connect("/run/systemd/private").map(drop);
            let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).map(drop);
            let signal = nix::sys::signal::kill(nix::unistd::Pid::this(), None);
            let root = nix::unistd::chroot("/");
            let name = nix::unistd::sethostname("x");
            let process = Command::new("/bin/true").spawn().map(drop);
            ([mount, of_thread, raw, signal, root, name], local, process)
        });
        assert_eq!(found.0, [Err(Errno::ENOSYS); 6]);
        assert_eq!(found.1.expect_err("no service of the machine is reached").raw_os_error(), Some(libc::ENOSYS));
        assert_eq!(found.2.expect_err("no process is started").raw_os_error(), Some(libc::ENOSYS));
    }

    #[test]
    fn what_a_worker_does_goes_on() {
        let dir = tempfile::tempdir().expect("temporary directory");
        restricted(|| {
            let file = dir.path().join("file");
            fs::write(&file, "x").expect("write");
            fs::rename(&file, dir.path().join("moved")).expect("rename");
            assert_eq!(thread::spawn(|| 7).join().expect("a thread"), 7);
            assert!(("localhost", 80).to_socket_addrs().expect("resolve").next().is_some());
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
            let address = listener.local_addr().expect("address");
            std::net::TcpStream::connect(address).expect("connect");
            assert!(std::os::unix::net::UnixStream::pair().is_ok());
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
            assert_eq!(runtime.block_on(async { tokio::spawn(async { 8 }).await.expect("a task") }), 8);
        });
    }
}
