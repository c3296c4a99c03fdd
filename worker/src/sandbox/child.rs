//! The child between its birth and `execve`: enters the sandbox step by step.
//!
//! Until then it runs in the worker's memory, beside the worker's threads: it only makes system calls, past the C library, and writes to
//! nothing but its own stack. No allocation, no lock, no panic, no `errno`. All it needs lies in the [`Plan`]. Each failure is reported
//! by number over the report pipe, never on the log.
#![allow(unsafe_code)]

use std::ffi::CStr;

use libc::{c_int, c_long, c_uint, c_ulong};

use super::attributes::{self, MountAttributes, SEALED, WRITABLE};
use super::plan::{Bind, Birth, Plan};
use super::steps::{Report, Step};
use super::{networks, raw};

type Done = Result<(), c_int>;
type Act = fn(&Plan) -> Done;

/// User of a build, as it sees itself.
pub(super) const UID: u32 = 1000;
/// Group of a build, as it sees itself.
pub(super) const GID: u32 = 100;

/// Runs in the child; never returns. `extern "C"` turns a panic, which cannot happen, into an abort instead of an unwinding into the
/// parent's frames.
pub(super) extern "C" fn enter(plan: &Plan) -> ! {
    let failed = steps(plan);
    // Best effort: without the pipe there is nobody to tell.
    let _ = tell(plan, failed);
    loop {
        // Ends this process without running anything of the parent's; does not return.
        let _ = call1(libc::SYS_exit_group, 127);
    }
}

/// Goes through the steps and returns the one that failed.
fn steps(plan: &Plan) -> Report {
    let table: [(Step, Act); 26] = [
        (Step::ControlGroup, enter_groups),
        (Step::Await, await_maps),
        (Step::ControlGroupNamespace, |_| call1(libc::SYS_unshare, c_long::from(libc::CLONE_NEWCGROUP))),
        (Step::UserNamespaces, forbid_user_namespaces),
        (Step::HostName, set_names),
        (Step::Loopback, raise_loopback),
        (Step::Routes, set_routes),
        (Step::Private, make_private),
        (Step::Root, |_| Ok(())),
        (Step::MountProc, |plan| mount(c"proc", &plan.new_mounts.proc, libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, c"")),
        (Step::MountSys, mount_sys),
        (Step::MountShm, |plan| mount(c"tmpfs", &plan.new_mounts.shm, libc::MS_NOSUID | libc::MS_NODEV, c"size=50%,mode=1777")),
        (Step::MountPts, |plan| {
            mount(c"devpts", &plan.new_mounts.pts, libc::MS_NOSUID | libc::MS_NOEXEC, c"newinstance,mode=0620,ptmxmode=0666")
        }),
        (Step::Pivot, pivot),
        (Step::Detach, |_| detach()),
        (Step::Session, |_| call0(libc::SYS_setsid)),
        (Step::Descriptors, arrange_descriptors),
        (Step::CoreLimit, |_| soft_limit(libc::RLIMIT_CORE, 0)),
        (Step::ProcessLimit, |plan| plan.processes_max.map_or(Ok(()), |most| soft_limit(libc::RLIMIT_NPROC, most))),
        (Step::Personality, |plan| call1(libc::SYS_personality, plan.personality.cast_signed())),
        (Step::WorkingDirectory, |_| call1(libc::SYS_chdir, pointer(c"/build"))),
        (Step::User, become_build_user),
        (Step::DeathSignal, |_| die_with_parent()),
        (Step::Keyring, |_| leave_keyring()),
        (Step::Capabilities, drop_capabilities),
        (Step::Privileges, |_| call5(libc::SYS_prctl, [c_long::from(libc::PR_SET_NO_NEW_PRIVS), 1, 0, 0, 0])),
    ];
    for (step, act) in table {
        let done = if step == Step::Root { mount_tree(plan) } else { act(plan).map_err(|errno| (step, 0, errno)) };
        if let Err((step, index, errno)) = done {
            return Report { step: step as u32, index, errno };
        }
    }
    execute(plan)
}

/// The last steps: everything after the filter must be on its list of allowed calls.
fn execute(plan: &Plan) -> Report {
    scope_abstract_sockets();
    let fail = |step: Step, errno| Report { step: step as u32, index: 0, errno };
    if let Err(errno) = load_filter(plan) {
        return fail(Step::Filter, errno);
    }
    // The parent died between the change of user, which forgets the death signal, and its renewal if nobody reads this.
    if let Err(errno) = tell(plan, Report { step: Step::Ready as u32, index: 0, errno: 0 }) {
        return fail(Step::Ready, errno);
    }
    unblock_signals();
    match call3(libc::SYS_execve, [pointer(&plan.builder), plan.argv() as c_long, plan.envp() as c_long]) {
        // It does not come back from success.
        Ok(()) => fail(Step::Execute, 0),
        Err(errno) => fail(Step::Execute, errno),
    }
}

fn tell(plan: &Plan, report: Report) -> Done {
    let bytes = report.to_bytes();
    call3(libc::SYS_write, [c_long::from(plan.descriptors.report), bytes.as_ptr() as c_long, bytes.len() as c_long])
}

/// First of all, so that everything else counts against the build's limits, and the parent's end of the pipes is the only one.
fn enter_groups(plan: &Plan) -> Done {
    default_signals();
    die_with_parent()?;
    plan.descriptors.parents.iter().try_for_each(|end| call1(libc::SYS_close, c_long::from(*end)))?;
    plan.entrances.iter().try_for_each(|entrance| call3(libc::SYS_write, [c_long::from(*entrance), pointer(c"0"), 1]))
}

fn await_maps(plan: &Plan) -> Done {
    let mut byte = 0_u8;
    match value3(libc::SYS_read, [c_long::from(plan.descriptors.go), (&raw mut byte) as c_long, 1])? {
        // The parent ended, or gave up, before it wrote the maps.
        0 => Err(libc::EPIPE),
        _ => Ok(()),
    }
}

/// Ignored signals stay ignored over `execve`; the worker ignores SIGPIPE, and a build must not. By bare system call, because the C
/// library does not let its own two signals be reset, which whoever started the worker may have ignored.
fn default_signals() {
    // The kernel's `struct sigaction`: handler (0 is the default), flags, restorer, mask.
    let default = [0_u64; 4];
    for signal in 1..65 {
        // SIGKILL and SIGSTOP refuse, which is fine.
        let _ = call5(libc::SYS_rt_sigaction, [signal, default.as_ptr() as c_long, 0, 8, 0]);
    }
}

fn unblock_signals() {
    let none = 0_u64;
    let _ = call5(libc::SYS_rt_sigprocmask, [c_long::from(libc::SIG_SETMASK), (&raw const none) as c_long, 0, 8, 0]);
}

/// Writes 0 to the limit of the user namespace that the build lives in; the build cannot raise it again.
fn forbid_user_namespaces(plan: &Plan) -> Done {
    if plan.keeps_rights {
        return Ok(());
    }
    let file = c"/proc/sys/user/max_user_namespaces";
    let fd = value3(libc::SYS_open, [pointer(file), c_long::from(libc::O_WRONLY | libc::O_CLOEXEC), 0])?;
    call3(libc::SYS_write, [fd, pointer(c"0"), 1])?;
    call1(libc::SYS_close, fd)
}

fn set_names(_: &Plan) -> Done {
    let (host, domain) = (c"localhost", c"(none)");
    call2(libc::SYS_sethostname, [pointer(host), host.count_bytes() as c_long])?;
    call2(libc::SYS_setdomainname, [pointer(domain), domain.count_bytes() as c_long])
}

fn raise_loopback(plan: &Plan) -> Done {
    if plan.network != Birth::New {
        return Ok(());
    }
    let socket = value3(libc::SYS_socket, [c_long::from(libc::AF_INET), c_long::from(libc::SOCK_DGRAM | libc::SOCK_CLOEXEC), 0])?;
    let request = networks::loopback_up();
    call3(libc::SYS_ioctl, [socket, libc::SIOCSIFFLAGS.cast_signed(), (&raw const request) as c_long])?;
    call1(libc::SYS_close, socket)
}

/// Sends each request and waits for its answer. The build can change none of them: it has no right over its namespaces.
fn set_routes(plan: &Plan) -> Done {
    if plan.routes.is_empty() {
        return Ok(());
    }
    let kind = c_long::from(libc::SOCK_RAW | libc::SOCK_CLOEXEC);
    let socket = value3(libc::SYS_socket, [c_long::from(libc::AF_NETLINK), kind, c_long::from(libc::NETLINK_ROUTE)])?;
    for route in &plan.routes {
        call3(libc::SYS_write, [socket, route.as_ptr() as c_long, route.len() as c_long])?;
        let mut answer = [0_u32; 64];
        value3(libc::SYS_read, [socket, answer.as_mut_ptr() as c_long, size_of_val(&answer) as c_long])?;
        // Behind the header of four words stands the error number, negated, or zero.
        match answer[4].cast_signed() {
            0 => {}
            error => return Err(-error),
        }
    }
    call1(libc::SYS_close, socket)
}

fn make_private(_: &Plan) -> Done {
    call5(libc::SYS_mount, [0, pointer(c"/"), 0, (libc::MS_REC | libc::MS_PRIVATE).cast_signed(), 0])
}

/// Most directories that a build may write beside the store: `/build` and `/tmp`.
const WRITABLE_MAX: usize = 2;

/// Mounts the root file system, in it what the build may write, the store with its inputs and the shell, then the devices. All of it is
/// nosuid and nodev but the devices; inputs and shell are read-only.
///
/// The root itself, of which the build can write nothing, is never asked to be read-only, not even for a moment: the kernel refuses
/// that while a child of another thread still has a copy of a descriptor that the skeleton was filled through.
fn mount_tree(plan: &Plan) -> Result<(), (Step, u32, c_int)> {
    let at = |step: Step, index: usize| move |errno| (step, u32::try_from(index).unwrap_or(u32::MAX), errno);
    let root = c_long::from(plan.root.mount);
    // Taken before the root hides them. Zero is no descriptor of ours.
    let mut writable = [0; WRITABLE_MAX];
    for (index, (tree, bind)) in writable.iter_mut().zip(&plan.root.writable).enumerate() {
        *tree = clone_tree(&bind.source, &WRITABLE).map_err(at(Step::BindWritable, index))?;
    }
    move_tree(root, c_long::from(libc::AT_FDCWD), &plan.root.point).map_err(at(Step::Root, 0))?;
    for (index, (tree, bind)) in writable.iter().zip(&plan.root.writable).enumerate() {
        move_tree(*tree, root, &bind.target).map_err(at(Step::BindWritable, index))?;
    }
    // The store after `/tmp`, below which it may lie.
    move_tree(c_long::from(plan.root.store), root, &plan.root.store_at).map_err(at(Step::MountStore, 0))?;
    mount_bind(root, &plan.shell, Some(&SEALED)).map_err(at(Step::BindShell, 0))?;
    for (index, bind) in plan.devices.iter().enumerate() {
        mount_bind(root, bind, None).map_err(at(Step::BindDevice, index))?;
    }
    call1(libc::SYS_fchdir, root).map_err(at(Step::Pivot, 0))
}

fn mount_bind(root: c_long, bind: &Bind, attributes: Option<&MountAttributes>) -> Done {
    let tree = clone_tree(&bind.source, attributes)?;
    move_tree(tree, root, &bind.target)?;
    call1(libc::SYS_close, tree)
}

fn clone_tree<'a>(source: &CStr, attributes: impl Into<Option<&'a MountAttributes>>) -> Result<c_long, c_int> {
    const OPEN_TREE_CLONE: c_long = 1;
    let flags = OPEN_TREE_CLONE | c_long::from(libc::O_CLOEXEC | libc::AT_SYMLINK_NOFOLLOW);
    let tree = value3(libc::SYS_open_tree, [c_long::from(libc::AT_FDCWD), pointer(source), flags])?;
    match attributes.into() {
        Some(attributes) => call5(libc::SYS_mount_setattr, attributes::arguments(tree, attributes)).map(|()| tree),
        None => Ok(tree),
    }
}

fn move_tree(tree: c_long, dir: c_long, target: &CStr) -> Done {
    const MOVE_MOUNT_F_EMPTY_PATH: c_long = 4;
    call5(libc::SYS_move_mount, [tree, pointer(c""), dir, pointer(target), MOVE_MOUNT_F_EMPTY_PATH])
}

fn mount(kind: &CStr, target: &CStr, flags: c_ulong, options: &CStr) -> Done {
    call5(libc::SYS_mount, [pointer(kind), pointer(target), pointer(kind), flags.cast_signed(), pointer(options)])
}

/// While the host's is still there: the kernel shows no more of it than the host does.
fn mount_sys(plan: &Plan) -> Done {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    plan.new_mounts.sys.as_ref().map_or(Ok(()), |target| mount(c"sysfs", target, flags, c""))
}

/// Puts the new root over the old one; the old one ends on top of the same directory and is detached next.
fn pivot(_: &Plan) -> Done {
    call2(libc::SYS_pivot_root, [pointer(c"."), pointer(c".")])
}

fn detach() -> Done {
    call2(libc::SYS_umount2, [pointer(c"."), c_long::from(libc::MNT_DETACH)])?;
    call1(libc::SYS_chdir, pointer(c"/"))
}

fn arrange_descriptors(plan: &Plan) -> Done {
    const CLOSE_RANGE_CLOEXEC: c_long = 4;
    let log = c_long::from(plan.descriptors.log);
    for (from, to) in [(c_long::from(plan.descriptors.null), 0), (log, 1), (log, 2)] {
        call2(libc::SYS_dup2, [from, to])?;
    }
    // Not closed at once: the report pipe is needed until the builder runs.
    call3(libc::SYS_close_range, [3, c_long::from(c_uint::MAX), CLOSE_RANGE_CLOEXEC])?;
    call1(libc::SYS_umask, 0o022)
}

fn soft_limit(resource: libc::__rlimit_resource_t, soft: u64) -> Done {
    let resource = c_long::from(resource);
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    call5(libc::SYS_prlimit64, [0, resource, 0, (&raw mut limit) as c_long, 0])?;
    limit.rlim_cur = soft.min(limit.rlim_max);
    call5(libc::SYS_prlimit64, [0, resource, (&raw const limit) as c_long, 0, 0])
}

fn become_build_user(plan: &Plan) -> Done {
    call3(libc::SYS_setresgid, [c_long::from(plan.gid); 3])?;
    call3(libc::SYS_setresuid, [c_long::from(plan.uid); 3])
}

/// Forgotten at every change of user, hence called twice.
fn die_with_parent() -> Done {
    call5(libc::SYS_prctl, [c_long::from(libc::PR_SET_PDEATHSIG), c_long::from(libc::SIGKILL), 0, 0, 0])
}

fn leave_keyring() -> Done {
    const KEYCTL_JOIN_SESSION_KEYRING: c_long = 1;
    match call2(libc::SYS_keyctl, [KEYCTL_JOIN_SESSION_KEYRING, 0]) {
        // A kernel without keyrings has none to leave.
        Err(libc::ENOSYS) => Ok(()),
        other => other,
    }
}

/// The user has no right in its namespace, but the change to it from an unmapped user leaves the sets filled until `execve`.
fn drop_capabilities(plan: &Plan) -> Done {
    if plan.keeps_rights {
        return Ok(());
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let none = [0_u32; 6];
    call2(libc::SYS_capset, [header.as_ptr() as c_long, none.as_ptr() as c_long])
}

/// Keeps a build that shares the host's network namespace from connecting to abstract sockets outside. Best effort, for kernels
/// that have Landlock's sixth version; others answer with an error and nothing is changed.
fn scope_abstract_sockets() {
    const SYS_LANDLOCK_CREATE_RULESET: c_long = 444;
    const SYS_LANDLOCK_RESTRICT_SELF: c_long = 446;
    const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1;
    let attributes: [u64; 3] = [0, 0, SCOPE_ABSTRACT_UNIX_SOCKET];
    if let Ok(ruleset) = value3(SYS_LANDLOCK_CREATE_RULESET, [attributes.as_ptr() as c_long, size_of_val(&attributes) as c_long, 0]) {
        let _ = call2(SYS_LANDLOCK_RESTRICT_SELF, [ruleset, 0]);
    }
}

fn load_filter(plan: &Plan) -> Done {
    const SECCOMP_SET_MODE_FILTER: c_long = 1;
    let program = libc::sock_fprog { len: u16::try_from(plan.filter.len()).unwrap_or(0), filter: plan.filter.as_ptr().cast_mut() };
    call3(libc::SYS_seccomp, [SECCOMP_SET_MODE_FILTER, 0, (&raw const program) as c_long])
}

fn pointer(text: &CStr) -> c_long {
    text.as_ptr() as c_long
}

fn call0(number: c_long) -> Done {
    call5(number, [0; 5])
}

fn call1(number: c_long, argument: c_long) -> Done {
    call5(number, [argument, 0, 0, 0, 0])
}

fn call2(number: c_long, [a, b]: [c_long; 2]) -> Done {
    call5(number, [a, b, 0, 0, 0])
}

fn call3(number: c_long, [a, b, c]: [c_long; 3]) -> Done {
    call5(number, [a, b, c, 0, 0])
}

fn call5(number: c_long, arguments: [c_long; 5]) -> Done {
    value(number, arguments).map(|_| ())
}

fn value3(number: c_long, [a, b, c]: [c_long; 3]) -> Result<c_long, c_int> {
    value(number, [a, b, c, 0, 0])
}

/// One system call. The callers above pass pointers only to things that live through the call.
fn value(number: c_long, arguments: [c_long; 5]) -> Result<c_long, c_int> {
    // SAFETY: every caller in this module passes the arguments that the call of this number takes, and buffers of the length given.
    unsafe { raw::call(number, arguments) }
}
