//! A worker among several coordinators: it finds the one that leads, and takes its builds along to the next.

mod farm;

use farm::{Farm, Job, store_path};
use kiln_wire::{Outcome, PathInfo};

/// Adds the program that the jobs of these tests run.
fn busybox(farm: &Farm) -> PathInfo {
    let tree = farm.dir.path().join("busybox");
    std::fs::create_dir_all(tree.join("bin")).expect("mkdir");
    std::fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("these tests need busybox-static");
    farm.add(&store_path("busybox"), &tree)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_finds_the_leader_behind_a_coordinator_that_does_not_lead() {
    let farm = Farm::start().await;
    let second = farm.add_coordinator(2);
    farm.elect(2);
    let worker = farm.worker_with(|config| config.coordinators.push(second));
    assert_eq!(farm.hello().await.attempts, []);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_goes_on_when_its_leader_is_cut_off_and_the_next_one_takes_its_result() {
    let farm = Farm::start().await;
    let busybox = busybox(&farm);
    let second = farm.add_coordinator(2);
    let worker = farm.worker_with(|config| config.coordinators.push(second));
    farm.hello().await;
    let job = Job::script("long", &busybox.path, &["out"], "echo before; $b sleep 2; echo after; echo built > $out");
    let assignment = farm.assignment(&job, 100, vec![busybox]);
    farm.dispatch(&assignment);
    farm.started(&assignment.lease).await;
    // The first leader neither closes the session nor answers; nothing waits for a time-out.
    farm.elect(2);
    assert_eq!(farm.hello().await.attempts, std::slice::from_ref(&assignment.lease), "the attempt goes on under its lease");
    let (log, outcome) = farm.finished(&assignment.lease).await;
    assert_eq!(log, "before\nafter\n");
    assert!(matches!(outcome, Outcome::Built { .. }), "{outcome:?}");
    farm.acknowledge(&assignment.lease);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_leader_is_told_whom_the_worker_obeyed_before_it() {
    let farm = Farm::start().await;
    let busybox = busybox(&farm);
    let second = farm.add_coordinator(2);
    let worker = farm.worker_with(|config| config.coordinators.push(second));
    farm.hello().await;
    // A worker that begins what a leader gave it has obeyed it; one that said hello may not have heard the welcome.
    begin(&farm, "first", 1, &busybox).await;
    farm.elect(2);
    let seen = farm.hello().await.leader_seen;
    assert_eq!(seen.term, 1, "the hello says whom the worker obeyed before");
    begin(&farm, "second", 2, &busybox).await;
    farm.elect(1);
    assert_eq!(farm.hello().await.leader_seen.term, 2);
    worker.stop().await;
}

/// Has the worker begin a build that goes on until somebody stops it.
async fn begin(farm: &Farm, name: &str, attempt: u64, busybox: &PathInfo) {
    let job = Job::script(name, &busybox.path, &["out"], "$b sleep 1000");
    let assignment = farm.assignment(&job, attempt, vec![busybox.clone()]);
    farm.dispatch(&assignment);
    farm.started(&assignment.lease).await;
}
