//! The network of namespaces passes what it should, drops what it is told to, and leaves nothing behind. Needs root.

use std::net::UdpSocket;
use std::time::Duration;

use kiln_faults::hosts::Host;
use kiln_faults::net::{self, Net};
use kiln_faults::rules::Drops;

const PORT: u16 = 5000;

/// Opens a socket on a host.
fn socket(host: Host) -> UdpSocket {
    let opened = std::thread::spawn(move || {
        net::enter(host).expect("the host exists");
        UdpSocket::bind((host.address(), PORT)).expect("its address is its own")
    });
    let socket = opened.join().expect("the thread ends");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a time-out");
    socket
}

/// Whether a datagram arrives. One that must arrive is sent again for a while.
fn arrives(from: &UdpSocket, to: &UdpSocket, tries: usize) -> bool {
    let address = to.local_addr().expect("it is bound");
    let mut buffer = [0; 8];
    (0..tries).any(|_| {
        from.send_to(b"x", address).expect("sent");
        to.recv_from(&mut buffer).is_ok()
    })
}

#[test]
fn packets_pass_and_are_dropped_in_each_direction_and_nothing_is_left() {
    let (one, two, three) = (Host::Coordinator(1), Host::Coordinator(2), Host::Client);
    let hosts = [one, two, three];
    let network = Net::new(&hosts).expect("root, iproute2 and nftables");
    let sockets = hosts.map(socket);
    let passes = |drops: &Drops, from: usize, to: usize, wanted: bool| {
        network.drop_packets(drops).expect("nft takes the rules");
        arrives(&sockets[from], &sockets[to], if wanted { 20 } else { 2 }) == wanted
    };
    let nothing = Drops::default();
    assert!(passes(&nothing, 0, 1, true) && passes(&nothing, 1, 0, true) && passes(&nothing, 2, 0, true));
    let mute = Drops::default().silence(one, &hosts);
    assert!(passes(&mute, 0, 1, false) && passes(&mute, 1, 0, true) && passes(&mute, 0, 2, false));
    let split = Drops::default().isolate(one, &[one, two]);
    assert!(passes(&split, 0, 1, false) && passes(&split, 1, 0, false) && passes(&split, 0, 2, true));
    assert!(passes(&Drops::default().lossy(&hosts, 50), 0, 1, true));
    assert!(passes(&Drops::default().lossy(&hosts, 100), 2, 1, false));
    assert!(passes(&nothing, 2, 1, true));
    drop(network);
    let left = std::fs::read_dir("/run/netns").expect("a directory").filter_map(Result::ok).map(|entry| entry.file_name());
    let ours = format!("-{}-", std::process::id());
    assert_eq!(left.filter(|name| name.to_string_lossy().contains(&ours)).count(), 0);
}
