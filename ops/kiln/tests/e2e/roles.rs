//! What a certificate's role does not allow is refused by the coordinator, whatever program asks.

use std::net::SocketAddr;

use kiln_link::{Dialer, Identity};
use kiln_wire::client::{RefusalKind, Request, Response};

use crate::crashes::Daemons;

#[test]
fn a_client_cannot_open_a_workers_session_and_a_worker_cannot_ask_what_clients_ask() {
    let daemons = Daemons::with("{ }");
    let _coordinator = daemons.start("coordinator");
    daemons.wait_until_up();
    let addr: SocketAddr = daemons.url.strip_prefix("kiln://").expect("a URL").parse().expect("an address");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let table: [(&str, &[Request]); 2] =
        [("client/me", &[Request::Session]), ("worker/w1", &[Request::Status, Request::Jobs, Request::Missing(vec![])])];
    for (role, requests) in table {
        let identity = Identity::load(&daemons.place.path("id").join(role)).expect("it was issued");
        runtime.block_on(async {
            let dialer = Dialer::new(&identity).expect("a socket");
            let connection = dialer.connect(addr).await.expect("the certificate is the farm's");
            for request in requests {
                let (mut sender, mut receiver) = connection.open().await.expect("a stream");
                sender.send(request).await.expect("sent");
                match receiver.recv::<Response>().await.expect("an answer") {
                    Some(Response::Refused(refusal)) => {
                        assert_eq!(refusal.kind, RefusalKind::Forbidden, "{}", refusal.message);
                        assert!(refusal.message.contains(role.split('/').next_back().expect("a name")), "{}", refusal.message);
                    }
                    other => panic!("{role} was answered {other:?}"),
                }
            }
        });
    }
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
