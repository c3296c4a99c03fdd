//! Attack A35: what strangers can do to a listener without a certificate.

mod common;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use common::{identity, noise, pair, stream};
use kiln_link::{Dialer, config};
use tokio::net::UdpSocket;

async fn socket() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket")
}

/// Returns the first packets of so many dialers, who then hear nothing.
async fn first_packets(count: usize) -> Vec<Vec<u8>> {
    let stranger = Arc::new(Dialer::new(&identity(&common::authority("else"), "worker/eve")).expect("dialer"));
    let trap = socket().await;
    let addr = trap.local_addr().expect("bound");
    // By the identifiers that they chose: what follows of the same dialer is not its first.
    let mut packets = BTreeMap::new();
    let mut dialling = tokio::task::JoinSet::new();
    while packets.len() < count {
        let stranger = stranger.clone();
        dialling.spawn(async move { stranger.connect(addr).await.map(drop) });
        let mut packet = vec![0; 64 << 10];
        let size = tokio::time::timeout(Duration::from_secs(20), trap.recv(&mut packet)).await.expect("it dials").expect("reads");
        packets.entry(packet[6..6 + usize::from(packet[5])].to_vec()).or_insert_with(|| packet[..size].to_vec());
    }
    packets.into_values().collect()
}

/// Opens a stream of a connection that stood before, and dials anew.
async fn all_is_well(pair: &common::Pair, what: &str) {
    stream(pair).await;
    let (dialled, accepted) = tokio::join!(pair.dialer.connect(pair.listener.local_addr()), pair.listener.accept());
    dialled.unwrap_or_else(|err| panic!("{what}: {err}"));
    accepted.expect("the listener lives");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a35_packets_that_make_no_sense_hinder_nobody() {
    let pair = pair().await;
    let addr = pair.listener.local_addr();
    let sender = socket().await;
    let [first] = &first_packets(1).await[..] else { panic!("one dialer") };
    let noise = noise(1500);
    let mut packets: Vec<Vec<u8>> = (0..noise.len()).step_by(7).map(|cut| noise[..cut].to_vec()).collect();
    packets.extend((0..first.len()).step_by(13).map(|cut| first[..cut].to_vec()));
    for at in (0..first.len()).step_by(5) {
        let mut flipped = first.clone();
        flipped[at] ^= 0x81;
        packets.push(flipped);
    }
    // Other versions, the one that is reserved among them: each may be answered with a shorter packet, and with nothing else.
    for version in [0_u32, 1, 0x6b33_43cf, 0x0a0a_0a0a, 0xff00_001d, u32::MAX] {
        let other = [&first[..1], &version.to_be_bytes(), &first[5..]].concat();
        packets.extend([other.clone(), other[..100].to_vec(), [other.clone(), vec![0; 200]].concat()]);
    }
    for packet in packets.iter().cycle().take(4 * packets.len()) {
        // A full buffer loses some, as on a real network.
        let _sent = sender.send_to(packet, addr).await;
    }
    all_is_well(&pair, "after the noise").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a35_dialers_that_never_go_on_keep_nobody_out() {
    let pair = pair().await;
    let addr: SocketAddr = pair.listener.local_addr();
    // As many again as are let in at all.
    let packets = first_packets(2 * config::HANDSHAKES_MAX).await;
    // Each from an address of its own, kept open: a closed one would tell the listener.
    let mut strangers = Vec::new();
    for packet in &packets {
        let stranger = socket().await;
        stranger.send_to(packet, addr).await.expect("sends");
        strangers.push(stranger);
    }
    // Those beyond the bound are asked for a proof of their address, by a long packet of type 3; nothing is kept of them.
    for stranger in &strangers[config::HANDSHAKES_WITHOUT_RETRY_MAX..] {
        let mut answer = vec![0; 64 << 10];
        let answered = tokio::time::timeout(Duration::from_secs(20), stranger.recv(&mut answer)).await;
        answered.expect("every one of them is answered").expect("reads");
        assert_eq!(answer[0] >> 4 & 3, 3);
    }
    all_is_well(&pair, "with all of them waiting").await;
}
