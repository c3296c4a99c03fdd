//! Ways out of a sandbox through what the worker may have left open (attacks A7, A20, A21, A42).

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use kiln_worker::sandbox::Status;

use crate::program;
use crate::sandbox_support::{Bench, INPUT, chain};

#[test]
fn a07_a_root_directory_that_somebody_has_prepared_is_refused() {
    let bench = Bench::new("echo never");
    fs::create_dir(bench.host("root/build")).expect("prepare a directory");
    let text = chain(&*bench.try_run(&mut |_| {}).expect_err("it is not empty"));
    assert!(text.contains("must be empty"), "{text}");
    let bench = Bench::new("echo never");
    fs::remove_dir(bench.host("root")).expect("remove the root directory");
    std::os::unix::fs::symlink("/etc", bench.host("root")).expect("prepare a link");
    let text = chain(&*bench.try_run(&mut |_| {}).expect_err("it is a link"));
    assert!(text.contains("Not a directory") && text.contains(bench.host("root").to_str().expect("text")), "{text}");
}

/// Descriptors without close-on-exec, as a library might leave them: a child of the worker would inherit each.
#[test]
fn a20_a_build_inherits_no_descriptor_and_no_directory_of_the_host() {
    let leaks: [OwnedFd; 3] = [
        File::open("/").expect("open /").into(),
        TcpListener::bind("127.0.0.1:0").expect("listen").into(),
        File::open("/proc/self/ns/mnt").expect("open a namespace").into(),
    ];
    let leaked: Vec<OwnedFd> = leaks.iter().map(|fd| rustix::io::dup(fd.as_fd()).expect("a copy without close-on-exec")).collect();
    let ran = program::bench(&["descriptors"]).run();
    drop(leaked);
    let want = "open: 0 1 2\n\
        descriptor 0 is a terminal or null: true\n\
        descriptor 1 is a terminal or null: true\n\
        descriptor 2 is a terminal or null: true\n\
        directory: /build\n\
        : our root\n\
        /proc/1/root/: our root\n\
        /proc/self/root/: our root\n\
        /proc/self/cwd/: our root\n\
        /dev/fd/../: our root\n\
        root: bin build dev etc nix proc tmp\n";
    assert_eq!(ran.log, want, "{:?}", ran.ended);
}

#[test]
fn a21_no_program_can_be_written_over_whether_or_not_it_runs() {
    let bench = program::bench(&["program", &format!("/nix/store/{INPUT}/idle")]);
    let input = bench.host("store").join(INPUT);
    // Open to all, so that neither owner nor mode is what keeps a build from them.
    for name in ["attacker", "idle"] {
        fs::copy(program::compiled(), input.join(name)).expect("copy the program");
        fs::set_permissions(input.join(name), fs::Permissions::from_mode(0o777)).expect("open it to all");
    }
    let (busy, closed, read_only) = (libc::ETXTBSY, libc::EACCES, libc::EROFS);
    let running = |path: &str| {
        [("write to", busy), ("truncate", read_only), ("append to", busy)].map(|(how, errno)| format!("{how} {path}: {errno}\n"))
    };
    let idle = ["write to", "truncate", "append to"].map(|how| format!("{how} /nix/store/{INPUT}/idle: {read_only}\n"));
    let shell =
        [("write to", closed), ("truncate", read_only), ("append to", closed)].map(|(how, errno)| format!("{how} /bin/sh: {errno}\n"));
    let again = [format!("write to it through a descriptor: {busy}\n")];
    let want = [&running("/proc/self/exe")[..], &running("/proc/1/exe"), &shell, &idle, &again].concat().concat();
    assert_eq!(bench.run().log, want);
    assert!(["attacker", "idle"].iter().all(|name| fs::read(input.join(name)).ok() == fs::read(program::compiled()).ok()));
}

/// Until it executes the builder, a build's first process is the worker's program: a builder of that name would be the worker itself.
#[test]
fn a21_a_builder_that_names_the_workers_own_program_does_not_touch_it() {
    let own = std::env::current_exe().expect("our own program");
    let facts =
        || fs::metadata(&own).map(|meta| (meta.len(), meta.mode(), meta.uid(), meta.mtime(), meta.ino())).expect("look at our program");
    let before = facts();
    for builder in ["/proc/self/exe", "/proc/1/exe", "/proc/thread-self/exe"] {
        let mut bench = Bench::new("");
        bench.spec.builder = builder.as_bytes().to_vec();
        bench.spec.args = vec![b"--list".to_vec()];
        let ran = bench.run();
        // It is dynamically linked, and there is no linker.
        assert_eq!((ran.ended.status, ran.log.as_str()), (Status::NotExecuted(libc::ENOENT), ""), "{builder}");
    }
    assert_eq!(facts(), before);
}

#[test]
fn a42_a_build_cannot_leave_its_control_group_or_reach_the_kernels_helpers() {
    let bench = program::bench(&["groups"]);
    let ran = bench.run();
    // Some kernels have no such file.
    let file = [libc::EACCES, libc::ENOENT];
    let want: [(&str, &[i32]); 19] = [
        ("/sys/fs/cgroup/cgroup.procs", &[libc::ENOENT]),
        ("/sys/fs/cgroup/release_agent", &[libc::ENOENT]),
        ("/sys/fs/cgroup/memory/tasks", &[libc::ENOENT]),
        ("core_pattern", &file),
        ("modprobe", &file),
        ("poweroff_cmd", &file),
        ("sysrq-trigger", &file),
        ("mount", &[libc::EPERM]),
        ("fsopen", &[libc::EPERM]),
        ("mount", &[libc::EPERM]),
        ("fsopen", &[libc::EPERM]),
        ("mount", &[libc::EPERM]),
        ("fsopen", &[libc::EPERM]),
        ("another group namespace", &[libc::EPERM]),
        ("another root", &[libc::EPERM]),
        ("pivot", &[libc::EPERM]),
        ("clone3 into new namespaces", &[libc::ENOSPC]),
        ("our own limit of namespaces", &[libc::EACCES]),
        ("our own map of users", &[libc::EPERM]),
    ];
    let (seen, tried) = ran.log.split_at(ran.log.find("/sys").expect("it tried"));
    assert_eq!(seen, "seen from inside: the root\nmounted: 0\n", "{:?}", ran.ended);
    program::check(tried, &want);
}
