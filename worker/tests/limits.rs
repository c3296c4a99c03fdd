//! A worker's limits through a whole attempt: what the farm is told, and that outputs come home from wherever they were made.

mod farm;

use std::sync::Arc;

use farm::{Farm, Job, store_path};
use kiln_wire::{FailureClass, Outcome, PathInfo, Usage};
use kiln_worker::sandbox::disk::Choice;

/// A farm that offers a busybox, and its path.
async fn farm_with_busybox() -> (Arc<Farm>, PathInfo) {
    let farm = Farm::start().await;
    let tree = farm.dir.path().join("busybox");
    std::fs::create_dir_all(tree.join("bin")).expect("mkdir");
    std::fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("these tests need busybox-static");
    let info = farm.add(&store_path("busybox"), &tree);
    (farm, info)
}

async fn ended(farm: &Farm, job: &Job, attempt: u64, busybox: &PathInfo) -> Outcome {
    let assignment = farm.assignment(job, attempt, vec![busybox.clone()]);
    farm.dispatch(&assignment);
    let (_, outcome) = farm.finished(&assignment.lease).await;
    farm.acknowledge(&assignment.lease);
    outcome
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_come_home_from_a_disk_of_the_builds_own() {
    for (choice, words) in [(Choice::Tmpfs, "tmpfs (bytes, files), free space"), (Choice::Loop, "loop image (bytes, files), free space")] {
        let (farm, busybox) = farm_with_busybox().await;
        let worker = farm.worker_with(|config| {
            config.disk = choice;
            (config.limits.disk_bytes_max, config.limits.disk_inodes_max) = (64 << 20, 4000);
        });
        assert_eq!(farm.hello().await.offer.guarantees.get("disk").map(String::as_str), Some(words));
        let script = "$b mkdir $out; echo hello > $out/file; $b chmod 755 $out/file; $b ln -s $busybox $out/link";
        let lib = Job::script("lib", &busybox.path, &["out"], script);
        for attempt in [100, 101] {
            let outputs = farm.build(&lib, attempt, vec![busybox.clone()]).await;
            let out = &outputs[0].info;
            assert_eq!(farm.uploaded(&out.path).as_ref(), Some(out), "{choice:?}");
            let kept = farm.dir.path().join("worker/store").join(out.path.as_str());
            assert_eq!(kiln_nix::nar::hash_path(&kept).expect("hashes").hash, out.nar_hash, "{choice:?}: the cache's own copy");
        }
        let full = Job::script("full", &busybox.path, &["out"], "$b head -c 100000000 /dev/zero > $out");
        let Outcome::Failed { failure, .. } = ended(&farm, &full, 102, &busybox).await else { panic!("{choice:?}: it fits") };
        assert_eq!(failure.class, FailureClass::LimitExceeded, "{choice:?}: {}", failure.message);
        assert!(failure.message.contains("bytes of disk, its limit is"), "{choice:?}: {}", failure.message);
        worker.stop().await;
        let build_dir = farm.dir.path().join("worker/build");
        assert_eq!(std::fs::read_dir(&build_dir).expect("lists").count(), 0, "{choice:?}: nothing is left");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        assert!(!mounts.contains(build_dir.to_str().expect("text")), "{choice:?}: nothing is left mounted");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_the_workers_fault_and_starts_no_build() {
    let (farm, busybox) = farm_with_busybox().await;
    let worker = farm.worker_with(|config| config.disk_free_bytes_min = u64::MAX);
    farm.hello().await;
    let outcome = ended(&farm, &Job::script("app", &busybox.path, &["out"], "echo x > $out"), 100, &busybox).await;
    let Outcome::Failed { failure, .. } = outcome else { panic!("it was built: {outcome:?}") };
    assert_eq!(failure.class, FailureClass::Infrastructure, "{}", failure.message);
    assert!(failure.message.contains("`disk_free_bytes_min`"), "{}", failure.message);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_farm_is_told_what_an_attempt_took_whether_it_succeeds_or_not() {
    let (farm, busybox) = farm_with_busybox().await;
    let worker = farm.worker_with(|config| config.cpu_quota = true);
    farm.hello().await;
    let work = "$b head -c 3000000 /dev/zero > /build/x; echo done; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";
    for (attempt, end) in [(100, "echo x > $out"), (101, "exit 1")] {
        let job = Job::script("works", &busybox.path, &["out"], &format!("{work}; {end}"));
        let (Outcome::Built { usage, .. } | Outcome::Failed { usage, .. }) = ended(&farm, &job, attempt, &busybox).await;
        let Usage { wall_ms, cpu_ms, memory_peak_bytes, log_bytes, cpu_throttled_ms, disk_write_bytes } = usage;
        assert!(wall_ms > 0 && cpu_ms > 0 && memory_peak_bytes > 0, "{usage:?}");
        assert!(log_bytes == 5 && cpu_throttled_ms.is_some() && disk_write_bytes >= Some(3_000_000), "{usage:?}");
    }
    worker.stop().await;
}
