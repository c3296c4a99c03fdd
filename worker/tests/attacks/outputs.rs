//! Outputs that harm whoever takes them in: whole attempts against a scripted coordinator (attacks A1, A3 to A5, A8, A11, A12, A15, A23).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use kiln_nix::content::{ContentAddress, Method};
use kiln_nix::derivation::{Derivation, Output};
use kiln_nix::hash::{Algorithm, Hasher};
use kiln_wire::{FailureClass, JobLimits, Outcome, OutputName, PathInfo, StoreDir, StorePath};
use kiln_worker::sandbox::HostId;
use kiln_worker::{NetworkMode, Worker};

use crate::farm::{Farm, Job, store_path};
use crate::program;

/// A farm with one worker of one slot, whose builds have a busybox (`$b`) and the attacker's program (`$attack`).
struct Field {
    farm: Arc<Farm>,
    worker: Worker,
    inputs: [PathInfo; 2],
}

impl Field {
    async fn new() -> Self {
        let farm = Farm::start().await;
        let tree = farm.dir.path().join("busybox");
        fs::create_dir_all(tree.join("bin")).expect("mkdir");
        fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("these tests need busybox-static");
        let attack = farm.dir.path().join("attack");
        fs::copy(program::compiled(), &attack).expect("copy the attacker's program");
        let inputs = [farm.add(&store_path("busybox"), &tree), farm.add(&store_path("attack"), &attack)];
        let worker = farm.worker_with(|config| {
            config.slots = Some(1);
            // The host's own network: whatever a build can open there, it can pass on.
            config.fixed_output_network.mode = NetworkMode::Host;
        });
        farm.hello().await;
        Self { farm, worker, inputs }
    }

    fn job(&self, name: &str, script: &str) -> Job {
        Job::script(name, &self.inputs[0].path, &["out"], &format!("attack=/nix/store/{}; {script}", self.inputs[1].path))
    }

    /// A job whose output must have this content, and which has a network.
    fn fixed(&self, name: &str, content: &str, script: &str) -> Job {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(content.as_bytes());
        let address = ContentAddress { method: Method::Flat, hash: hasher.finish() };
        let store_dir = StoreDir::default();
        let path = address.path(&store_dir, name, &BTreeSet::new(), false).expect("a path");
        let Job { derivation, .. } = self.job(name, script);
        let env = derivation.env.into_iter().chain([("out".to_owned(), store_dir.join(&path).into_bytes())]).collect();
        let outputs = [(OutputName::parse("out").expect("a name"), Output::Fixed { address, path })].into();
        Job::new(Derivation { outputs, env, ..derivation })
    }

    async fn run(&self, job: &Job, attempt: u64, limits: JobLimits) -> (Outcome, String) {
        let mut assignment = self.farm.assignment(job, attempt, self.inputs.to_vec());
        assignment.limits = limits;
        self.farm.dispatch(&assignment);
        let (log, outcome) = self.farm.finished(&assignment.lease).await;
        self.farm.acknowledge(&assignment.lease);
        (outcome, log)
    }

    async fn built(&self, job: &Job, attempt: u64) -> (PathInfo, String) {
        match self.run(job, attempt, JobLimits::default()).await {
            (Outcome::Built { mut outputs, .. }, log) => (outputs.remove(0).info, log),
            (Outcome::Failed { failure, .. }, log) => panic!("{failure:?}\n{log}"),
        }
    }

    async fn failed(&self, job: &Job, attempt: u64, limits: JobLimits) -> (FailureClass, String) {
        match self.run(job, attempt, limits).await {
            (Outcome::Failed { failure, .. }, _) => (failure.class, failure.message),
            (Outcome::Built { outputs, .. }, log) => panic!("it was built: {outputs:?}\n{log}"),
        }
    }

    fn cached(&self, path: &StorePath) -> PathBuf {
        self.farm.dir.path().join("worker/store").join(path.as_str())
    }

    /// Waits until something of this name lies in the worker's directory, its cache aside.
    async fn appears(&self, name: &str) -> PathBuf {
        let (worker, cache) = (self.farm.dir.path().join("worker"), self.farm.dir.path().join("worker/store"));
        wait_for(|| find(&worker, &cache, name)).await
    }

    /// Stops the worker; whatever its builds left must be gone by then, or go soon.
    async fn end(self) {
        let worker = self.farm.dir.path().join("worker");
        wait_for(|| ["build", "remains", "incoming", "trash"].iter().all(|dir| is_empty(&worker.join(dir))).then_some(())).await;
        self.worker.stop().await;
    }
}

async fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("it happens in time")
}

/// But for stores that stand ready for other builds.
fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir)
        .is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(|entry| entry.file_name().as_encoded_bytes().starts_with(b".store-"))))
}

fn find(dir: &Path, but: &Path, name: &str) -> Option<PathBuf> {
    let entries: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path != but).collect();
    let here = entries.iter().find(|path| path.file_name().is_some_and(|found| found == name)).cloned();
    here.or_else(|| entries.iter().filter(|path| path.is_dir() && !path.is_symlink()).find_map(|path| find(path, but, name)))
}

/// What builds that wait for the test end with.
const WAIT: &str = "echo > /build/waits; until [ -e /build/go ]; do $b sleep 0.02; done";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a01_who_holds_a_descriptor_of_a_download_changes_nothing_that_is_kept() {
    let field = Field::new().await;
    let job = field.fixed("download", "content\n", &format!("echo content > $out; {WAIT}"));
    let path = job.derivation.outputs.values().next().and_then(Output::path).expect("it is known").clone();
    let outsider = async {
        let go = field.appears("waits").await.with_file_name("go");
        let held = File::options().append(true).open(field.appears(path.as_str()).await).expect("open as root");
        fs::write(go, "").expect("let it go on");
        held
    };
    let ((info, _), mut held) = tokio::join!(field.built(&job, 100), outsider);
    held.write_all(b"changed").expect("nothing hinders the outsider");
    let kept = field.cached(&path);
    assert_eq!(fs::read_to_string(&kept).expect("it is kept"), "content\n");
    assert_ne!(fs::metadata(&kept).expect("it is kept").ino(), held.metadata().expect("it is open").ino());
    assert_eq!(field.farm.uploaded(&path), Some(info));
    field.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a03_of_a_failed_download_nothing_is_kept_that_a_smuggled_descriptor_could_change() {
    let field = Field::new().await;
    let script = |content: &str| format!("echo {content} > $out; {WAIT}");
    let bad = field.fixed("download", "content\n", &script("other"));
    let path = bad.derivation.outputs.values().next().and_then(Output::path).expect("it is known").clone();
    let outsider = async {
        let go = field.appears("waits").await.with_file_name("go");
        let held = File::options().append(true).open(field.appears(path.as_str()).await).expect("open as root");
        fs::write(go, "").expect("let it go on");
        held
    };
    let ((class, message), mut held) = tokio::join!(field.failed(&bad, 100, JobLimits::default()), outsider);
    assert!(class == FailureClass::BuildFailure && message.contains("hash mismatch"), "{message}");
    assert!(!field.cached(&path).exists() && field.farm.uploaded(&path).is_none());
    wait_for(|| (held.metadata().expect("it is open").nlink() == 0).then_some(())).await;
    // The same output, right this time, is another file.
    let (info, _) = field.built(&field.fixed("download", "content\n", "echo content > $out"), 101).await;
    held.write_all(b"changed").expect("nothing hinders the outsider");
    assert_eq!(fs::read_to_string(field.cached(&path)).expect("it is kept"), "content\n");
    assert_eq!(field.farm.uploaded(&path), Some(info));
    field.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a04_an_output_that_is_a_link_or_holds_links_leads_the_import_nowhere() {
    let field = Field::new().await;
    // The build's own user has them, so that it is not their owner that saves them.
    let canaries = ["canary", "aviary"].map(|name| field.farm.dir.path().join(name));
    fs::write(&canaries[0], "alive").expect("a canary");
    fs::create_dir(&canaries[1]).expect("an aviary");
    let user = HostId::of_slot(0);
    canaries.iter().for_each(|path| chown(path, Some(user.uid), Some(user.gid)).expect("chown"));
    let facts = || {
        canaries
            .each_ref()
            .map(|path| fs::metadata(path).map(|meta| (meta.mode(), meta.uid(), meta.gid(), meta.mtime_nsec())).expect("it is there"))
    };
    let before = facts();
    let [file, dir] = canaries.each_ref().map(|path| path.display());
    let table = [
        ("file", format!("$b ln -s {file} $out")),
        ("directory", format!("$b ln -s {dir} $out")),
        (
            "inside",
            format!("$b mkdir $out; $b ln -s {file} $out/file; $b ln -s {dir} $out/dir; $b ln -s ../../../../../../../../.. $out/up"),
        ),
        (
            "store",
            format!("$b mv /nix/store /nix/moved; $b rm -rf /nix/store; $b ln -s {dir} /nix/store; $b mv /nix /moved; echo x > $out"),
        ),
    ];
    for (attempt, (name, script)) in (100..).zip(table) {
        let (info, log) = field.built(&field.job(name, &format!("exec 2>/dev/null; {script}")), attempt).await;
        let kept = field.cached(&info.path);
        assert_eq!(kiln_nix::nar::hash_path(&kept).expect("hashes").hash, info.nar_hash, "{name}: {log}");
        assert_eq!((fs::symlink_metadata(&kept).expect("it is kept").uid(), facts()), (0, before), "{name}");
    }
    assert_eq!(fs::read_to_string(&canaries[0]).expect("reads"), "alive");
    assert!(is_empty(&canaries[1]));
    field.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a05_neither_another_build_user_nor_anybody_on_the_host_can_enter_a_builds_directory() {
    let field = Field::new().await;
    // What lies above is not what keeps them out.
    fs::set_permissions(field.farm.dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let open = "umask 0; $b chmod 777 /build; echo secret > /build/secret; echo secret > /tmp/other; umask 22; echo > $out";
    let job = field.job("open", &format!("{open}; {WAIT}"));
    let outsider = async {
        let go = field.appears("waits").await.with_file_name("go");
        for secret in [field.appears("secret").await, field.appears("other").await] {
            assert_eq!(fs::metadata(&secret).expect("it is there").mode() & 0o777, 0o666);
            for user in [HostId::of_slot(1023).uid, 65534] {
                let mut command = Command::new("/bin/busybox");
                let read = command.arg("cat").arg(&secret).current_dir("/").uid(user).gid(user).output().expect("these tests need busybox");
                let words = String::from_utf8_lossy(&read.stderr).into_owned();
                assert!(read.stdout.is_empty() && words.contains("Permission denied"), "user {user}: {read:?}");
            }
        }
        fs::write(go, "").expect("let it go on");
    };
    tokio::join!(field.built(&job, 100), outsider);
    field.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a08_set_id_bits_that_the_filter_cannot_see_do_not_leave_the_sandbox() {
    let field = Field::new().await;
    let (info, log) = field.built(&field.job("set-id", "$attack set-id $out"), 100).await;
    for made in ["opened", "openat2"] {
        assert!(log.contains(&format!("{made} has a set-id bit: true")), "the attack came that far: {log}");
    }
    for (name, mode) in [("", 0o555), ("opened", 0o555), ("openat2", 0o555), ("made", 0o555)] {
        let meta = fs::symlink_metadata(field.cached(&info.path).join(name)).expect("it is kept");
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (mode, 0), "{name}");
    }
    field.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a11_a_device_a_fifo_or_a_socket_in_an_output_fails_its_build() {
    let field = Field::new().await;
    let table = [
        ("fifo", "$b mkdir $out; $b mkfifo $out/x", "unsupported type `fifo`"),
        ("alone", "$b mkfifo $out", "unsupported type `fifo`"),
        ("socket", "$b mkdir $out; $attack socket $out/x", "unsupported type `socket`"),
        ("character", "$b mkdir $out; $b mknod $out/x c 1 3", "exit code 1"),
        ("block", "$b mkdir $out; $b mknod $out/x b 7 0", "exit code 1"),
    ];
    for (attempt, (name, script, words)) in (100..).zip(table) {
        let (class, message) = field.failed(&field.job(name, script), attempt, JobLimits::default()).await;
        assert!(class == FailureClass::BuildFailure && message.contains(words), "{name}: {class:?} {message}");
    }
    field.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a12_a_daemon_that_a_builder_leaves_behind_writes_nothing_more() {
    let field = Field::new().await;
    // It holds the file open: what is kept may lie elsewhere.
    let daemon = "trap \"\" HUP INT TERM; exec 3>>$0; while :; do echo more >&3; done";
    let script = format!(
        "echo first > $out; ($b setsid $b sh -c '{daemon}' $out >/dev/null 2>&1 </dev/null &)
         while [ $($b wc -c < $out) -lt 1000 ]; do :; done"
    );
    // A name of this test's own: the same may run elsewhere on this machine.
    let name = format!("daemon-{}", std::process::id());
    let (info, _) = field.built(&field.job(&name, &script), 100).await;
    let commands = fs::read_dir("/proc").expect("list processes").flatten().filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let alive = commands.filter(|command| String::from_utf8_lossy(command).contains(&name)).count();
    assert_eq!(alive, 0, "nothing of the build lives when its end is reported");
    let kept = field.cached(&info.path);
    assert!(fs::metadata(&kept).expect("it is kept").len() >= 1000);
    assert_eq!(kiln_nix::nar::hash_path(&kept).expect("hashes").hash, info.nar_hash);
    field.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a15_outputs_over_their_size_are_refused_unread_and_leave_nothing() {
    let field = Field::new().await;
    let small = JobLimits { output_bytes_max: 100_000, ..JobLimits::default() };
    let table = [
        ("sparse", "$b dd if=/dev/null of=$out bs=1048576 seek=8000000"),
        ("large", "$b dd if=/dev/zero of=$out bs=100001 count=1"),
        ("many", "$b mkdir $out; for n in 1 2 3; do $b dd if=/dev/zero of=$out/$n bs=50000 count=1; done"),
    ];
    for (attempt, (name, script)) in (100..).zip(table) {
        let (class, message) = field.failed(&field.job(name, script), attempt, small).await;
        assert!(class == FailureClass::LimitExceeded && message.contains("the job's output size limit"), "{name}: {class:?} {message}");
    }
    field.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a23_a_tree_deeper_than_any_path_is_refused_and_does_not_stay() {
    let field = Field::new().await;
    for (attempt, (name, script)) in (100..).zip([("output", "$attack deep $out 3000"), ("beside", "$attack deep /build/x 3000; exit 1")]) {
        let (class, message) = field.failed(&field.job(name, script), attempt, JobLimits::default()).await;
        let words = if name == "output" { "directories deep" } else { "exit code 1" };
        assert!(class == FailureClass::BuildFailure && message.contains(words), "{name}: {class:?} {message}");
        assert!(message.len() < 1000, "{message}");
    }
    field.end().await;
}
