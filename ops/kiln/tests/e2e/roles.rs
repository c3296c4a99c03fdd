//! What a certificate's role does not allow is refused by the coordinator, whatever program asks.

use std::net::SocketAddr;

use kiln_link::{Dialer, Identity};
use kiln_wire::StorePath;
use kiln_wire::client::{RefusalKind, Request, Response};

use crate::crashes::Daemons;
use crate::farm::{Process, wait_for};

#[test]
fn a_client_cannot_open_a_workers_session_and_a_worker_cannot_ask_what_clients_ask() {
    let daemons = Daemons::with("{ }");
    let _coordinator = daemons.start("coordinator");
    daemons.wait_until_up();
    let table: [(&str, &[Request]); 2] =
        [("client/me", &[Request::Session]), ("worker/w1", &[Request::Status, Request::Jobs, Request::Missing(vec![])])];
    for (role, requests) in table {
        for answer in ask_as(&daemons, role, requests) {
            let Response::Refused(refusal) = answer else { panic!("{role} was answered {answer:?}") };
            assert_eq!(refusal.kind, RefusalKind::Forbidden, "{}", refusal.message);
            assert!(refusal.message.contains(role.split('/').next_back().expect("a name")), "{}", refusal.message);
        }
    }
}

/// Sends requests with the certificate of this role, each on a stream of its own, and returns the first answer to each.
pub fn ask_as(daemons: &Daemons, role: &str, requests: &[Request]) -> Vec<Response> {
    let addr: SocketAddr = daemons.url.strip_prefix("kiln://").expect("a URL").parse().expect("an address");
    let identity = Identity::load(&daemons.place.path("id").join(role)).expect("it was issued");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let dialer = Dialer::new(&identity).expect("a socket");
        let connection = dialer.connect(addr).await.expect("the certificate is the farm's");
        let mut answers = Vec::new();
        for request in requests {
            let (mut sender, mut receiver) = connection.open().await.expect("a stream");
            sender.send(request).await.expect("sent");
            answers.push(receiver.recv::<Response>().await.expect("an answer").expect("an answer"));
        }
        answers
    })
}

#[test]
fn a_worker_with_anothers_certificate_does_not_start() {
    let daemons = Daemons::with("{ }");
    let config = std::fs::read_to_string(daemons.place.path("worker.toml")).expect("it was written");
    std::fs::write(daemons.place.path("other.toml"), config.replace("name = 'w1'", "name = 'w2'")).expect("write");
    let ran = daemons.place.run(&["worker", "--config", "other.toml"]);
    assert_ne!(ran.code(), 0);
    assert!(ran.err().contains("w2") && ran.err().contains("worker/w1"), "{}", ran.err());
}

/// `held` runs until it is cancelled; `other` is in the farm and no input of it.
const HELD: &str = r#"
rec {
  input = drv "input" "echo input > $out" [ ];
  other = drv "other" "echo other > $out" [ ];
  held = drv "held" "while :; do ${boot}/busybox sleep 1; done" [ input ];
}
"#;

#[test]
fn a_worker_fetches_the_inputs_of_its_live_leases_and_learns_nothing_of_other_paths() {
    let daemons = Daemons::with(HELD);
    let (place, farm) = (&daemons.place, daemons.farm());
    let kiln = |words: &[&str]| place.run(&[words, &farm[..]].concat()).expect_success();
    place.run(&["ca", "issue", "--dir", "ca", "--role", "worker/w2", "--out", "id/worker/w2"]).expect_success();
    let coordinator = daemons.start("coordinator");
    let _worker = daemons.start("worker");
    daemons.wait_until_up();
    let build = |attribute| store_path(kiln(&["build", "-f", "set.nix", "-A", attribute]).out().trim());
    let (input, other) = (build("input"), build("other"));
    let absent = store_path("/nix/store/00000000000000000000000000000000-other");
    assert_eq!(fetch(&daemons, "worker/w1", &input), Err(no_input("w1", &input)), "its lease on the input's own job has ended");

    let mut held = Process::start(&mut place.kiln(&[&["build", "-f", "set.nix", "-A", "held", "--json"][..], &farm[..]].concat()));
    held.wait_for_line("\"event\":\"started\"");
    let check = |when: &str| {
        assert_eq!(fetch(&daemons, "worker/w1", &input), Ok(()), "{when}");
        assert_eq!(fetch(&daemons, "client/me", &other), Ok(()), "{when}");
        assert_eq!(fetch(&daemons, "worker/w2", &input), Err(no_input("w2", &input)), "{when}: the lease is another worker's");
        for path in [&other, &absent] {
            assert_eq!(fetch(&daemons, "worker/w1", path), Err(no_input("w1", path)), "{when}");
        }
    };
    check("as the coordinator sent it");
    coordinator.kill_9();
    held.kill_9();
    let _coordinator = daemons.start("coordinator");
    daemons.wait_until_up();
    check("found again by a coordinator that did not send it");

    let build = kiln(&["status", "--json"]).json()["builds"][0]["build"].to_string();
    kiln(&["cancel", &build]);
    let refused = wait_for("the lease ends", || fetch(&daemons, "worker/w1", &input).err());
    assert_eq!(refused, no_input("w1", &input));
}

/// Parses a path that the command line printed.
pub fn store_path(path: &str) -> StorePath {
    StorePath::parse(path.trim_start_matches("/nix/store/")).expect("a store path")
}

/// What a worker is told of a path that is not for it, whether or not the farm has it.
fn no_input(worker: &str, path: &StorePath) -> (RefusalKind, String) {
    let message = format!("fetch `{path}`: it is not among the inputs of a job that worker `{worker}` holds a live lease on");
    (RefusalKind::NotFound, message)
}

/// Asks for the blob of a path as somebody; returns the refusal, if it is one.
fn fetch(daemons: &Daemons, role: &str, path: &StorePath) -> Result<(), (RefusalKind, String)> {
    let request = Request::FetchBlob { path: path.clone(), offset_bytes: 0 };
    match ask_as(daemons, role, &[request]).remove(0) {
        Response::Blob(found) if found.path == *path => Ok(()),
        Response::Refused(refusal) => Err((refusal.kind, refusal.message)),
        other => panic!("{role} asked for `{path}` and was answered {other:?}"),
    }
}
