//! What stops a builder: limits, its own excesses, the worker, and a sandbox that does not stand.

mod sandbox_support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kiln_wire::StorePath;
use kiln_worker::cgroup::MEMORY_BYTES_MIN;
use kiln_worker::sandbox::{Status, Stop};
use sandbox_support::{Bench, chain};

#[test]
fn the_exit_code_or_signal_of_the_builder_is_told() {
    let table = [("exit 0", Status::Exited(0)), ("exit 7", Status::Exited(7)), ("sh -c 'kill -KILL $$'; exit $?", Status::Exited(137))];
    for (script, want) in table {
        let ended = Bench::new(script).run().ended;
        assert_eq!((ended.status, ended.stopped, ended.out_of_memory), (want, None, false), "{script}");
    }
}

#[test]
fn a_builder_that_cannot_be_executed_is_not_a_sandbox_failure() {
    let mut bench = Bench::new("");
    bench.spec.builder = b"/nix/store/none/bin/sh".to_vec();
    assert_eq!(bench.run().ended.status, Status::NotExecuted(libc::ENOENT));
    let mut bench = Bench::new("");
    bench.spec.env.push((b"big".to_vec(), vec![b'x'; 200_000]));
    assert_eq!(bench.run().ended.status, Status::NotExecuted(libc::E2BIG));
}

#[test]
fn a_sandbox_that_does_not_stand_is_its_own_error_and_names_the_step() {
    let mut bench = Bench::new("echo never");
    bench.spec.shell = PathBuf::from("/nonexistent/sh");
    let mut logged = 0;
    let err = bench.try_run(&mut |bytes| logged += bytes.len()).expect_err("there is no shell to bind");
    let text = chain(&*err);
    assert!(text.starts_with("set up the sandbox: bind `/nonexistent/sh`: No such file"), "{text}");
    assert_eq!(logged, 0);
}

#[test]
fn a_root_directory_that_others_can_reach_is_refused() {
    let mut bench = Bench::new("");
    let open = bench.host("open");
    std::fs::create_dir_all(open.join("root")).expect("mkdir");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    bench.spec.root_dir = open.join("root");
    let text = chain(&*bench.try_run(&mut |_| {}).expect_err("the parent is open to all"));
    assert!(text.contains("mode 0700"), "{text}");
}

/// Until it runs its builder, a build's process shares the worker's memory: a limit that was reached by then would end the worker.
#[test]
fn the_largest_start_within_the_least_memory_leaves_the_worker_alive() {
    let mut bench = Bench::new("echo started");
    bench.spec.resources.memory_bytes_max = MEMORY_BYTES_MIN;
    bench.spec.env.extend((0..16).map(|number| (format!("big{number}").into_bytes(), vec![b'x'; 120_000])));
    let (_, source) = bench.spec.inputs[0].clone();
    let name = |number: u64| format!("{number:032}-input");
    bench.spec.inputs.extend((0..3000).map(|number| (StorePath::parse(&name(number)).expect("a store path"), source.clone())));
    let ran = bench.run();
    assert!(ran.ended.succeeded() && ran.log == "started\n", "{:?}: {}", ran.ended, ran.log);

    bench = Bench::new("");
    bench.spec.resources.memory_bytes_max = MEMORY_BYTES_MIN - 1;
    let text = chain(&*bench.try_run(&mut |_| {}).expect_err("too little to start"));
    assert!(text.contains("must be at least 64 MiB"), "{text}");
}

#[test]
fn each_limit_stops_a_build_for_its_own_reason() {
    let mut wall = Bench::new("while true; do echo x; sleep 0.05; done");
    wall.spec.limits.wall = Duration::from_millis(400);
    let mut silence = Bench::new("trap '' TERM; while true; do sleep 1; done");
    silence.spec.limits.silence = Duration::from_millis(300);
    let mut log = Bench::new("yes");
    log.spec.limits.log_bytes = 100_000;
    for (bench, want) in [(wall, Stop::Wall), (silence, Stop::Silence), (log, Stop::LogBytes)] {
        let start = Instant::now();
        let ran = bench.run();
        assert_eq!(ran.ended.stopped, Some(want));
        assert_eq!(ran.ended.status, Status::Signalled(libc::SIGKILL), "{want:?}");
        assert!(start.elapsed() < Duration::from_secs(10), "{want:?} took {:?}", start.elapsed());
    }
}

#[test]
fn the_log_is_cut_exactly_at_its_limit() {
    let mut bench = Bench::new("yes");
    bench.spec.limits.log_bytes = 100_001;
    let ran = bench.run();
    assert_eq!((ran.log.len(), ran.ended.usage.log_bytes), (100_001, 100_001));
}

#[test]
fn one_endless_line_is_passed_on_in_small_pieces() {
    let mut bench = Bench::new("head -c 20000000 /dev/zero");
    bench.spec.limits.log_bytes = 1 << 30;
    let (mut total, mut largest) = (0, 0);
    let ended = bench.try_run(&mut |bytes| (total, largest) = (total + bytes.len(), largest.max(bytes.len()))).expect("the sandbox stands");
    assert!(ended.succeeded());
    assert_eq!(total, 20_000_000);
    assert!(largest <= 64 << 10, "{largest}");
}

#[test]
fn cancelling_ends_a_build_at_once_also_before_its_start() {
    let bench = Bench::new("echo up; trap '' TERM; while true; do sleep 1; done");
    let cancel = bench.cancel.clone();
    let ended = bench.try_run(&mut |_| cancel.cancel()).expect("the sandbox stands");
    assert_eq!(ended.stopped, Some(Stop::Cancelled));
    let bench = Bench::new("sleep 60");
    bench.cancel.cancel();
    assert_eq!(bench.run().ended.stopped, Some(Stop::Cancelled));
}

#[test]
fn what_the_builder_leaves_running_is_dead_when_the_run_ends() {
    let bench =
        Bench::new("(trap '' TERM HUP; setsid sh -c 'while true; do echo x >>/build/trace; done' >/dev/null 2>&1 &) ; sleep 0.2; exit 0");
    assert!(bench.run().ended.succeeded());
    let trace = bench.host("root/build/trace");
    let size = || std::fs::metadata(&trace).expect("the daemon wrote").len();
    let before = size();
    let uid = format!("Uid:\t{0}\t{0}\t{0}\t{0}", bench.spec.host_id.uid);
    for entry in std::fs::read_dir("/proc").expect("list processes").flatten() {
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        assert!(!status.contains(&uid), "a process of the build lives: {status}");
    }
    assert_eq!(size(), before);
}

#[test]
fn a_fork_bomb_is_stopped_at_its_limit_of_processes() {
    for script in
        ["i=0; while [ $i -lt 300 ]; do sleep 20 & i=$((i+1)); done; sleep 20; echo all", "f() { f | f & }; f; sleep 20; echo all"]
    {
        let ran = Bench::new(script).run();
        assert_eq!(ran.ended.stopped, Some(Stop::Processes { max: 64 }), "{script}: {:?} {}", ran.ended, ran.log);
        assert!(!ran.log.contains("all"), "{script}: {}", ran.log);
    }
}

#[test]
fn a_memory_bomb_is_killed_as_out_of_memory() {
    for script in ["head -c 600000000 /dev/zero >/dev/shm/x; echo survived", "x=$(head -c 600000000 /dev/zero | tr '\\0' x); echo survived"]
    {
        let mut bench = Bench::new(script);
        bench.spec.resources.memory_bytes_max = MEMORY_BYTES_MIN;
        let ran = bench.run();
        assert!(ran.ended.out_of_memory && !ran.ended.succeeded(), "{script}: {:?} {}", ran.ended, ran.log);
        assert!(!ran.log.contains("survived"), "{script}");
        assert!(ran.ended.usage.memory_peak_bytes > MEMORY_BYTES_MIN * 3 / 4, "{:?}", ran.ended.usage);
    }
}

#[test]
fn use_is_counted() {
    let usage = Bench::new("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done").run().ended.usage;
    assert!(usage.cpu_ms > 0 && usage.wall_ms > 0 && usage.memory_peak_bytes > 0, "{usage:?}");
    assert_eq!(usage.log_bytes, 5);
}

#[test]
fn nothing_is_left_of_the_control_group() {
    let bench = Bench::new("true");
    assert!(bench.run().ended.succeeded());
    bench.cgroups.create(&bench.spec.name, &bench.spec.resources).expect("the name is free again").remove().expect("remove");
}
