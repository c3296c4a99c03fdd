//! Inputs of whole attempts, against a scripted coordinator: how they are fetched, who keeps them, and who sees them.

mod farm;

use std::path::PathBuf;
use std::sync::Arc;

use farm::{Farm, Job, store_path};
use kiln_wire::{Outcome, PathInfo, StorePath};

/// A farm that offers a busybox and inputs of these names, each a file with its name in it.
async fn farm_with(names: &[&str]) -> (Arc<Farm>, PathInfo, Vec<PathInfo>) {
    let farm = Farm::start().await;
    let tree = farm.dir.path().join("busybox");
    std::fs::create_dir_all(tree.join("bin")).expect("mkdir");
    std::fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("these tests need busybox-static");
    let busybox = farm.add(&store_path("busybox"), &tree);
    let inputs = names.iter().map(|name| {
        let file = farm.dir.path().join(name);
        std::fs::write(&file, name.repeat(5000)).expect("write");
        farm.add(&store_path(name), &file)
    });
    let inputs = inputs.collect();
    (farm, busybox, inputs)
}

fn all(busybox: &PathInfo, inputs: &[PathInfo]) -> Vec<PathInfo> {
    std::iter::once(busybox).chain(inputs).cloned().collect()
}

fn cached(farm: &Farm, path: &StorePath) -> PathBuf {
    farm.dir.path().join("worker/store").join(path.as_str())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_inputs_of_one_attempt_are_fetched_at_the_same_time() {
    let (farm, busybox, inputs) = farm_with(&["a", "b", "c"]).await;
    let worker = farm.worker();
    farm.hello().await;
    // None is answered before all are asked for.
    farm.answer_fetches_together(4);
    farm.build(&Job::script("x", &busybox.path, &["out"], "echo x > $out"), 100, all(&busybox, &inputs)).await;
    assert_eq!(farm.fetches().len(), 4);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_are_fetched_at_a_time_than_the_worker_may() {
    let (farm, busybox, inputs) = farm_with(&["a", "b", "c", "d", "e"]).await;
    let worker = farm.worker_with(|config| config.fetches_max = 2);
    farm.hello().await;
    // Six in pairs: a third one could not be answered, and one alone neither.
    farm.answer_fetches_together(2);
    farm.build(&Job::script("x", &busybox.path, &["out"], "echo x > $out"), 100, all(&busybox, &inputs)).await;
    assert_eq!((farm.fetches().len(), farm.fetches_at_a_time()), (6, 2));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_attempts_that_want_an_input_fetch_it_once() {
    let (farm, busybox, inputs) = farm_with(&["a", "b"]).await;
    let worker = farm.worker();
    farm.hello().await;
    // Three paths in all, for four wishes besides the busybox of each.
    farm.answer_fetches_together(3);
    let jobs = ["x", "y"].map(|name| Job::script(name, &busybox.path, &["out"], "echo x > $out"));
    let assignments = [(&jobs[0], 100), (&jobs[1], 101)].map(|(job, attempt)| farm.assignment(job, attempt, all(&busybox, &inputs)));
    assignments.iter().for_each(|assignment| farm.dispatch(assignment));
    let mut built = 0;
    while built < 2 {
        if let kiln_wire::worker::FromWorker::Finished { outcome, .. } = farm.hear().await {
            assert!(matches!(outcome, Outcome::Built { .. }), "{outcome:?}");
            built += 1;
        }
    }
    assert_eq!(farm.fetches().len(), 3);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inputs_stay_while_their_lease_does_and_go_when_there_is_no_room_for_them() {
    let (farm, busybox, inputs) = farm_with(&["used", "other"]).await;
    let [used, other] = inputs.as_slice() else { panic!("two inputs") };
    let worker = farm.worker_with(|config| config.cache_bytes_max = 1);
    farm.hello().await;
    let script = "$b sleep 1000";
    let stuck = farm.assignment(&Job::script("stuck", &busybox.path, &["out"], script), 100, vec![busybox.clone(), used.clone()]);
    farm.dispatch(&stuck);
    farm.started(&stuck.lease).await;
    let next = Job::script("next", &busybox.path, &["out"], "echo x > $out");
    farm.build(&next, 101, vec![busybox.clone(), other.clone()]).await;
    assert!(cached(&farm, &used.path).exists() && cached(&farm, &busybox.path).exists(), "a running build has them");
    assert!(!cached(&farm, &other.path).exists(), "nobody has it any more, and there is no room");
    farm.revoke(&stuck.lease);
    worker.finish().await;
    assert!(!cached(&farm, &used.path).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_sees_its_own_inputs_and_nothing_else_of_the_cache() {
    let (farm, busybox, inputs) = farm_with(&["mine", "others"]).await;
    let worker = farm.worker();
    farm.hello().await;
    farm.build(&Job::script("first", &busybox.path, &["out"], "echo x > $out"), 100, all(&busybox, &inputs)).await;
    assert!(cached(&farm, &inputs[1].path).exists());
    let outputs =
        farm.build(&Job::script("list", &busybox.path, &["out"], "$b ls /nix/store > $out"), 101, all(&busybox, &inputs[..1])).await;
    let listed = std::fs::read_to_string(cached(&farm, &outputs[0].info.path)).expect("reads");
    let mut listed: Vec<_> = listed.lines().collect();
    listed.retain(|name| *name != outputs[0].info.path.as_str());
    let mut expect = [busybox.path.as_str(), inputs[0].path.as_str()];
    expect.sort_unstable();
    assert_eq!(listed, expect);
    worker.stop().await;
}

/// Of the worker's two ways to a store path, fetching and building, both share what they bring.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_fetched_and_built_is_on_the_disk_once() {
    use std::os::unix::fs::MetadataExt as _;
    for share in [true, false] {
        let (farm, busybox, inputs) = farm_with(&["data"]).await;
        let worker = farm.worker_with(|config| config.cache_shares_files = share);
        farm.hello().await;
        let script = format!("$b mkdir $out; $b cp /nix/store/{} $out/copy", inputs[0].path);
        let job = Job::script("copy", &busybox.path, &["out"], &script);
        let outputs = farm.build(&job, 100, all(&busybox, &inputs)).await;
        let [fetched, built] = [cached(&farm, &inputs[0].path), cached(&farm, &outputs[0].info.path).join("copy")]
            .map(|file| std::fs::metadata(file).expect("is there").ino());
        assert_eq!(fetched == built, share);
        worker.stop().await;
    }
}
