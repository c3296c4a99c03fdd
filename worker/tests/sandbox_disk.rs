//! What a build may use of the disk, however the worker holds it to that.

mod sandbox_support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_worker::sandbox::disk::{Choice, Disk, DiskError, Excess, Limits};
use kiln_worker::sandbox::{Ended, Stop};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use sandbox_support::{Bench, chain};

const MIB: u64 = 1 << 20;
const LIMITS_LARGE: Limits = Limits { bytes_max: 1 << 40, inodes_max: 1 << 40 };
const LIMITS: Limits = Limits { bytes_max: 20 * MIB, inodes_max: 2000 };

fn limited(script: &str, choice: Choice) -> Ended {
    let mut bench = Bench::new(script);
    bench.disk = Arc::new(Disk::open(choice, &bench.host(""), LIMITS, 0).unwrap_or_else(|err| panic!("{}", chain(&err))));
    bench.run().ended
}

/// Scripts that use up bytes; each then waits, so that it ends by itself only where it saw a full disk.
const BYTES: [&str; 4] = [
    "head -c 60000000 /dev/zero >/build/x && sleep 60",
    "for n in 1 2 3 4 5 6; do head -c 10000000 /dev/zero >/tmp/$n || exit 1; done; sleep 60",
    "mkdir $out && head -c 60000000 /dev/zero >$out/x && sleep 60",
    // Nobody finds it by its name. It is gone with its last process: what nobody has looked at by then is a build that failed.
    "exec 3>/build/x; rm /build/x; head -c 60000000 /dev/zero >&3 || { sleep 5; exit 1; }; sleep 60",
];
const INODES: [&str; 2] = [
    "cd /build; i=0; while [ $i -lt 9000 ]; do : >$i || exit 1; i=$((i+1)); done; sleep 60",
    "cd /tmp; i=0; while [ $i -lt 300 ]; do mkdir -p $i/1/2/3/4/5/6/7/8/9 || exit 1; i=$((i+1)); done; sleep 60",
];

/// Scripts that never have too much at a time.
const BELOW: [&str; 3] = [
    "mkdir $out; head -c 10000000 /dev/zero >$out/x; ln $out/x $out/y; mv $out/y $out/z; sleep 2",
    "truncate -s 1000000000 /build/hole; sleep 2",
    "for n in 1 2 3 4 5 6; do head -c 8000000 /dev/zero >/build/x; sleep 0.4; rm /build/x; done",
];

fn bytes_and_inodes_end_at_their_limits(choice: Choice) {
    for script in BYTES {
        let ended = limited(script, choice);
        let Some(Stop::Disk(Excess::Bytes { used, max })) = ended.stopped else { panic!("{choice:?}: {script}: {ended:?}") };
        assert!(max >= LIMITS.bytes_max && used > max * 15 / 16, "{choice:?}: {script}: {ended:?}");
    }
    for script in INODES {
        let ended = limited(script, choice);
        let Some(Stop::Disk(Excess::Inodes { used, max })) = ended.stopped else { panic!("{choice:?}: {script}: {ended:?}") };
        assert!(max >= LIMITS.inodes_max && used > max * 15 / 16, "{choice:?}: {script}: {ended:?}");
    }
}

fn what_stays_below_its_limits_is_left_alone(choice: Choice) {
    for script in BELOW {
        let ended = limited(script, choice);
        assert!(ended.succeeded(), "{choice:?}: {script}: {ended:?}");
    }
    let ended = limited("exit 3", choice);
    assert_eq!(ended.stopped, None, "a failure is not blamed on a disk that is not full: {ended:?}");
}

#[test]
fn polling_ends_builds_at_their_limits_and_no_others() {
    bytes_and_inodes_end_at_their_limits(Choice::Polling);
    what_stays_below_its_limits_is_left_alone(Choice::Polling);
}

#[test]
fn memory_ends_builds_at_its_size_and_no_others() {
    bytes_and_inodes_end_at_their_limits(Choice::Tmpfs);
    what_stays_below_its_limits_is_left_alone(Choice::Tmpfs);
}

#[test]
fn an_image_ends_builds_at_its_size_and_no_others() {
    bytes_and_inodes_end_at_their_limits(Choice::Loop);
    what_stays_below_its_limits_is_left_alone(Choice::Loop);
}

/// Kernels and disks with project quotas are rare; the virtual machine of the tests has both, and says that it must work there.
#[test]
fn a_project_quota_ends_builds_at_its_limits_and_no_others_or_says_why_there_is_none() {
    let dir = tempfile::tempdir().expect("temporary directory");
    match Disk::open(Choice::ProjectQuota, dir.path(), LIMITS, 0) {
        Ok(disk) => {
            assert_eq!(disk.describe(), "project quota (bytes, files), free space");
            bytes_and_inodes_end_at_their_limits(Choice::ProjectQuota);
            what_stays_below_its_limits_is_left_alone(Choice::ProjectQuota);
            let auto = Disk::open(Choice::Auto, dir.path(), LIMITS, 0).expect("a disk");
            assert_eq!(auto.describe(), disk.describe(), "it is the best that there is");
        }
        Err(err) => {
            assert!(std::env::var_os("KILN_TEST_PROJECT_QUOTA").is_none(), "{}", chain(&err));
            assert!(matches!(err, DiskError::Choice { .. }) && chain(&err).contains("`prjquota`"), "{}", chain(&err));
        }
    }
}

/// A btrfs that keeps quotas, on a loop device, unmounted at the end.
struct Btrfs(PathBuf);

impl Btrfs {
    fn new(dir: &Path) -> Self {
        let (image, at) = (dir.join("image"), dir.join("mounted"));
        fs::create_dir(&at).expect("mkdir");
        fs::File::create(&image).and_then(|file| file.set_len(512 * MIB)).expect("an image");
        let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        for command in [
            vec!["mkfs.btrfs".to_owned(), "-q".to_owned(), text(&image)],
            ["mount", "-t", "btrfs", "-o", "loop"].map(String::from).into_iter().chain([text(&image), text(&at)]).collect(),
            ["btrfs", "quota", "enable"].map(String::from).into_iter().chain([text(&at)]).collect(),
        ] {
            let status = std::process::Command::new(&command[0]).args(&command[1..]).status();
            assert!(status.as_ref().is_ok_and(std::process::ExitStatus::success), "{command:?}: {status:?} (needs btrfs-progs)");
        }
        fs::set_permissions(&at, fs::Permissions::from_mode(0o700)).expect("chmod");
        Self(at)
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).expect("unmount");
    }
}

#[test]
fn a_btrfs_with_quotas_ends_builds_at_their_limits_and_no_others() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let btrfs = Btrfs::new(dir.path());
    let disk = Arc::new(Disk::open(Choice::Auto, &btrfs.0, LIMITS, 0).expect("a disk"));
    assert_eq!(disk.describe(), "btrfs quota (bytes), polling (files), free space", "it is the best that there is");
    let run = |script: &str| {
        let mut bench = Bench::new(script);
        bench.disk = disk.clone();
        bench.spec.root_dir = btrfs.0.join("build");
        fs::create_dir(&bench.spec.root_dir).expect("the last build's is gone");
        bench.run().ended
    };
    for script in BYTES {
        let ended = run(script);
        assert!(matches!(ended.stopped, Some(Stop::Disk(Excess::Bytes { .. }))), "{script}: {ended:?}");
    }
    for script in INODES {
        let ended = run(script);
        assert!(matches!(ended.stopped, Some(Stop::Disk(Excess::Inodes { .. }))), "{script}: {ended:?}");
    }
    for script in BELOW {
        let ended = run(script);
        assert!(ended.succeeded(), "{script}: {ended:?}");
    }
    assert_eq!(fs::read_dir(&btrfs.0).expect("list").count(), 0, "nothing is left");
}

#[test]
fn what_a_crashed_worker_left_mounted_is_unmounted() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let small = Small::new(&dir.path().join("left behind"), "size=1m");
    fs::write(small.0.join("x"), "x").expect("write");
    Disk::open(Choice::Polling, dir.path(), LIMITS, 0).expect("a disk");
    assert!(!small.0.join("x").exists(), "it is still mounted");
    std::mem::forget(small);
}

/// A file system in memory, unmounted at the end.
struct Small(PathBuf);

impl Small {
    fn new(at: &Path, options: &str) -> Self {
        fs::create_dir(at).expect("mkdir");
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), Some(&*std::ffi::CString::new(options).expect("text"))).expect("mount");
        fs::set_permissions(at, fs::Permissions::from_mode(0o700)).expect("chmod");
        Self(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).expect("unmount");
    }
}

#[test]
fn a_disk_that_runs_low_ends_the_build_that_uses_the_most_and_starts_none() {
    let mut small = Bench::new("head -c 4000000 /dev/zero >/build/x; until [ -e /build/go ]; do sleep 0.1; done; sleep 1; echo unharmed");
    let mut large = Bench::new("head -c 40000000 /dev/zero >/build/x; sleep 60");
    let disk = Small::new(&small.host("disk"), "size=64m");
    let floor = 32 * MIB;
    let shared = Arc::new(Disk::open(Choice::Polling, &disk.0, LIMITS_LARGE, floor).expect("a disk"));
    for (bench, name) in [(&mut small, "small"), (&mut large, "large")] {
        bench.disk = shared.clone();
        bench.spec.root_dir = disk.0.join(name);
        fs::create_dir(&bench.spec.root_dir).expect("mkdir");
    }
    let (small_ran, large_ran) = std::thread::scope(|scope| {
        let small_ran = scope.spawn(|| small.run());
        let large_ran = large.run().ended;
        fs::create_dir(disk.0.join("new")).expect("mkdir");
        let refused = shared.room(&disk.0.join("new"));
        assert!(
            matches!(refused, Err(DiskError::Full { free_bytes, free_bytes_min }) if free_bytes < floor && free_bytes_min == floor),
            "{refused:?}"
        );
        // What the large one left is still there, and not the small one's fault, however often somebody looks at the disk in its last second.
        fs::write(disk.0.join("small/build/go"), "").expect("let it go on");
        (small_ran.join().expect("no panic"), large_ran)
    });
    let Some(Stop::Disk(Excess::Floor { free_bytes, free_bytes_min, used_bytes })) = large_ran.stopped else { panic!("{large_ran:?}") };
    assert!(free_bytes < floor && free_bytes_min == floor && used_bytes > 24 * MIB, "{large_ran:?}");
    assert!(small_ran.ended.succeeded() && small_ran.log == "unharmed\n", "{:?} {}", small_ran.ended, small_ran.log);
    fs::remove_dir_all(disk.0.join("large")).expect("clean up");
    shared.room(&disk.0.join("new")).expect("there is space again");
}
