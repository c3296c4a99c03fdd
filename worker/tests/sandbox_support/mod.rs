//! Runs shell scripts in real sandboxes, for the tests beside this directory. Needs root, namespaces and `/bin/busybox`.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kiln_wire::{StoreDir, StorePath};
use kiln_worker::cgroup::{self, Cgroups};
use kiln_worker::sandbox::disk::{self, Disk};
use kiln_worker::sandbox::{Cancel, Ended, HostId, Limits, Network, Spec, env_pairs, run};

/// A directory for one sandbox, and the specification of a harmless build in it.
pub struct Bench {
    /// What will be run; tests change what they are about.
    pub spec: Spec,
    /// Stops the run.
    pub cancel: Cancel,
    /// Of this test alone.
    pub cgroups: Cgroups,
    /// Holds the build to its part of the disk.
    pub disk: Arc<Disk>,
    dir: tempfile::TempDir,
}

/// A run and its log.
pub struct Ran {
    /// How it ended.
    pub ended: Ended,
    /// Everything it wrote.
    pub log: String,
}

/// Tests run side by side, and no two builds may have one id.
static SLOT: AtomicU32 = AtomicU32::new(0);

/// An input of the benches.
pub const INPUT: &str = "0hm2f1psjpcwg8fijsmr4wwxrx59s092-input";
/// An object of the same store that is no input.
pub const OTHER: &str = "1hm2f1psjpcwg8fijsmr4wwxrx59s092-other";
/// What the benches' builds may use.
const DISK_LIMITS: disk::Limits = disk::Limits { bytes_max: 4 << 30, inodes_max: 100_000 };
const POLICY: cgroup::Policy = cgroup::Policy { memory_mib: 256, swap_bytes_max: 0, pids_max: 64, cpu_quota: false };
/// Where the benches put their output.
pub const OUTPUT: &str = "2hm2f1psjpcwg8fijsmr4wwxrx59s092-output";

impl Bench {
    /// Makes a bench whose builder is a shell that runs `script`.
    pub fn new(script: &str) -> Self {
        assert!(rustix::process::geteuid().is_root(), "the sandbox tests need root");
        let dir = tempfile::tempdir().expect("make a temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).expect("close the temporary directory");
        let (root_dir, store) = (dir.path().join("root"), dir.path().join("store"));
        for dir in [&root_dir, &store, &store.join(INPUT), &store.join(OTHER)] {
            fs::create_dir(dir).unwrap_or_else(|err| panic!("make {}: {err}", dir.display()));
        }
        fs::write(store.join(INPUT).join("file"), "of the input").expect("write the input");
        // No more than a thousand benches are in use at a time.
        let slot = (SLOT.fetch_add(1, Ordering::Relaxed) + std::process::id() % 64 * 16) % 1024;
        let name = format!("test-{}-{slot}", std::process::id());
        let spec = Spec {
            name: name.clone(),
            root_dir,
            store_dir: StoreDir::default(),
            system: "x86_64-linux".to_owned(),
            builder: b"/bin/sh".to_vec(),
            args: vec![b"-c".to_vec(), script.as_bytes().to_vec()],
            env: env_pairs([("out", "/nix/store/2hm2f1psjpcwg8fijsmr4wwxrx59s092-output"), ("HOME", "/homeless-shelter")]),
            files: vec![(b"note".to_vec(), b"for the builder".to_vec())],
            inputs: vec![(StorePath::parse(INPUT).expect("a store path"), store.join(INPUT))],
            network: Network::Loopback,
            host_id: HostId::of_slot(slot),
            shell: PathBuf::from("/bin/busybox"),
            dev_kvm: false,
            resources: POLICY.of(kiln_wire::Resources::default()),
            limits: Limits { wall: Duration::from_secs(60), silence: Duration::from_secs(60), log_bytes: 1 << 20 },
        };
        let cgroups = Cgroups::detect(&name).expect("find the control groups");
        let disk = Arc::new(Disk::open(disk::Choice::Polling, dir.path(), DISK_LIMITS, 0).expect("watch the disk"));
        Self { spec, cancel: Cancel::new().expect("make a cancel handle"), cgroups, disk, dir }
    }

    /// Runs it; the sandbox must stand.
    pub fn run(&self) -> Ran {
        let mut log = Vec::new();
        let ended = self.try_run(&mut |bytes| log.extend_from_slice(bytes)).unwrap_or_else(|err| panic!("{}", chain(&*err)));
        Ran { ended, log: String::from_utf8_lossy(&log).into_owned() }
    }

    /// Runs it, sandbox or not.
    pub fn try_run(&self, log: &mut dyn FnMut(&[u8])) -> Result<Ended, Box<dyn std::error::Error>> {
        let room = self.disk.room(&self.spec.root_dir)?;
        Ok(run(&self.spec, &self.cgroups, &room, &self.cancel, log)?)
    }

    /// A path on the host below the bench's directory.
    pub fn host(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.cgroups.remove_home().expect("remove the control groups of the test");
    }
}

/// Runs `script`, which must succeed, and returns its log.
pub fn output(script: &str) -> String {
    let ran = Bench::new(script).run();
    assert!(ran.ended.succeeded(), "{:?}\n{}", ran.ended, ran.log);
    ran.log
}

/// An error with its causes.
pub fn chain(err: &dyn std::error::Error) -> String {
    std::iter::successors(Some(err), |err| err.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
