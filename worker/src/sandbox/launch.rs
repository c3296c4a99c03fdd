//! One run, from an empty directory to an empty process namespace: the parent's side.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;

use kiln_wire::Usage;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::birth::{Child, Reaped};
use super::disk::{self, Room};
use super::networks::Networks;
use super::plan::{Birth, Descriptors, Plan};
use super::steps::{REPORT_BYTES, Report, Step};
use super::stock::Stock;
use super::tree::Tree;
use super::watch::{Watch, WatchError, Watched};
use super::{Ended, HostId, Network, SandboxError, Spec, Status, Stop, range, tree};
use crate::cgroup::{Cgroups, Group, Used};

pub(super) fn run(
    spec: &Spec,
    cgroups: &Cgroups,
    room: &Room,
    cancel: BorrowedFd<'_>,
    log: &mut dyn FnMut(&[u8]),
) -> Result<Ended, SandboxError> {
    let ahead = ahead().map_err(SandboxError::host("prepare", &spec.root_dir))?;
    let tree = tree::make(spec, &ahead.stock)?;
    let mut group = cgroups.create(&spec.name, &spec.resources)?;
    let ended = range::prepare(spec, &mut group).and_then(|()| in_group(spec, &tree, &group, room, &ahead.networks, cancel, log));
    let removed = group.remove();
    let ended = ended?;
    removed?;
    tree.store.end(spec)?;
    Ok(ended)
}

/// What this process has prepared ahead.
struct Ahead {
    stock: Stock,
    networks: Networks,
}

static AHEAD: OnceLock<Ahead> = OnceLock::new();

/// Opened when the first build wants it.
fn ahead() -> io::Result<&'static Ahead> {
    if let Some(ahead) = AHEAD.get() {
        return Ok(ahead);
    }
    // Of two that come first at once, one throws its own away.
    let ahead = Ahead { stock: Stock::open()?, networks: Networks::open()? };
    Ok(AHEAD.get_or_init(|| ahead))
}

pub(super) fn clear(dir: &Path) {
    AHEAD.get().into_iter().for_each(|ahead| ahead.stock.clear(dir));
}

fn in_group(
    spec: &Spec,
    tree: &Tree,
    group: &Group,
    room: &Room,
    networks: &Networks,
    cancel: BorrowedFd<'_>,
    log: &mut dyn FnMut(&[u8]),
) -> Result<Ended, SandboxError> {
    let failed = |step| SandboxError::host(step, &spec.root_dir);
    let disk = room.watch(group.processes()).map_err(failed("watch the disk of"))?;
    let alarms = group.alarms()?;
    let birthplace = group.birthplace()?;
    let (log_read, log_write) = terminal(spec.host_id).map_err(failed("open a terminal for"))?;
    let go = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from).map_err(failed("open a pipe for"))?;
    let report = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(io::Error::from).map_err(failed("open a pipe for"))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(io::Error::from)
        .map_err(failed("open /dev/null for"))?;
    let entrances = group.entrances()?;
    let descriptors = Descriptors::new(&go, &report, log_write.as_fd(), null.as_fd());
    let processes_max = (!group.limits_pids()).then(|| u64::from(spec.resources.pids_max));
    let (network, birth) = match &spec.network {
        // One that stands ready belongs to the launcher, and its root could neither set it up nor mount /sys.
        Network::Loopback if spec.host_id.is_range() => (None, Birth::New),
        Network::Loopback => networks.take().map_or((None, Birth::New), |network| (Some(network), Birth::Parents)),
        Network::Egress(_) => (None, Birth::New),
        Network::Host => (None, Birth::Parents),
    };
    let plan = Plan::new(spec, tree, descriptors, &entrances, processes_max, birth)?;

    let start = Instant::now();
    let give_birth = || Child::new(&plan, birthplace.as_ref().map(OwnedFd::as_fd));
    let born = match &network {
        Some(network) => networks.within(network, give_birth).flatten(),
        None => give_birth(),
    };
    let mut child = born.map_err(failed("start a process for"))?;
    let ((go_read, go_write), (report_read, report_write)) = (go, report);
    drop((go_read, report_write, log_write, null, network));
    range::map_ids(child.pid(), spec.host_id).map_err(failed("map the ids of"))?;
    let _egress = match &spec.network {
        Network::Loopback | Network::Host => None,
        Network::Egress(egress) => {
            Some(egress.start(child.pid()).map_err(SandboxError::host("start the network through", &egress.program))?)
        }
    };
    rustix::io::write(&go_write, b"1").map_err(io::Error::from).map_err(failed("release the process of"))?;

    let watch = Watch {
        child: &child,
        log: log_read.as_fd(),
        cancel,
        group,
        alarms,
        resources: &spec.resources,
        disk: &disk,
        limits: spec.limits,
        start,
    };
    let watched = watch.until_end(log).map_err(|err| match err {
        WatchError::Io(err) => failed("watch the build in")(err),
        WatchError::Group(err) => err.into(),
    })?;
    let file_write_bytes = child.file_write_bytes();
    let reaped = child.reap().map_err(failed("reap the build in"))?;
    let wall = start.elapsed();
    let status = judge(&plan, &report_read, &reaped, &watched)?;
    let used = group.used();
    let usage = Usage {
        wall_ms: millis(wall),
        cpu_ms: used.cpu_ms.unwrap_or(millis(reaped.cpu)),
        memory_peak_bytes: used.memory_peak_bytes.unwrap_or(reaped.memory_peak_bytes),
        log_bytes: watched.log_bytes,
        cpu_throttled_ms: used.cpu_throttled_ms,
        // Each is too little in its own case: what is not written back yet, and what nobody waited for.
        disk_write_bytes: file_write_bytes.max(used.disk_write_bytes),
    };
    let out_of_memory = used.oom_kills > 0 || watched.out_of_memory;
    let failed_alone = status != Status::Exited(0) && !out_of_memory;
    let stopped = watched.stopped.or_else(|| if failed_alone { blame(spec, used, &disk) } else { None });
    Ok(Ended { status, stopped, out_of_memory, usage })
}

/// A builder may have failed for a limit before we saw that it ran into it.
fn blame(spec: &Spec, used: Used, disk: &disk::Watch) -> Option<Stop> {
    let refused = (used.pids_refused > 0).then_some(Stop::Processes { max: spec.resources.pids_max });
    refused.or_else(|| disk.blame().map(Stop::Disk))
}

/// Tells a builder that ended from a sandbox that never stood, by what the child reported.
fn judge(plan: &Plan, report: &OwnedFd, reaped: &Reaped, watched: &Watched) -> Result<Status, SandboxError> {
    let mut last = None;
    let mut bytes = [0; REPORT_BYTES];
    while rustix::io::read(report, &mut bytes) == Ok(REPORT_BYTES) {
        last = Some(Report::from_bytes(bytes));
    }
    match last.and_then(|report| Step::numbered(report.step).map(|step| (step, report))) {
        Some(((Step::Ready, _), _)) => Ok(reaped.status),
        Some(((Step::Execute, _), report)) => Ok(Status::NotExecuted(report.errno)),
        Some(((step, words), report)) => {
            let err = io::Error::from_raw_os_error(report.errno);
            Err(SandboxError::Inside { step: words, subject: plan.subject(step, report.index), err })
        }
        // Stopped while it was still being set up: the reason stands in `stopped`.
        None if watched.stopped.is_some() => Ok(reaped.status),
        None => Err(SandboxError::Lost { how: format!("{:?}", reaped.status) }),
    }
}

/// Opens a pseudo-terminal in raw mode, as Nix gives to builders: the worker's side and the build's side.
fn terminal(id: HostId) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(&ours, flags)?;
    let mut settings = tcgetattr(&theirs)?;
    settings.make_raw();
    tcsetattr(&theirs, OptionalActions::Now, &settings)?;
    // The build may open it again through /dev/stderr.
    rustix::fs::fchown(&theirs, Some(rustix::fs::Uid::from_raw(id.uid)), None)?;
    rustix::fs::fchmod(&theirs, Mode::from_raw_mode(0o600))?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use kiln_wire::StoreDir;
    use rustix::fs::openat;

    use super::*;
    use crate::cgroup;
    use crate::sandbox::disk::Disk;

    const POLICY: cgroup::Policy = cgroup::Policy { memory_mib: 256, swap_bytes_max: 0, pids_max: 64, cpu_quota: false };

    /// A child that another thread starts meanwhile holds copies of this thread's descriptors until it executes its builder.
    #[test]
    fn a_descriptor_that_somebody_still_holds_does_not_hinder_the_mounts() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).expect("close the temporary directory");
        let root_dir = dir.path().join("root");
        fs::create_dir(&root_dir).expect("mkdir");
        let spec = Spec {
            name: format!("held-{}", std::process::id()),
            root_dir,
            store_dir: StoreDir::default(),
            system: "x86_64-linux".to_owned(),
            builder: b"/bin/sh".to_vec(),
            args: vec![b"-c".to_vec(), b"echo it stands".to_vec()],
            env: Vec::new(),
            files: Vec::new(),
            inputs: Vec::new(),
            network: Network::Loopback,
            host_id: HostId::of_slot(1000),
            shell: "/bin/busybox".into(),
            dev_kvm: false,
            resources: POLICY.of(kiln_wire::Resources::default()),
            limits: crate::sandbox::Limits { wall: Duration::from_secs(60), silence: Duration::from_secs(60), log_bytes: 1 << 20 },
        };
        let limits = disk::Limits { bytes_max: 1 << 30, inodes_max: 1000 };
        let room = Disk::open(disk::Choice::Polling, dir.path(), limits, 0).expect("a disk").room(&spec.root_dir).expect("a room");
        let ahead = ahead().expect("these tests run as root");
        let tree = tree::make(&spec, &ahead.stock).expect("these tests run as root");
        let held = openat(&tree.root, "etc/passwd", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).expect("open for writing");
        let group = Cgroups::none().create(&spec.name, &spec.resources).expect("no group");
        let mut log = Vec::new();
        let cancel = crate::sandbox::Cancel::new().expect("eventfd");
        let ended = in_group(&spec, &tree, &group, &room, &ahead.networks, cancel.as_fd(), &mut |bytes| log.extend_from_slice(bytes));
        assert!(ended.expect("the sandbox stands").succeeded());
        assert_eq!(log, b"it stands\n");
        drop(held);
    }
}
