//! Whole attempts in real sandboxes against a scripted coordinator: what builders make, and what hostile ones try.

mod farm;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use farm::{Farm, Job, store_path};
use kiln_nix::content::{ContentAddress, Method};
use kiln_nix::derivation::Output;
use kiln_nix::hash::{Algorithm, Hasher};
use kiln_wire::client::{Refusal, RefusalKind, Response};
use kiln_wire::worker::FromWorker;
use kiln_wire::{FailureClass, JobLimits, Outcome, PathInfo, StoreDir, StorePath};

/// A farm that offers a busybox, and its path.
async fn farm_with_busybox() -> (Arc<Farm>, PathInfo) {
    let farm = Farm::start().await;
    let tree = farm.dir.path().join("busybox");
    std::fs::create_dir_all(tree.join("bin")).expect("mkdir");
    std::fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("these tests need busybox-static");
    let info = farm.add(&store_path("busybox"), &tree);
    (farm, info)
}

async fn failure_of(farm: &Farm, job: &Job, attempt: u64, busybox: &PathInfo, limits: JobLimits) -> (FailureClass, String, String) {
    let mut assignment = farm.assignment(job, attempt, vec![busybox.clone()]);
    assignment.limits = limits;
    farm.dispatch(&assignment);
    let (log, outcome) = farm.finished(&assignment.lease).await;
    farm.acknowledge(&assignment.lease);
    match outcome {
        Outcome::Failed { failure, .. } => (failure.class, failure.message, log),
        Outcome::Built { outputs, .. } => panic!("`{}` was built: {outputs:?}", job.path),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_are_found_hashed_and_used_by_the_next_build_without_a_fetch() {
    let (farm, busybox) = farm_with_busybox().await;
    let worker = farm.worker();
    farm.hello().await;
    let script = "$b mkdir $out $dev; echo hello > $out/file; echo $out > $dev/refers; $b ln -s $busybox $out/link; echo done";
    let lib = Job::script("lib", &busybox.path, &["out", "dev"], script);
    let outputs = farm.build(&lib, 100, vec![busybox.clone()]).await;
    let names: Vec<_> = outputs.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(names, ["out", "dev"], "what is referred to comes first");
    let [out, dev] = [&outputs[0].info, &outputs[1].info];
    assert_eq!(out.references, BTreeSet::from([busybox.path.clone()]));
    assert_eq!(dev.references, BTreeSet::from([out.path.clone()]));
    for info in [out, dev] {
        assert_eq!(farm.uploaded(&info.path).as_ref(), Some(info), "the farm verified exactly what is reported");
    }
    // The same tree, packed here, has the same hash.
    let copy = farm.dir.path().join("copy");
    std::fs::create_dir(&copy).expect("mkdir");
    std::fs::write(copy.join("file"), "hello\n").expect("write");
    std::os::unix::fs::symlink(format!("/nix/store/{}", busybox.path), copy.join("link")).expect("symlink");
    assert_eq!(kiln_nix::nar::hash_path(&copy).expect("hashes").hash, out.nar_hash);

    let fetched = farm.fetches().len();
    let script = format!("read line < /nix/store/{}/file; echo $line world > $out", out.path);
    let app = Job::script("app", &busybox.path, &["out"], &script);
    let outputs = farm.build(&app, 101, vec![busybox.clone(), out.clone()]).await;
    assert_eq!(farm.fetches().len(), fetched, "both inputs are here already");
    let text = worker_file(&farm, &outputs[0].info.path);
    assert_eq!(text, "hello world\n");
    worker.stop().await;
    assert_eq!(left_behind(&farm), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_build_begins_while_the_last_ones_outputs_are_uploaded() {
    let (farm, busybox) = farm_with_busybox().await;
    let worker = farm.worker_with(|config| config.slots = Some(1));
    farm.hello().await;
    let uploads = farm.hold_uploads().await;
    let job = |name: &str| Job::script(name, &busybox.path, &["out"], "echo done > $out");
    let (first, second) = (job("first"), job("second"));
    let [first, second] = [(&first, 100), (&second, 101)].map(|(job, attempt)| farm.assignment(job, attempt, vec![busybox.clone()]));
    farm.dispatch(&first);
    farm.dispatch(&second);
    farm.started(&first.lease).await;
    farm.started(&second.lease).await;
    drop(uploads);
    let mut ended = BTreeSet::new();
    while ended.len() < 2 {
        match farm.hear().await {
            FromWorker::Finished { lease, outcome: Outcome::Built { .. } } => _ = ended.insert(lease.attempt),
            other => panic!("unexpected: {other:?}"),
        }
    }
    [&first, &second].iter().for_each(|assignment| farm.acknowledge(&assignment.lease));
    worker.stop().await;
    assert_eq!(left_behind(&farm), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_say_what_happened_and_whose_fault_it_was() {
    let (farm, busybox) = farm_with_busybox().await;
    let worker = farm.worker();
    farm.hello().await;
    let second = JobLimits { wall_ms_max: 1000, ..JobLimits::default() };
    let small = JobLimits { output_bytes_max: 5000, ..JobLimits::default() };
    let free = JobLimits::default();
    let table = [
        ("exit", "echo oops >&2; exit 3", free, FailureClass::BuildFailure, "failed with exit code 3"),
        ("missing", "true", free, FailureClass::BuildFailure, "builder failed to produce output `out`"),
        ("slow", "$b sleep 100", second, FailureClass::LimitExceeded, "timed out: it ran longer than its limit of 1 s"),
        ("large", "$b dd if=/dev/zero of=$out bs=10000 count=1", small, FailureClass::LimitExceeded, "the job's output size limit"),
        ("sparse", "$b dd if=/dev/null of=$out bs=1048576 seek=1000000", free, FailureClass::LimitExceeded, "the job's output size limit"),
        ("fifo", "$b mkdir $out; $b mkfifo $out/pipe", free, FailureClass::BuildFailure, "`{out}/pipe` has unsupported type `fifo`"),
        ("open", "$b mkdir $out; $b chmod 777 $out", free, FailureClass::BuildFailure, "suspicious ownership or permission"),
        ("linked", "$b ln $busybox $out", free, FailureClass::BuildFailure, "failed with exit code 1"),
    ];
    for (attempt, (name, script, limits, class, words)) in (100..).zip(table) {
        let job = Job::script(name, &busybox.path, &["out"], script);
        let (found, message, log) = failure_of(&farm, &job, attempt, &busybox, limits).await;
        let words = words.replace("{out}", store_path(&format!("{name}-out")).as_str());
        assert!(found == class && message.contains(&words), "{name}: {found:?} {message}\n{log}");
        assert_eq!(log.contains("oops"), name == "exit", "{log}");
    }
    let cycle = Job::script("cycle", &busybox.path, &["out", "dev"], "echo $dev > $out; echo $out > $dev");
    let (class, message, _) = failure_of(&farm, &cycle, 200, &busybox, free).await;
    assert_eq!(class, FailureClass::BuildFailure);
    assert!(message.contains("cycle detected in the references of outputs `dev` → `out` → `dev`"), "{message}");
    worker.stop().await;
    assert_eq!(left_behind(&farm), Vec::<String>::new());
}

/// A small output is under way before the farm has said anything; a large one waits for the word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_ends_as_the_farm_says_whatever_is_under_way() {
    let (farm, busybox) = farm_with_busybox().await;
    let worker = farm.worker();
    farm.hello().await;
    let refused = |kind, message: &str| vec![Response::Refused(Refusal { kind, message: message.into(), paths: vec![] })];
    let table = [
        (vec![Response::UploadAt(None), Response::Stored], None),
        (refused(RefusalKind::StaleLease, "gone"), Some((FailureClass::Cancelled, "the lease has ended"))),
        (refused(RefusalKind::Invalid, "it is not an output of that"), Some((FailureClass::Infrastructure, "it is not an output of that"))),
    ];
    let scripts = [("small", "echo small > $out"), ("large", "$b dd if=/dev/urandom of=$out bs=1M count=1")];
    let mut attempt = 100;
    for ((answers, want), (size, script)) in table.iter().flat_map(|row| scripts.iter().map(move |script| (row, script))) {
        farm.answer_uploads(answers);
        attempt += 1;
        let job = Job::script(&format!("{size}-{attempt}"), &busybox.path, &["out"], script);
        let assignment = farm.assignment(&job, attempt, vec![busybox.clone()]);
        farm.dispatch(&assignment);
        let (_, outcome) = farm.finished(&assignment.lease).await;
        farm.acknowledge(&assignment.lease);
        match (outcome, want) {
            (Outcome::Built { outputs, .. }, None) => assert_eq!(outputs.len(), 1, "{size}"),
            (Outcome::Failed { failure, .. }, Some((class, message))) => {
                assert_eq!(failure.class, *class, "{size}: {}", failure.message);
                assert!(failure.message.contains(message), "{size}: {}", failure.message);
            }
            (outcome, want) => panic!("{size}: wanted {want:?}, got {outcome:?}"),
        }
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_in_the_place_of_an_output_changes_nothing_outside() {
    use std::os::unix::fs::MetadataExt;
    let (farm, busybox) = farm_with_busybox().await;
    let worker = farm.worker();
    farm.hello().await;
    let canary = farm.dir.path().join("canary");
    std::fs::write(&canary, "alive").expect("write");
    let before = std::fs::metadata(&canary).expect("stat");
    let script = format!("$b ln -s {} $out", canary.display());
    let outputs = farm.build(&Job::script("swap", &busybox.path, &["out"], &script), 100, vec![busybox.clone()]).await;
    assert!(outputs[0].info.references.is_empty());
    let script = "$b mkdir $out; echo x > $out/tool; $b chmod 755 $out/tool; $b chmod 4755 $out/tool || true";
    let outputs = farm.build(&Job::script("setuid", &busybox.path, &["out"], script), 101, vec![busybox]).await;
    let tool = std::fs::metadata(cached(&farm, &outputs[0].info.path).join("tool")).expect("stat");
    assert_eq!((tool.mode() & 0o7777, tool.uid(), tool.mtime()), (0o555, 0, 1));
    let after = std::fs::metadata(&canary).expect("stat");
    assert_eq!((before.mode(), before.mtime(), before.uid()), (after.mode(), after.mtime(), after.uid()));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_build_is_killed_and_its_place_is_free() {
    let (farm, busybox) = farm_with_busybox().await;
    let worker = farm.worker_with(|config| config.slots = Some(1));
    farm.hello().await;
    let stuck = farm.assignment(&Job::script("stuck", &busybox.path, &["out"], "$b sleep 1000"), 100, vec![busybox.clone()]);
    farm.dispatch(&stuck);
    farm.started(&stuck.lease).await;
    farm.revoke(&stuck.lease);
    let next = farm.assignment(&Job::script("next", &busybox.path, &["out"], "echo x > $out"), 101, vec![busybox]);
    farm.dispatch(&next);
    farm.started(&next.lease).await;
    match farm.hear().await {
        FromWorker::Finished { lease, outcome: Outcome::Built { .. } } => assert_eq!(lease, next.lease),
        other => panic!("want the end of the next build, got {other:?}"),
    }
    worker.stop().await;
    assert_eq!(left_behind(&farm), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_goes_on_through_a_reconnect_and_its_whole_log_arrives() {
    let (farm, busybox) = farm_with_busybox().await;
    let worker = farm.worker();
    farm.hello().await;
    let script = "echo before; $b sleep 1; i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; echo x > $out";
    let assignment = farm.assignment(&Job::script("talks", &busybox.path, &["out"], script), 100, vec![busybox]);
    farm.dispatch(&assignment);
    farm.started(&assignment.lease).await;
    farm.disconnect();
    assert_eq!(farm.hello().await.attempts, std::slice::from_ref(&assignment.lease));
    let (log, outcome) = farm.finished(&assignment.lease).await;
    assert!(matches!(outcome, Outcome::Built { .. }), "{outcome:?}");
    let expect: String = std::iter::once("before\n".to_owned()).chain((0..3000).map(|i| format!("line {i}\n"))).collect();
    assert!(log == expect, "{} bytes of log instead of {}", log.len(), expect.len());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_was_cut_goes_on_where_it_stopped() {
    let (farm, busybox) = farm_with_busybox().await;
    let worker = farm.worker();
    farm.hello().await;
    let mut noise = vec![0u8; 40 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let tree = farm.dir.path().join("noise");
    std::fs::write(&tree, &noise).expect("write");
    let large = farm.add(&store_path("noise"), &tree);
    farm.cut_in(&large.path);
    let script = format!("$b sha256sum < /nix/store/{} > $out", large.path);
    let job = Job::script("sum", &busybox.path, &["out"], &script);
    let assignment = farm.assignment(&job, 100, vec![busybox, large.clone()]);
    farm.dispatch(&assignment);
    let (log, outcome) = farm.finished(&assignment.lease).await;
    assert!(matches!(outcome, Outcome::Built { .. }), "{outcome:?}\n{log}");
    let offsets: Vec<u64> = farm.fetches().into_iter().filter(|(path, _)| *path == large.path).map(|(_, offset)| offset).collect();
    assert!(offsets.len() == 2 && offsets[0] == 0 && offsets[1] > 0, "want two fetches, the second from further on: {offsets:?}");
    worker.stop().await;
}

/// The output of a build that is 8 MiB of noise, cut in its middle on its way to the farm.
async fn cut_upload(farm: &Farm, busybox: PathInfo, between: impl FnOnce() + Send + 'static) -> (PathInfo, Outcome) {
    let mut noise = vec![0u8; 8 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let tree = farm.dir.path().join("noise");
    std::fs::write(&tree, &noise).expect("write");
    let large = farm.add(&store_path("noise"), &tree);
    let job = Job::script("copy", &busybox.path, &["out"], &format!("$b cp /nix/store/{} $out", large.path));
    let assignment = farm.assignment(&job, 100, vec![busybox, large.clone()]);
    farm.cut_upload_at(large.blob.size_bytes / 2, between);
    farm.dispatch(&assignment);
    (large, farm.finished(&assignment.lease).await.1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_was_cut_goes_on_where_it_stopped() {
    let (farm, busybox) = farm_with_busybox().await;
    let worker = farm.worker();
    farm.hello().await;
    let (large, outcome) = cut_upload(&farm, busybox, || ()).await;
    assert!(matches!(outcome, Outcome::Built { .. }), "{outcome:?}");
    let size = large.blob.size_bytes;
    let tries = farm.upload_tries();
    let [first, second] = tries.as_slice() else { panic!("want two tries: {tries:?}") };
    assert_eq!(first.offset_bytes, 0);
    assert!(first.came_bytes >= size / 2 && first.came_bytes < size, "{tries:?}");
    // All that came is kept, but for the group that it ends in.
    let kept = first.came_bytes / kiln_store::RESUME_BYTES * kiln_store::RESUME_BYTES;
    assert_eq!((second.offset_bytes, second.came_bytes), (kept, size - kept), "{tries:?}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_that_flips_before_an_upload_goes_on_is_found_at_once() {
    let (farm, busybox) = farm_with_busybox().await;
    let worker = farm.worker();
    farm.hello().await;
    let spool = farm.dir.path().join("worker/spool");
    let (large, outcome) = cut_upload(&farm, busybox, move || flip_in(&spool, 7 << 20)).await;
    let Outcome::Failed { failure, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.class, FailureClass::Infrastructure);
    let words = "its packed bytes have changed on the worker's disk since it was packed";
    assert!(failure.message.contains(words), "{}", failure.message);
    let copy = store_path("copy-out");
    assert_eq!(farm.uploaded(&copy), None, "the farm takes no such byte");
    let tries = farm.upload_tries();
    assert!(tries.iter().map(|tried| tried.came_bytes).sum::<u64>() < large.blob.size_bytes, "{tries:?}");
    worker.stop().await;
}

/// Flips a byte of the one large blob that waits in a spool, in a file without a name.
fn flip_in(spool: &Path, at: u64) {
    use std::os::unix::fs::FileExt as _;
    let open = std::fs::read_dir("/proc/self/fd").expect("lists").map(|entry| entry.expect("an entry").path());
    let spooled = open.filter(|fd| std::fs::read_link(fd).is_ok_and(|file| file.starts_with(spool)));
    let files: Vec<_> = spooled.map(|fd| std::fs::File::options().read(true).write(true).open(fd).expect("opens")).collect();
    let file = files.iter().find(|file| file.metadata().is_ok_and(|meta| meta.len() > at)).expect("a blob is spooled");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("reads");
    file.write_all_at(&[byte[0] ^ 1], at).expect("writes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_requires_a_range_of_ids_is_root_of_it_and_no_other_is() {
    use std::os::unix::fs::MetadataExt;
    let (farm, busybox) = farm_with_busybox().await;
    let worker = farm.worker();
    let offer = farm.hello().await.offer;
    assert!(offer.features.contains("uid-range") && offer.guarantees["uid-range"].starts_with("65536 ids"), "{offer:?}");
    let script = "$b mkdir $out; $b id -u > $out/id; echo x > $out/file; $b chown 4242 $out/file || echo refused";
    let requiring = |name: &str| {
        let mut derivation = Job::script(name, &busybox.path, &["out"], script).derivation;
        derivation.env.insert("requiredSystemFeatures".into(), b"uid-range".to_vec());
        derivation
    };
    let outputs = farm.build(&Job::new(requiring("range")), 100, vec![busybox.clone()]).await;
    let out = cached(&farm, &outputs[0].info.path);
    assert_eq!(std::fs::read_to_string(out.join("id")).expect("read"), "0\n");
    let file = std::fs::metadata(out.join("file")).expect("stat");
    assert_eq!((file.mode() & 0o7777, file.uid(), file.gid(), file.mtime()), (0o444, 0, 0, 1));
    let outputs = farm.build(&Job::script("plain", &busybox.path, &["out"], script), 101, vec![busybox.clone()]).await;
    assert_eq!(std::fs::read_to_string(cached(&farm, &outputs[0].info.path).join("id")).expect("read"), "1000\n");
    // Root of a network that leads outside could open what is closed in it.
    let mut outside = requiring("outside");
    let hash = Hasher::new(Algorithm::Sha256).finish();
    let address = ContentAddress { method: Method::Flat, hash };
    let path = address.path(&StoreDir::default(), "outside", &BTreeSet::new(), false).expect("a path");
    outside.outputs.values_mut().for_each(|output| *output = Output::Fixed { address: address.clone(), path: path.clone() });
    let (class, message, _) = failure_of(&farm, &Job::new(outside), 102, &busybox, JobLimits::default()).await;
    assert!(class == FailureClass::BuildFailure && message.contains("`uid-range` is not for builds with a network"), "{message}");
    worker.stop().await;
    assert_eq!(left_behind(&farm), Vec::<String>::new());
}

fn cached(farm: &Farm, path: &StorePath) -> std::path::PathBuf {
    farm.dir.path().join("worker/store").join(path.as_str())
}

fn worker_file(farm: &Farm, path: &StorePath) -> String {
    std::fs::read_to_string(cached(farm, path)).expect("it is in the worker's cache")
}

/// Directories of builds that are still there.
fn left_behind(farm: &Farm) -> Vec<String> {
    let list =
        |dir: &Path| std::fs::read_dir(dir).expect("lists").map(|entry| entry.expect("an entry").file_name().into_string().expect("text"));
    list(&farm.dir.path().join("worker/build")).chain(list(&farm.dir.path().join("worker/incoming"))).collect()
}
