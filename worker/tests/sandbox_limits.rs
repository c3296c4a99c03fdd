//! What a build may take of its worker, and what is told of what it took.

mod sandbox_support;

use std::path::Path;
use std::time::Duration;

use kiln_worker::sandbox::Stop;
use sandbox_support::Bench;

const SPIN: &str = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";

#[test]
fn a_processor_quota_holds_a_build_back_and_the_time_lost_is_told() {
    let usage = Bench::new(SPIN).run().ended.usage;
    assert_eq!(usage.cpu_throttled_ms, Some(0), "{usage:?}");
    let mut bench = Bench::new(SPIN);
    bench.spec.resources.cpu_millicores_max = Some(200);
    let ran = bench.run();
    assert!(ran.ended.succeeded(), "{:?}", ran.ended);
    let usage = ran.ended.usage;
    assert!(usage.cpu_throttled_ms > Some(0), "{usage:?}");
}

#[test]
fn bytes_written_to_disk_are_told_also_of_processes_that_have_ended() {
    let write = "for n in 1 2 3 4; do (head -c 5000000 /dev/zero >/build/$n); done";
    let usage = Bench::new(write).run().ended.usage;
    assert!(usage.disk_write_bytes >= Some(20_000_000), "{usage:?}");
    let usage = Bench::new("head -c 5000000 /dev/zero >/dev/shm/x").run().ended.usage;
    assert!(usage.disk_write_bytes < Some(5_000_000), "memory is no disk: {usage:?}");
}

/// What fills its memory without a claim that fails at once waits for its own pages, which the kernel takes away and reads again.
#[test]
fn a_build_that_only_waits_for_memory_is_out_of_memory() {
    let thrash = "head -c 200000000 /dev/zero >/build/big; head -c 50000000 /dev/zero >/dev/shm/x
        for n in 1 2 3 4; do while true; do cat /build/big >/dev/null; done & done; wait";
    let mut bench = Bench::new(thrash);
    bench.spec.resources.memory_bytes_max = kiln_worker::cgroup::MEMORY_BYTES_MIN;
    bench.spec.resources.memory_stall_ms_max = 100;
    // User-mode Linux is built without a word about it; there such a build ends by its other limits.
    let told = Path::new("/proc/pressure/memory").exists();
    bench.spec.limits.wall = Duration::from_secs(if told { 50 } else { 5 });
    let ran = bench.run();
    assert_eq!((ran.ended.out_of_memory, ran.ended.stopped), (told, (!told).then_some(Stop::Wall)), "{:?}", ran.ended);
}
