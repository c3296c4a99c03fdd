//! Small runs of the whole harness in one process: every job is built once and reported, with one coordinator and with three.

use std::collections::BTreeSet;
use std::time::Duration;

use kiln_load::crew::{Crew, Work};
use kiln_load::farm::Farm;
use kiln_load::figures::Figures;
use kiln_load::recipe::Recipes;
use kiln_load::run;
use kiln_load::shape::Shape;
use kiln_wire::client::BuildState;

/// Longer than it takes on a machine that does other work too: passing it is a failure, never a measurement.
const LIMIT: Duration = Duration::from_secs(120);

async fn perform(coordinators: u8, shape: &Shape, work: Work) -> Figures {
    let dir = tempfile::tempdir().expect("a directory");
    let farm = Farm::start(None, coordinators, dir.path()).await.expect("the farm starts");
    let (systems, features) = shape.needs();
    let hired = Crew { workers: 20, slots: 4, systems, features }.hire(&farm).expect("workers start");
    let client = farm.client("client").await.expect("a client connects");
    client.wait_for_workers(20).await.expect("workers connect");
    let recipes = Recipes::write(shape, "test", 1000).expect("written");
    let figures = run::run(&farm, &client, &hired, recipes, work, 1, LIMIT).await.expect("it ends");
    drop(hired);
    farm.stop().await;
    figures
}

fn check_built_once(figures: &Figures, jobs: usize, roots: usize) {
    assert_eq!(figures.ended.view.state, BuildState::Built, "{:?}", figures.troubles);
    assert_eq!((figures.jobs, figures.ended.view.counts.built), (jobs, jobs as u64));
    assert_eq!(figures.ended.view.outputs.values().filter(|outputs| outputs.len() == 1).count(), roots, "each has its output");
    assert_eq!(figures.fetchable, roots, "and can be fetched");
    assert_eq!(figures.receipts.iter().copied().collect::<BTreeSet<u32>>(), BTreeSet::from([1]), "no job is received twice");
    assert_eq!((figures.ended.built, figures.ended.retried), (jobs, 0), "the client is told of each");
    assert_eq!(figures.troubles, [].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_job_is_built_once_by_one_coordinator() {
    let figures = perform(1, &Shape::chains(20, 10), Work::Build { median: Duration::from_millis(2) }).await;
    check_built_once(&figures, 200, 20);
    assert_eq!(figures.hops.map(|hops| hops.count), Some(180), "each that has an input");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_job_is_built_once_by_three_coordinators() {
    check_built_once(&perform(3, &Shape::wide(200), Work::Build { median: Duration::ZERO }).await, 200, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_are_refused_fail_once_each() {
    let figures = perform(1, &Shape::wide(200), Work::Refuse).await;
    assert_eq!((figures.ended.view.state, figures.ended.view.counts.failed), (BuildState::Failed, 200));
    assert_eq!(figures.receipts.iter().copied().collect::<BTreeSet<u32>>(), BTreeSet::from([1]));
}
