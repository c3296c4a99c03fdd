//! Messages, stream ends and connection ends between two real endpoints.

mod common;

use std::time::{Duration, Instant};

use common::{HOUR, authority, identity, pair, stream};
use kiln_link::{Closed, Dialer, Identity, LinkError, Listener, Role};
use kiln_wire::client::Request;

#[tokio::test(flavor = "multi_thread")]
async fn a_request_gets_its_answer_and_both_ends_know_each_other() {
    let pair = pair().await;
    assert_eq!(pair.accepted.peer().role, "worker/w1".parse::<Role>().expect("role"));
    assert_eq!(pair.dialled.peer().role, "coordinator/1".parse::<Role>().expect("role"));
    assert_eq!(pair.accepted.peer().farm.as_str(), "demo");
    let asked = async {
        let (mut sender, mut receiver) = pair.dialled.open().await.expect("opens");
        sender.send(&Request::Status).await.expect("sends");
        sender.finish().await.expect("the peer has it");
        let answer: Option<Vec<u64>> = receiver.recv().await.expect("answer");
        (answer, receiver.recv::<Vec<u64>>().await.expect("end"))
    };
    let answered = async {
        let (mut sender, mut receiver) = pair.accepted.accept().await.expect("accepts").expect("stream");
        assert_eq!(receiver.recv::<Request>().await.expect("request"), Some(Request::Status));
        assert_eq!(receiver.recv::<Request>().await.expect("end"), None);
        sender.send(&[1u64, 2, 3]).await.expect("sends");
        sender.finish().await.expect("the peer has it");
    };
    assert_eq!(tokio::join!(asked, answered).0, (Some(vec![1, 2, 3]), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_all_sizes_arrive_in_order_also_when_queued() {
    let pair = pair().await;
    let ((mut sender, _back), (_, mut receiver)) = stream(&pair).await;
    let sizes = [0usize, 1, 100, 1_200, 70_000, 5 << 20, 3, 12 << 20, 0];
    let send = async {
        for size in sizes {
            sender.feed(&"x".repeat(size)).expect("queues");
        }
        sender.finish().await.expect("the peer has it");
    };
    let receive = async {
        let mut found = Vec::new();
        while let Some(text) = receiver.recv::<String>().await.expect("message") {
            found.push(text.len());
        }
        found
    };
    assert_eq!(tokio::join!(send, receive).1, sizes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receive_that_is_given_up_early_loses_nothing() {
    let pair = pair().await;
    let ((mut sender, _back), (_, mut receiver)) = stream(&pair).await;
    let send = async {
        for number in 0..200u64 {
            sender.send(&(number, "x".repeat(20_000))).await.expect("sends");
        }
        sender.finish().await.expect("the peer has it");
    };
    let receive = async {
        let mut next = 0;
        loop {
            tokio::select! {
                biased;
                message = receiver.recv::<(u64, String)>() => match message.expect("message") {
                    Some((number, _)) => { assert_eq!(number, next); next += 1; }
                    None => break next,
                },
                () = tokio::task::yield_now() => {}
            }
        }
    };
    assert_eq!(tokio::join!(send, receive).1, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_refused_before_it_is_sent_and_the_stream_goes_on() {
    let pair = pair().await;
    let ((mut sender, _back), (_, mut receiver)) = stream(&pair).await;
    let huge = "x".repeat(kiln_wire::limits::FRAME_BYTES_MAX);
    assert!(matches!(sender.send(&huge).await, Err(LinkError::Frame(_))));
    sender.send("small").await.expect("sends");
    assert_eq!(receiver.recv::<String>().await.expect("message").as_deref(), Some("small"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_dropped_is_never_mistaken_for_a_finished_one() {
    let pair = pair().await;
    let ((mut sender, _back), (_, mut receiver)) = stream(&pair).await;
    sender.send("all that came").await.expect("sends");
    drop(sender);
    assert_eq!(receiver.recv::<String>().await.expect("message").as_deref(), Some("all that came"));
    assert!(matches!(receiver.recv::<String>().await, Err(LinkError::Truncated)));
    assert!(matches!(receiver.recv::<String>().await, Err(LinkError::NotOpen)));

    let ((sender, _back), (_, mut receiver)) = stream(&pair).await;
    sender.abort();
    assert!(matches!(receiver.recv::<String>().await, Err(LinkError::Aborted)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_has_read_enough_does_not_fail_the_sender() {
    let pair = pair().await;
    let ((mut sender, _back), (_, mut receiver)) = stream(&pair).await;
    sender.send("enough").await.expect("sends");
    receiver.recv::<String>().await.expect("message");
    drop(receiver);
    sender.finish().await.expect("the peer wanted no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_waits_for_an_answer_is_there_and_one_that_does_not_is_gone() {
    let pair = pair().await;
    let ((mut asking, answers), (answering, _asked)) = stream(&pair).await;
    asking.finish().await.expect("arrives");
    {
        let mut gone = std::pin::pin!(answering.gone());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(gone.as_mut().poll(&mut context).is_pending(), "it has only asked all that it wants to know");
        drop(answers);
        assert!(matches!(gone.await, LinkError::Stopped));
    }
    let ((_asking, _answers), (answering, _asked)) = stream(&pair).await;
    pair.dialled.close("enough");
    assert!(matches!(answering.gone().await, LinkError::Lost(Closed::ByPeer { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_another_kind_is_refused() {
    let pair = pair().await;
    let ((mut sender, _back), (_, mut receiver)) = stream(&pair).await;
    sender.send("no number").await.expect("sends");
    assert!(matches!(receiver.recv::<u64>().await, Err(LinkError::Frame(_))));
    // What had all arrived before the refusal did is no error of the sender; what it goes on to send is.
    let refused = loop {
        if let Err(err) = sender.send("no number either").await {
            break err;
        }
    };
    assert!(matches!(refused, LinkError::Stopped), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_connection_says_why_to_both_ends() {
    let pair = pair().await;
    pair.accepted.close("drained");
    assert_eq!(pair.dialled.closed().await, Closed::ByPeer { reason: "drained".to_owned() });
    assert_eq!(pair.accepted.closed().await, Closed::Here);
    assert!(pair.dialled.accept().await.expect("orderly").is_none());
    assert!(matches!(pair.dialled.open().await, Err(LinkError::Lost(Closed::ByPeer { .. }))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_when_the_certificate_expires() {
    let authority = authority("demo");
    let short = authority.issue(&"worker/w1".parse().expect("role"), Duration::from_secs(2)).expect("issue");
    let short = Identity::from_credentials(&short).expect("identity");
    let listener = Listener::bind("127.0.0.1:0".parse().expect("address"), &identity(&authority, "coordinator/1"), None).expect("bind");
    let connection = Dialer::new(&short).expect("dialer").connect(listener.local_addr()).await.expect("connects");
    let _accepted = listener.accept().await.expect("accepts");
    assert_eq!(connection.closed().await, Closed::ByPeer { reason: "your certificate has expired".to_owned() });
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_notice_at_once_that_a_listener_with_kept_keys_has_restarted() {
    let authority = authority("demo");
    let dir = tempfile::tempdir().expect("directory");
    let coordinator = identity(&authority, "coordinator/1");
    let dialer = Dialer::new(&identity(&authority, "worker/w1")).expect("dialer");
    // A killed process sends no goodbye: the first listener runs on a runtime that is torn down, behind a relay that outlives it.
    let (relay, connection) = killed_listener(&coordinator, &dialer, dir.path()).await;
    let began = Instant::now();
    let again = Listener::bind("127.0.0.1:0".parse().expect("address"), &coordinator, Some(dir.path())).expect("binds again");
    relay.send(again.local_addr()).expect("the relay runs");
    let (mut sender, _receiver) = connection.open().await.expect("opens: it does not know yet");
    sender.send("hello?").await.expect("the transport takes it");
    assert_eq!(connection.closed().await, Closed::PeerRestarted);
    assert!(began.elapsed() < Duration::from_secs(4), "noticed after {:?}", began.elapsed());
}

/// Connects through a relay to a listener that then falls silent, and returns the relay's switch and the dialer's connection.
async fn killed_listener(
    coordinator: &Identity,
    dialer: &Dialer,
    dir: &std::path::Path,
) -> (tokio::sync::watch::Sender<std::net::SocketAddr>, kiln_link::Connection) {
    let first = Listener::bind("127.0.0.1:0".parse().expect("address"), coordinator, Some(dir)).expect("bind");
    let (switch, target) = tokio::sync::watch::channel(first.local_addr());
    let front = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let back = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let addr = front.local_addr().expect("address");
    tokio::spawn(async move {
        let (mut there, mut here) = (vec![0; 65_536], vec![0; 65_536]);
        let mut client = None;
        loop {
            tokio::select! {
                got = front.recv_from(&mut there) => {
                    let (size, from) = got.expect("receives");
                    client = Some(from);
                    let to = *target.borrow();
                    back.send_to(&there[..size], to).await.expect("sends");
                }
                got = back.recv_from(&mut here) => {
                    let (size, from) = got.expect("receives");
                    if from == *target.borrow() && let Some(client) = client {
                        front.send_to(&here[..size], client).await.expect("sends");
                    }
                }
            }
        }
    });
    let connection = dialer.connect(addr).await.expect("connects");
    let accepted = first.accept().await.expect("accepts");
    // What it still says from here on is dropped by the relay, as it comes from an address that is no longer the target.
    switch.send(([127, 0, 0, 1], 9).into()).expect("the relay runs");
    drop((accepted, first));
    (switch, connection)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_used_for_new_connections() {
    let authority = authority("demo");
    let listener = Listener::bind("127.0.0.1:0".parse().expect("address"), &identity(&authority, "coordinator/1"), None).expect("bind");
    let dialer = Dialer::new(&identity(&authority, "worker/w1")).expect("dialer");
    let _before = dialer.connect(listener.local_addr()).await.expect("connects");
    let renewed = authority.issue(&"coordinator/2".parse().expect("role"), HOUR).expect("issue");
    listener.renew(&Identity::from_credentials(&renewed).expect("identity")).expect("renews");
    let after = dialer.connect(listener.local_addr()).await.expect("connects");
    assert_eq!(after.peer().role, "coordinator/2".parse::<Role>().expect("role"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_listening_is_an_error_within_the_handshake_time() {
    let authority = authority("demo");
    let deaf = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    let dialer = Dialer::new(&identity(&authority, "worker/w1")).expect("dialer");
    let err = dialer.connect(deaf.local_addr().expect("address")).await.expect_err("nobody answers");
    assert!(matches!(err, LinkError::Connect { closed: Closed::TimedOut, .. }), "{err}");
}
