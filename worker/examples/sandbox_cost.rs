//! Prints what one sandbox costs from an empty directory to a reaped `busybox true`, with no inputs and with a hundred.
//! Needs root and `/bin/busybox`. `cargo run --release -p kiln-worker --example sandbox_cost`

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_wire::{StoreDir, StorePath};
use kiln_worker::cgroup::{self, Cgroups};
use kiln_worker::sandbox::disk::{self, Disk};
use kiln_worker::sandbox::{Cancel, HostId, Limits, Network, Spec, run};
use rustix::time::{ClockId, Timespec, clock_gettime};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700))?;
    let cgroups = Cgroups::detect("cost")?;
    let disk = Disk::open(disk::Choice::Auto, dir.path(), disk::Limits { bytes_max: 1 << 40, inodes_max: 1 << 30 }, 0)?;
    println!("control groups: {}; disk: {}", cgroups.describe(), disk.describe());
    for (count, groups) in [(0, &Cgroups::none()), (0, &cgroups), (100, &cgroups), (100, &Cgroups::none())] {
        let inputs = inputs(dir.path(), count)?;
        let mut cpu = Vec::new();
        let mut wall = Vec::new();
        for round in 0..100 {
            let root_dir = dir.path().join(format!("root-{count}-{round}"));
            fs::create_dir(&root_dir)?;
            let spec = spec(root_dir, inputs.clone());
            let (start, before) = (Instant::now(), cpu_time());
            let room = disk.room(&spec.root_dir)?;
            let ended = run(&spec, groups, &room, &Cancel::new()?, &mut |_| ())?;
            wall.push(start.elapsed());
            cpu.push(cpu_time().saturating_sub(before));
            assert!(ended.succeeded(), "{ended:?}");
            fs::remove_dir_all(&spec.root_dir)?;
        }
        cpu.sort();
        wall.sort();
        println!(
            "{count:3} inputs, groups {:6}: CPU of the launcher {:.2} ms median, wall {:.2} ms median, {:.2} ms least",
            if groups.mode() == cgroup::Mode::None { "none" } else { "all" },
            cpu[50].as_secs_f64() * 1e3,
            wall[50].as_secs_f64() * 1e3,
            wall[0].as_secs_f64() * 1e3
        );
    }
    cgroups.remove_home()?;
    let usage = resource_usage();
    println!("processor time of all reaped children: {:.2} ms per sandbox", usage.as_secs_f64() * 1e3 / 400.0);
    Ok(())
}

fn cpu_time() -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(tv_sec.unsigned_abs(), u32::try_from(tv_nsec).unwrap_or(0))
}

/// Of all children that were waited for, from the kernel's own account.
fn resource_usage() -> Duration {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = text.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = after_name.split_whitespace().skip(13).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn inputs(dir: &Path, count: usize) -> std::io::Result<Vec<(StorePath, PathBuf)>> {
    (0..count)
        .map(|number| {
            let name = format!("0hm2f1psjpcwg8fijsmr4wwxrx59s092-input-{number}");
            let path = dir.join(&name);
            fs::create_dir_all(&path)?;
            Ok((StorePath::parse(&name).map_err(std::io::Error::other)?, path))
        })
        .collect()
}

fn spec(root_dir: PathBuf, inputs: Vec<(StorePath, PathBuf)>) -> Spec {
    let hour = Duration::from_secs(3600);
    Spec {
        name: "cost".to_owned(),
        root_dir,
        store_dir: StoreDir::default(),
        system: "x86_64-linux".to_owned(),
        builder: b"/bin/sh".to_vec(),
        args: vec![b"-c".to_vec(), b"exit 0".to_vec()],
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
