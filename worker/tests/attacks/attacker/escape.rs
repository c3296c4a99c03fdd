//! Ways out through what the worker may have left open: descriptors, its own program, control groups (attacks A13, A20, A21, A42).

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;

use crate::{call, told};

/// Lists what is open, and where `/` and `..` lead.
pub fn descriptors() {
    // By number, as opening the list would add to it.
    let open: Vec<String> =
        (0..4096).filter(|fd| fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok()).map(|fd: i32| fd.to_string()).collect();
    println!("open: {}", open.join(" "));
    for fd in 0..3 {
        println!(
            "descriptor {fd} is a terminal or null: {}",
            fs::metadata(format!("/proc/self/fd/{fd}")).is_ok_and(|meta| meta.mode() & 0o170_000 == 0o020_000)
        );
    }
    println!("directory: {}", std::env::current_dir().expect("a working directory").display());
    let root = inode("/");
    let up = "../".repeat(40);
    for path in [
        up.clone(),
        format!("/proc/1/root/{up}"),
        format!("/proc/self/root/{up}"),
        format!("/proc/self/cwd/{up}"),
        format!("/dev/fd/../{up}"),
    ] {
        println!("{}: {}", &path[..path.len() - up.len()], if inode(&path) == root { "our root" } else { "another root" });
    }
    let mut names: Vec<_> =
        fs::read_dir("/").expect("list /").map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
    names.sort();
    println!("root: {}", names.join(" "));
}

fn inode(path: &str) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Tries to write over programs: its own, the first process's, the shell's, and one that does not run.
pub fn program(idle: &str) {
    for path in ["/proc/self/exe", "/proc/1/exe", "/bin/sh", idle] {
        told(&format!("write to {path}"), OpenOptions::new().write(true).open(path));
        told(&format!("truncate {path}"), OpenOptions::new().write(true).truncate(true).open(path));
        told(&format!("append to {path}"), OpenOptions::new().append(true).open(path));
    }
    // The attacker's usual way round "text file busy": a descriptor for reading, opened again for writing.
    let held = fs::File::open("/proc/self/exe").expect("read our own program");
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
    told("write to it through a descriptor", OpenOptions::new().write(true).open(again));
}

/// Tries to leave the control groups, by their files and by mounting them anew, and to have the kernel run something outside.
pub fn groups() {
    let groups = fs::read_to_string("/proc/self/cgroup").expect("read /proc/self/cgroup");
    println!("seen from inside: {}", if groups.lines().all(|line| line.ends_with(":/")) { "the root" } else { &groups });
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read /proc/self/mountinfo");
    println!("mounted: {}", mounts.matches(" - cgroup").count());
    for path in ["/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/release_agent", "/sys/fs/cgroup/memory/tasks"] {
        told(path, OpenOptions::new().write(true).open(path));
    }
    for path in ["core_pattern", "modprobe", "poweroff_cmd"] {
        told(path, OpenOptions::new().write(true).open(format!("/proc/sys/kernel/{path}")));
    }
    told("sysrq-trigger", OpenOptions::new().write(true).open("/proc/sysrq-trigger"));
    let target = c"/build".as_ptr() as i64;
    for kind in [c"cgroup2", c"cgroup", c"tmpfs"] {
        let kind = kind.as_ptr() as i64;
        told("mount", call(165, [kind, target, kind, 0, 0]));
        told("fsopen", call(430, [kind, 0, 0, 0, 0]));
    }
    told("another group namespace", call(272, [0x200_0000, 0, 0, 0, 0]));
    told("another root", call(161, [target, 0, 0, 0, 0]));
    told("pivot", call(155, [target, target, 0, 0, 0]));
    // CLONE_NEWUSER | CLONE_NEWCGROUP by clone3, whose flags no filter can see.
    let arguments = [0x1200_0000_u64, 0, 0, 0, 17, 0, 0, 0];
    told("clone3 into new namespaces", call(435, [arguments.as_ptr() as i64, 64, 0, 0, 0]));
    told("our own limit of namespaces", OpenOptions::new().write(true).open("/proc/sys/user/max_user_namespaces"));
    told("our own map of users", fs::write("/proc/self/uid_map", "0 0 1"));
}

/// Starts threads until the kernel refuses; says whether it did before `count`.
pub fn threads(count: usize) {
    let park = || loop {
        std::thread::park();
    };
    let refused = (0..count).find_map(|_| std::thread::Builder::new().stack_size(16 << 10).spawn(park).err());
    match refused {
        Some(err) => println!("refused: {}", err.raw_os_error().unwrap_or(-1)),
        None => println!("all {count} threads run"),
    }
    std::process::exit(0);
}
