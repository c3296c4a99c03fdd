//! A launcher without root, as a process of an ordinary user: builds run, and where a v2 group was delegated to the user, they are limited
//! below it and nowhere else.
//!
//! A program of three parts, because a launcher is a program of its own: started as a test, it starts itself as a user, who starts it as
//! a launcher. Needs root, to become a user who has nothing.

use std::fs;
use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kiln_wire::{OutputName, Resources, StoreDir, StorePath, WorkerId};
use kiln_worker::launcher::{Claim, Launcher, LauncherError, Owner, Policy, Reach, Run, Task, serve_stdin};
use kiln_worker::sandbox::disk::Choice;
use kiln_worker::sandbox::{Cancel, Ended, Limits, Status};
use kiln_worker::{Config, cgroup};

/// A user that nothing belongs to.
const USER: u32 = 4_100_001;
const OUTPUT: &str = "2hm2f1psjpcwg8fijsmr4wwxrx59s092-output";

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("launcher") => serve_stdin(args.get(3).map(String::as_str)).expect("the launcher serves"),
        Some("as-user") => as_user(Path::new(&args[2])),
        _ => {
            println!("running 1 test");
            a_user_builds_without_root_in_what_was_delegated_to_it();
            println!("test a_user_builds_without_root_in_what_was_delegated_to_it ... ok");
        }
    }
}

fn a_user_builds_without_root_in_what_was_delegated_to_it() {
    assert!(rustix::process::geteuid().is_root(), "this test becomes another user: run it as root");
    let dir = tempfile::tempdir().expect("temporary directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("open the directory");
    // Where the checkout lies, the user may have no way to.
    let (program, home) = (dir.path().join("program"), dir.path().join("home"));
    fs::copy(std::env::current_exe().expect("this program"), &program).expect("copy this program");
    fs::create_dir(&home).expect("mkdir");
    std::os::unix::fs::chown(&home, Some(USER), Some(USER)).expect("chown");

    let mut command = Command::new("setpriv");
    // With groups beside its own, as users of a desktop have them, which cannot be given up in a namespace without other ids.
    let groups = ["--reuid", "4100001", "--regid", "4100001", "--groups", "4100001,4100007"];
    command.args(groups).arg(&program).arg("as-user").arg(&home).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("start as a user");
    let delegated = Delegated::to(&child);
    child.stdin.take().expect("it is a pipe").write_all(b"go\n").expect("it waits");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("passed"), "{said}");
    println!("{said}");
    if let Some(delegated) = delegated {
        assert!(said.contains("cgroup: v2 (memory"), "{said}");
        delegated.remove();
    }
}

/// A v2 group that belongs to the user, as a service manager makes it for a user's session. Nothing on hosts without the controllers.
struct Delegated {
    dir: PathBuf,
}

impl Delegated {
    fn to(child: &Child) -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup");
        if !fs::read_to_string(root.join("cgroup.controllers")).is_ok_and(|words| words.contains("memory")) {
            return None;
        }
        fs::write(root.join("cgroup.subtree_control"), "+memory +pids +cpu").expect("give controllers to groups");
        let dir = root.join(format!("kiln-rootless-{}", child.id()));
        fs::create_dir(&dir).expect("make a group");
        for name in [".", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            std::os::unix::fs::chown(dir.join(name), Some(USER), Some(USER)).expect("chown");
        }
        fs::write(dir.join("cgroup.procs"), child.id().to_string()).expect("move the user's process");
        Some(Self { dir })
    }

    /// The launcher has removed what it made, but for the leaf of its processes.
    fn remove(&self) {
        let left = fs::read_dir(&self.dir).expect("list").filter_map(Result::ok).filter(|entry| entry.path().is_dir());
        let left: Vec<PathBuf> = left.map(|entry| entry.path()).collect();
        assert!(left.iter().all(|dir| dir.ends_with("kiln.worker")), "{left:?}");
        left.iter().chain([&self.dir]).for_each(|dir| fs::remove_dir(dir).expect("nothing lives there"));
    }
}

/// What the user's process does.
fn as_user(home: &Path) {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).expect("a line");
    assert_eq!(Owner::own(), Owner { uid: USER, gid: USER });
    let mut config = Config::new(WorkerId::parse("w1").expect("a name"), home.join("worker"), vec!["127.0.0.1:1".to_owned()]);
    config.slots = Some(2);
    config.memory_mib = Some(512);
    let program = std::env::current_exe().expect("this program");
    // What it mounts in its own namespace, the worker would not see.
    config.disk = Choice::Tmpfs;
    let unfit = Launcher::in_process(&Policy::new(&config, Owner::own()), &program).map(|_| ()).expect_err("nobody sees its mounts");
    assert!(unfit.to_string().contains("without root"), "{unfit}");
    config.disk = Choice::Auto;
    let launcher = Launcher::in_process(&Policy::new(&config, Owner::own()), &program).expect("a launcher without root");
    launcher.guarantees().iter().for_each(|(name, words)| println!("{name}: {words}"));

    let (mut run, ended, log) = build(&launcher, &format!("id -u; id -g; echo done > /nix/store/{OUTPUT}"));
    assert_eq!((ended.status, log.as_str()), (Status::Exited(0), "1000\n100\n"));
    let dir = run.claim(claim()).expect("the output is handed over");
    let meta = fs::metadata(dir.join(OUTPUT)).expect("it is there");
    assert_eq!((meta.uid(), meta.permissions().mode() & 0o7777), (USER, 0o444));
    let again = run.claim(claim()).expect_err("the worker may change by now what a second claim would walk through");
    assert!(again.message.contains("handed over before"), "{again:?}");
    drop(run);
    assert_eq!(fs::read_dir(home.join("worker/build")).expect("list").count(), 0, "nothing is left of a build");

    // The launcher and the worker are the same user, outside.
    let (_, ended, log) = build(&launcher, "kill -9 -1; echo alone");
    assert!(ended.succeeded() && log.contains("No such process") && log.ends_with("alone\n"), "{log}");
    refused(&launcher);
    if launcher.guarantees().iter().any(|(name, words)| name == "cgroup" && words.contains("memory")) {
        let (_, ended, _) = build(&launcher, "dd if=/dev/zero of=/dev/shm/x bs=1M count=256");
        assert!(ended.out_of_memory, "{ended:?}");
        let (_, ended, _) = build(&launcher, "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done");
        assert!(ended.succeeded() && ended.usage.cpu_ms > 0, "{ended:?}");
    }
    launcher.close();
    println!("passed");
}

type Change = fn(&mut Task);

/// What a launcher is not to do, whoever asks.
fn refused(launcher: &Launcher) {
    let changes: [(&str, Change); 9] = [
        ("is no name of a group and a directory", |task| task.name = "../store/x".to_owned()),
        ("is longer than a year", |task| task.limits.wall = Duration::MAX),
        ("is not one of this worker's", |task| task.slot = 7),
        ("is more than the worker may give", |task| task.resources.memory_bytes_max = 1 << 40),
        ("is more than the worker may give", |task| task.resources.pids_max = 1 << 20),
        ("is more than the worker may give", |task| task.resources.swap_bytes_max = 1),
        ("is not a feature of this worker", |task| task.dev_kvm = true),
        ("feature `uid-range` is not one of this worker's", |task| task.uid_range = true),
        ("must not be /tmp", |task| task.store_dir = StoreDir::parse("/etc").expect("a directory")),
    ];
    for (reason, change) in changes {
        let mut asked = task("true");
        change(&mut asked);
        let ended = launcher.start(asked).and_then(|mut run| run.until_end(&Cancel::new().expect("eventfd"), &mut |_| ()));
        assert!(matches!(&ended, Err(LauncherError::NotRun(said)) if said.contains(reason)), "{reason}: {ended:?}");
    }
}

fn build(launcher: &Launcher, script: &str) -> (Run, Ended, String) {
    let mut run = launcher.start(task(script)).expect("the launcher listens");
    let mut log = Vec::new();
    let ended = run.until_end(&Cancel::new().expect("eventfd"), &mut |bytes| log.extend_from_slice(bytes)).expect("it runs");
    (run, ended, String::from_utf8_lossy(&log).into_owned())
}

fn claim() -> Claim {
    let output = (OutputName::parse("out").expect("a name"), StorePath::parse(OUTPUT).expect("a path"));
    Claim { outputs: [output].into(), bytes_max: 1 << 20 }
}

fn task(script: &str) -> Task {
    Task {
        name: "attempt-1".to_owned(),
        slot: 0,
        store_dir: StoreDir::default(),
        system: "x86_64-linux".to_owned(),
        builder: b"/bin/sh".to_vec().into(),
        args: [&b"-c"[..], script.as_bytes()].map(|arg| arg.to_vec().into()).into(),
        env: Vec::new(),
        files: Vec::new(),
        inputs: Vec::new(),
        reach: Reach::Itself,
        dev_kvm: false,
        uid_range: false,
        resources: cgroup::Policy { memory_mib: 512, swap_bytes_max: 0, pids_max: 1000, cpu_quota: false }
            .of(Resources { cores: 1, memory_mib: 64 }),
        limits: Limits { wall: Duration::from_secs(60), silence: Duration::from_secs(60), log_bytes: 1 << 20 },
    }
}
