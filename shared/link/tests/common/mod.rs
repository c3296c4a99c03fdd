//! A farm of two ends on loopback.
#![allow(dead_code)] // Each test binary uses its part.

use std::time::Duration;

use kiln_link::{Authority, Connection, Dialer, Identity, Listener, Receiver, Role, Sender};

/// Long enough for every test.
pub const HOUR: Duration = Duration::from_secs(3600);

/// A farm's authority for one test.
pub fn authority(farm: &str) -> Authority {
    Authority::ephemeral(&farm.parse().expect("farm name")).expect("authority")
}

/// Returns an identity that `authority` issues for `role`.
pub fn identity(authority: &Authority, role: &str) -> Identity {
    let role: Role = role.parse().expect("role");
    Identity::from_credentials(&authority.issue(&role, HOUR).expect("issue")).expect("identity")
}

/// Both ends of a connection, and what keeps them alive.
pub struct Pair {
    pub listener: Listener,
    pub dialer: Dialer,
    pub dialled: Connection,
    pub accepted: Connection,
}

/// Returns a coordinator and a worker that are connected.
pub async fn pair() -> Pair {
    let authority = authority("demo");
    let any = "127.0.0.1:0".parse().expect("address");
    let listener = Listener::bind(any, &identity(&authority, "coordinator/1"), None).expect("bind");
    let dialer = Dialer::new(&identity(&authority, "worker/w1")).expect("dialer");
    let (dialled, accepted) = tokio::join!(dialer.connect(listener.local_addr()), listener.accept());
    Pair { listener, dialer, dialled: dialled.expect("connects"), accepted: accepted.expect("accepts") }
}

/// Opens a stream from the dialer; the first message makes the other end learn of it.
pub async fn stream(pair: &Pair) -> ((Sender, Receiver), (Sender, Receiver)) {
    let (mut sender, mut receiver) = pair.dialled.open().await.expect("opens");
    sender.send("open").await.expect("sends");
    let (mut back, mut forth) = pair.accepted.accept().await.expect("accepts").expect("stream");
    assert_eq!(forth.recv::<String>().await.expect("message").as_deref(), Some("open"));
    back.send("opened").await.expect("sends");
    assert_eq!(receiver.recv::<String>().await.expect("message").as_deref(), Some("opened"));
    ((sender, receiver), (back, forth))
}

/// Bytes that no compressor or zero page makes easy.
pub fn noise(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new_derive_key("kiln-link tests").finalize_xof().fill(&mut bytes);
    bytes
}
