//! What a build must not be able to do, tried by a program in the sandbox (`attacker`).

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use kiln_wire::StorePath;

use crate::program;
use crate::sandbox_support::{Bench, INPUT};

#[test]
fn a08_a09_the_kernel_refuses_what_escapes_or_marks_files() {
    let bench = program::bench(&["calls"]);
    let ran = bench.run();
    let want = [
        ("chmod 4755", libc::EPERM),
        ("fchmodat 2755", libc::EPERM),
        ("fchmodat2 4755", libc::EPERM),
        ("mknod 4755", libc::EPERM),
        ("mknod device", libc::EPERM),
        ("setxattr", libc::ENOTSUP),
        ("removexattr", libc::ENOTSUP),
        ("setxattrat", libc::ENOTSUP),
        ("vsock", libc::EAFNOSUPPORT),
        ("io_uring_setup", libc::ENOSYS),
        ("keyctl", libc::ENOSYS),
        ("unshare user", libc::ENOSPC),
        ("unshare mounts", libc::EPERM),
        ("setuid 0", libc::EINVAL),
        ("setgroups", libc::EPERM),
        ("x32 chmod 4755", libc::ENOSYS),
        ("chmod 0755", 0),
        ("i386 chmod 4755", libc::EPERM),
    ];
    let want: String = want.iter().map(|(what, errno)| format!("{what}: {errno}\n")).collect();
    assert_eq!(ran.log, want, "{:?}", ran.ended);
    let mode = fs::metadata(bench.host("root/build/victim")).expect("the victim is there").mode();
    assert_eq!(mode & 0o7777, 0o755);
}

#[test]
fn a10_the_hosts_copy_of_an_input_stays_as_it_was() {
    let bench = Bench::new(
        "cd /nix/store/*-input; chmod 777 file; echo x >>file; touch file; rm file; mv file x; ln file $out; ln file /build/x; ln file x; true",
    );
    let file = bench.host("store").join(INPUT).join("file");
    // The build's own, so that it is not the owner that saves them.
    for path in [&file, &bench.host("store").join(INPUT)] {
        std::os::unix::fs::chown(path, Some(bench.spec.host_id.uid), Some(bench.spec.host_id.gid)).expect("chown");
    }
    let facts = || {
        let meta = fs::metadata(&file).expect("look at the input");
        (fs::read(&file).expect("read the input"), meta.mode(), meta.nlink(), meta.mtime_nsec())
    };
    let before = facts();
    let ran = bench.run();
    assert!(ran.ended.succeeded(), "{:?}", ran.ended);
    assert_eq!(facts(), before, "{}", ran.log);
    assert_eq!(ran.log.matches("Read-only file system").count(), 6, "{}", ran.log);
    assert_eq!(ran.log.matches("cross-device link").count(), 2, "{}", ran.log);
}

#[test]
fn a05_two_builds_cannot_touch_each_other() {
    let first = Bench::new("chmod 777 /build; echo secret >/build/secret; chmod 666 /build/secret");
    assert!(first.run().ended.succeeded());
    let root = first.host("root");
    // The parent is closed to all but root, whatever the build did to its own directory.
    let parent = root.parent().expect("it has a parent").metadata().expect("look at it");
    assert_eq!((parent.permissions().mode() & 0o777, parent.uid()), (0o700, 0));
    let mut second = Bench::new(&format!("cat {}/build/secret 2>&1; true", root.display()));
    second
        .spec
        .inputs
        .push((StorePath::parse("4hm2f1psjpcwg8fijsmr4wwxrx59s092-x").expect("a store path"), second.host("store").join(INPUT)));
    let log = second.run().log;
    assert!(log.contains("No such file"), "{log}");
}
