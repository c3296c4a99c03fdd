//! Measures what one sandbox costs, from an empty directory to a reaped builder. `ops/prove/sandbox-cost` runs it beside others.
//!
//! `sandbox_cost COUNT ROUNDS GROUPS DRIFT PROGRAM DIR`: the inputs are COUNT of the directories in DIR; GROUPS is `all` or `none`; from one
//! round to the next DRIFT inputs are others. Prints a JSON object, medians in milliseconds: `cpu_ms` is all that this process and its children
//! used, but for `ahead_ms`: what the thread took that makes network namespaces for builds to come. `launcher_ms` is the part of the launching
//! thread, `child_ms` that of the build's processes, `wall_ms` how long the launching thread took. Needs root.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_wire::{StoreDir, StorePath};
use kiln_worker::cgroup::{self, Cgroups};
use kiln_worker::sandbox::disk::{self, Disk};
use kiln_worker::sandbox::{Cancel, HostId, Limits, Network, Spec, run};
use nix::sys::resource::{UsageWho, getrusage};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Rounds that are not counted: the first ones fill what later ones find.
const WARM_UP: usize = 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [count, rounds, groups, drift, program, inputs_dir] = arguments.as_slice() else {
        return Err("usage: sandbox_cost COUNT ROUNDS GROUPS DRIFT PROGRAM DIR".into());
    };
    let (count, rounds, drift): (usize, usize, usize) = (count.parse()?, rounds.parse()?, drift.parse()?);
    let dir = tempfile::tempdir_in(Path::new(inputs_dir).parent().ok_or("the inputs lie in no directory")?)?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700))?;
    let cgroups = if groups == "all" { Cgroups::detect(&format!("cost-{}", std::process::id()))? } else { Cgroups::none() };
    let all = inputs(Path::new(inputs_dir), count + drift * (WARM_UP + rounds), Path::new(program))?;
    // Neither making nor removing the directories of a build belongs to its sandbox.
    let specs = (0..WARM_UP + rounds).map(|round| {
        let root_dir = dir.path().join(format!("root-{round}"));
        let inputs = all[..1].iter().chain(&all[1 + drift * round..][..count]).cloned().collect();
        fs::create_dir(&root_dir).map(|()| spec(root_dir, inputs))
    });
    let specs: Vec<Spec> = specs.collect::<Result<_, _>>()?;
    let disk = Disk::open(disk::Choice::Auto, dir.path(), disk::Limits { bytes_max: 1 << 40, inodes_max: 1 << 30 }, 0)?;
    let mut costs = Vec::with_capacity(rounds);
    for spec in &specs {
        costs.push(measure(spec, &cgroups, &disk)?);
    }
    costs.drain(..WARM_UP);
    if groups == "all" {
        cgroups.remove_home()?;
    }
    let median = |of: fn(&Cost) -> Duration| {
        let mut values: Vec<Duration> = costs.iter().map(of).collect();
        values.sort();
        values[rounds / 2].as_secs_f64() * 1e3
    };
    println!(
        r#"{{"groups": "{}", "cpu_ms": {:.3}, "launcher_ms": {:.3}, "child_ms": {:.3}, "ahead_ms": {:.3}, "wall_ms": {:.3}}}"#,
        cgroups.describe(),
        median(|cost| (cost.process + cost.child).saturating_sub(cost.ahead)),
        median(|cost| cost.launcher),
        median(|cost| cost.child),
        median(|cost| cost.ahead),
        median(|cost| cost.wall),
    );
    Ok(())
}

/// What one round took.
struct Cost {
    process: Duration,
    launcher: Duration,
    child: Duration,
    ahead: Duration,
    wall: Duration,
}

fn measure(spec: &Spec, cgroups: &Cgroups, disk: &Disk) -> Result<Cost, Box<dyn std::error::Error>> {
    let now = || (Instant::now(), clock(ClockId::ProcessCPUTime), clock(ClockId::ThreadCPUTime), children(), ahead());
    let before = now();
    let room = disk.room(&spec.root_dir)?;
    let ended = run(spec, cgroups, &room, &Cancel::new()?, &mut |_| ())?;
    let after = now();
    let cost = Cost {
        wall: after.0 - before.0,
        process: after.1 - before.1,
        launcher: after.2 - before.2,
        child: after.3.saturating_sub(before.3),
        ahead: after.4.saturating_sub(before.4),
    };
    if !ended.succeeded() {
        return Err(format!("the builder failed: {ended:?}").into());
    }
    Ok(cost)
}

fn clock(id: ClockId) -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(id);
    Duration::new(tv_sec.unsigned_abs(), u32::try_from(tv_nsec).unwrap_or(0))
}

/// Of the thread that makes network namespaces, as the scheduler counts it.
fn ahead() -> Duration {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let makers = tasks.filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "kiln-networks"));
    let nanoseconds =
        makers.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok()?.split(' ').next()?.parse::<u64>().ok());
    Duration::from_nanos(nanoseconds.sum())
}

/// Of all children that were waited for.
fn children() -> Duration {
    let time = |time: nix::sys::time::TimeVal| Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()).unsigned_abs());
    getrusage(UsageWho::RUSAGE_CHILDREN).map(|usage| time(usage.user_time()) + time(usage.system_time())).unwrap_or_default()
}

/// The program first, then the directories. The names start as differently as hashes do.
fn inputs(dir: &Path, count: usize, program: &Path) -> std::io::Result<Vec<(StorePath, PathBuf)>> {
    const DIGITS: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let path = |number: usize| {
        let hash = blake3::hash(&number.to_le_bytes());
        let digits: String = hash.as_bytes().iter().map(|byte| char::from(DIGITS[usize::from(byte % 32)])).collect();
        StorePath::parse(&format!("{digits}-input-{number}")).map_err(std::io::Error::other)
    };
    let program_name = StorePath::parse(PROGRAM).map_err(std::io::Error::other)?;
    let numbered = (0..count).map(|number| Ok((path(number)?, dir.join(number.to_string()))));
    std::iter::once(Ok((program_name, program.to_owned()))).chain(numbered).collect()
}

const PROGRAM: &str = "0hm2f1psjpcwg8fijsmr4wwxrx59s092-program";

fn spec(root_dir: PathBuf, inputs: Vec<(StorePath, PathBuf)>) -> Spec {
    let hour = Duration::from_secs(3600);
    Spec {
        name: "cost".to_owned(),
        root_dir,
        store_dir: StoreDir::default(),
        system: "x86_64-linux".to_owned(),
        builder: format!("/nix/store/{PROGRAM}").into_bytes(),
        args: Vec::new(),
        env: Vec::new(),
        files: Vec::new(),
        inputs,
        network: Network::Loopback,
        host_id: HostId::of_slot(1023),
        shell: PathBuf::from("/bin/busybox"),
        dev_kvm: false,
        resources: cgroup::Policy { memory_mib: 1024, swap_bytes_max: 0, pids_max: 1024, cpu_quota: false }
            .of(kiln_wire::Resources::default()),
        limits: Limits { wall: hour, silence: hour, log_bytes: 1 << 20 },
    }
}
