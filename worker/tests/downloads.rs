//! Whole attempts of `builtin:fetchurl` against a scripted coordinator: sessions, results, restarts, hostile bytes.

mod farm;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use farm::{Farm, Job, store_path};
use kiln_nix::content::{ContentAddress, Method};
use kiln_nix::derivation::{Derivation, Output};
use kiln_nix::hash::{Algorithm, Hash, Hasher};
use kiln_wire::worker::FromWorker;
use kiln_wire::{FailureClass, Outcome, OutputName, StoreDir};
use kiln_worker::{NetworkMode, Worker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// A server that answers every request with `content`, once it may.
async fn server(content: &'static str, may_answer: Option<Arc<Notify>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let may_answer = may_answer.clone();
            tokio::spawn(async move {
                let _ = socket.read(&mut [0u8; 4096]).await;
                if let Some(may_answer) = may_answer {
                    may_answer.notified().await;
                }
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{content}", content.len());
                // A killed attempt has hung up.
                let _ = socket.write_all(answer.as_bytes()).await;
            });
        }
    });
    format!("http://{addr}/")
}

/// A worker whose downloads reach the loopback, where the servers are.
fn start(farm: &Farm) -> Worker {
    farm.worker_with(|config| config.fixed_output_network.mode = NetworkMode::Host)
}

fn sha256(content: &str) -> Hash {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(content.as_bytes());
    hasher.finish()
}

fn download(name: &str, url: &str, hash: Hash) -> Job {
    let address = ContentAddress { method: Method::Flat, hash };
    let path = address.path(&StoreDir::default(), name, &Default::default(), false).expect("a path");
    let env = [("url", url), ("out", &StoreDir::default().join(&path))].map(|(name, value)| (name.into(), value.as_bytes().to_vec()));
    Job::new(Derivation {
        name: name.into(),
        outputs: [(OutputName::parse("out").expect("a name"), Output::Fixed { address, path })].into(),
        inputs: BTreeMap::new(),
        sources: Default::default(),
        system: "builtin".into(),
        builder: "builtin:fetchurl".into(),
        args: Vec::new(),
        env: env.into(),
    })
}

fn failure(outcome: Outcome) -> (FailureClass, String) {
    match outcome {
        Outcome::Failed { failure, .. } => (failure.class, failure.message),
        Outcome::Built { outputs, .. } => panic!("it was built: {outputs:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_is_uploaded_verified_and_reported_once() {
    let farm = Farm::start().await;
    let worker = start(&farm);
    let hello = farm.hello().await;
    assert!(hello.offer.systems.contains("x86_64-linux") && hello.attempts.is_empty());
    let url = server("content", None).await;
    let job = download("file", &url, sha256("content"));
    let assignment = farm.assignment(&job, 100, vec![]);
    // The same dispatch twice is one attempt.
    farm.dispatch(&assignment);
    farm.dispatch(&assignment);
    farm.started(&assignment.lease).await;
    let (log, outcome) = farm.finished(&assignment.lease).await;
    assert!(log.contains(&format!("downloading {url}")), "{log}");
    let Outcome::Built { outputs, usage } = outcome else { panic!("{outcome:?}\n{log}") };
    assert_eq!(usage.log_bytes, log.len() as u64);
    let info = &outputs[0].info;
    assert_eq!(farm.uploaded(&info.path).as_ref(), Some(info), "what is reported is what was stored");
    assert_eq!(info.content_address, Some(format!("fixed:{}", sha256("content").to_nix32())));
    assert_eq!(info.deriver.as_ref(), Some(&job.path));
    farm.acknowledge(&assignment.lease);
    farm.dispatch(&assignment);
    // Nothing came of the repeats: the next thing heard is of the next attempt.
    let next = farm.assignment(&job, 101, vec![]);
    farm.dispatch(&next);
    farm.started(&next.lease).await;
    farm.finished(&next.lease).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_content_is_a_hash_mismatch_with_both_hashes() {
    let farm = Farm::start().await;
    let worker = start(&farm);
    farm.hello().await;
    let job = download("file", &server("evil", None).await, sha256("good"));
    let assignment = farm.assignment(&job, 100, vec![]);
    farm.dispatch(&assignment);
    let (class, message) = failure(farm.finished(&assignment.lease).await.1);
    let expect = format!(
        "hash mismatch in fixed-output derivation `/nix/store/{}`: specified: {} got: {}",
        job.path,
        sha256("good").to_sri(),
        sha256("evil").to_sri()
    );
    assert_eq!((class, message), (FailureClass::BuildFailure, expect));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_outlives_its_session() {
    let farm = Farm::start().await;
    let worker = start(&farm);
    farm.hello().await;
    let may_answer = Arc::new(Notify::new());
    let job = download("file", &server("content", Some(may_answer.clone())).await, sha256("content"));
    let assignment = farm.assignment(&job, 100, vec![]);
    farm.dispatch(&assignment);
    farm.started(&assignment.lease).await;
    farm.disconnect();
    assert_eq!(farm.hello().await.attempts, std::slice::from_ref(&assignment.lease));
    may_answer.notify_one();
    let (log, outcome) = farm.finished(&assignment.lease).await;
    assert!(matches!(outcome, Outcome::Built { .. }), "{outcome:?}");
    assert!(log.starts_with("downloading"), "the log is said again from its start: {log}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_attempt_ends_without_a_report() {
    let farm = Farm::start().await;
    let worker = start(&farm);
    farm.hello().await;
    let never = Arc::new(Notify::new());
    let stuck = download("stuck", &server("content", Some(never)).await, sha256("content"));
    let assignment = farm.assignment(&stuck, 100, vec![]);
    farm.dispatch(&assignment);
    farm.started(&assignment.lease).await;
    farm.revoke(&assignment.lease);
    let next = farm.assignment(&download("next", &server("content", None).await, sha256("content")), 101, vec![]);
    farm.dispatch(&next);
    loop {
        match farm.hear().await {
            FromWorker::Finished { lease, outcome } => {
                assert_eq!(lease, next.lease, "{outcome:?}");
                break;
            }
            FromWorker::Started(_) => {}
            other => panic!("unexpected: {other:?}"),
        }
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unacknowledged_result_is_sent_again_after_a_restart() {
    let farm = Farm::start().await;
    let worker = start(&farm);
    farm.hello().await;
    let job = download("file", &server("content", None).await, sha256("content"));
    let assignment = farm.assignment(&job, 100, vec![]);
    farm.dispatch(&assignment);
    let (_, first) = farm.finished(&assignment.lease).await;
    worker.stop().await;

    let worker = start(&farm);
    assert_eq!(farm.hello().await.attempts, std::slice::from_ref(&assignment.lease));
    assert_eq!(farm.finished(&assignment.lease).await.1, first);
    farm.acknowledge(&assignment.lease);
    // Asked to finish, it waits for nothing more than the acknowledgement.
    worker.finish().await;

    let worker = start(&farm);
    assert_eq!(farm.hello().await.attempts, []);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_finishes_ends_what_runs_and_takes_nothing_new() {
    let farm = Farm::start().await;
    let worker = start(&farm);
    farm.hello().await;
    let may_answer = Arc::new(Notify::new());
    let job = download("file", &server("content", Some(may_answer.clone())).await, sha256("content"));
    let assignment = farm.assignment(&job, 100, vec![]);
    farm.dispatch(&assignment);
    farm.started(&assignment.lease).await;
    let finishing = tokio::spawn(worker.finish());
    tokio::task::yield_now().await;
    may_answer.notify_one();
    assert!(matches!(farm.finished(&assignment.lease).await.1, Outcome::Built { .. }));
    farm.acknowledge(&assignment.lease);
    tokio::time::timeout(Duration::from_secs(20), finishing).await.expect("it ends").expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_and_missing_inputs_are_named_and_nobodys_build_failure() {
    let farm = Farm::start().await;
    let worker = start(&farm);
    farm.hello().await;
    let tree = farm.dir.path().join("tree");
    let mut noise = vec![0u8; 200_000];
    noise.iter_mut().enumerate().for_each(|(i, byte)| *byte = u8::try_from((i * i * 31 + i / 7) % 251).expect("below 251"));
    std::fs::write(&tree, noise).expect("write");
    let input = farm.add(&store_path("input"), &tree);
    let job = download("file", &server("content", None).await, sha256("content"));

    let mut absent = input.clone();
    absent.path = store_path("absent");
    let mut other = input.clone();
    other.nar_hash.0[0] ^= 1;
    let at = usize::try_from(input.blob.size_bytes / 2).expect("small");
    farm.corrupt(&input.path, at);
    let table = [
        (input.clone(), format!("fetch input `{}`: transfer blob: blob differs from its hash at offset", input.path)),
        (absent.clone(), format!("fetch input `{0}`: fetch `{0}`: the farm does not have it", absent.path)),
        (other, format!("fetch input `{}`: the farm has other facts about it than the assignment", input.path)),
    ];
    for (attempt, (info, words)) in (100..).zip(table) {
        let assignment = farm.assignment(&job, attempt, vec![info]);
        farm.dispatch(&assignment);
        let (class, message) = failure(farm.finished(&assignment.lease).await.1);
        assert_eq!(class, FailureClass::Infrastructure);
        assert!(message.starts_with(&words), "{message}");
        farm.acknowledge(&assignment.lease);
    }
    // Once the farm has good bytes again, so has the worker; the second time it fetches nothing.
    farm.corrupt(&input.path, at);
    farm.build(&job, 200, vec![input.clone()]).await;
    let fetched = farm.fetches().len();
    farm.build(&job, 201, vec![input.clone()]).await;
    assert_eq!(farm.fetches().len(), fetched);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a28_an_assignment_with_another_derivations_bytes_is_refused() {
    let farm = Farm::start().await;
    let worker = start(&farm);
    farm.hello().await;
    let job = download("file", "http://127.0.0.1:1/", sha256("content"));
    let mut assignment = farm.assignment(&job, 100, vec![]);
    assignment.derivation = download("file", "http://127.0.0.1:2/", sha256("content")).bytes;
    farm.dispatch(&assignment);
    let (class, message) = failure(farm.finished(&assignment.lease).await.1);
    assert_eq!(class, FailureClass::Infrastructure);
    assert!(message.contains("the assignment brings the bytes of `"), "{message}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_does_not_reach_the_workers_own_machine() {
    let farm = Farm::start().await;
    let worker = farm.worker();
    farm.hello().await;
    let job = download("file", &server("content", None).await, sha256("content"));
    let assignment = farm.assignment(&job, 100, vec![]);
    farm.dispatch(&assignment);
    let (class, message) = failure(farm.finished(&assignment.lease).await.1);
    assert_eq!(class, FailureClass::BuildFailure);
    let words = "127.0.0.1 (127.0.0.1) is among the addresses that builds of this worker must not reach (`127.0.0.0/8`)";
    assert!(message.contains(words), "{message}");
    worker.stop().await;
}
