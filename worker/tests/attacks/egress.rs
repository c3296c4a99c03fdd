//! The network of a fixed-output build: what it reaches, and what it must not (attacks A1, A2 and A19).

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

use crate::sandbox_support::{Bench, chain};
use kiln_worker::sandbox::{Egress, Network};

/// The stack is part of what the tests need.
const SLIRP: &str = "/usr/bin/slirp4netns";

fn bench(script: &str, denied: &[&str], allowed: &[&str]) -> Bench {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a prefix")).collect();
    let mut bench = Bench::new(script);
    bench.spec.network = Network::Egress(Egress { program: SLIRP.into(), allowed: nets(allowed), denied: nets(denied) });
    bench
}

/// An address of this machine that is not loopback: what a build may reach through the stack like any other host.
fn outer_address() -> Ipv4Addr {
    // Nothing is sent: the kernel only chooses the address that it would send from.
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect("192.0.2.1:9").expect("these tests need a default route");
    match socket.local_addr().expect("an address").ip() {
        IpAddr::V4(address) if !address.is_loopback() => address,
        address => panic!("these tests need an IPv4 address beside loopback, not {address}"),
    }
}

/// Answers `served` to everybody who connects, until the process ends.
fn serve(address: Ipv4Addr) -> SocketAddr {
    let listener = TcpListener::bind((address, 0)).expect("listen");
    let bound = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"served\n");
        }
    });
    bound
}

#[test]
fn it_reaches_out_from_a_namespace_of_its_own() {
    let server = serve(outer_address());
    let script = format!(
        "readlink /proc/self/ns/net; nc -w 5 {} {} </dev/null; cat /etc/resolv.conf /etc/nsswitch.conf; ip -o -4 addr show tap0 | grep -c 10.0.2.100",
        server.ip(),
        server.port()
    );
    let ran = bench(&script, &[], &[]).run();
    let (namespace, rest) = ran.log.split_once('\n').expect("lines");
    let host = std::fs::read_link("/proc/self/ns/net").expect("read our network namespace");
    assert_ne!(namespace, host.display().to_string());
    assert_eq!(rest, "served\nnameserver 10.0.2.3\nhosts: files dns\nservices: files\n1\n");
}

#[test]
fn the_stack_takes_no_mount_of_the_host_away() {
    let space = format!("kiln-egress-{}", std::process::id());
    let ip = |verb: &str| std::process::Command::new("ip").args(["netns", verb, &space]).status().expect("run ip");
    let is_mounted = || std::fs::read_to_string("/proc/self/mountinfo").expect("read our mounts").contains(&space);
    assert!(ip("add").success() && is_mounted());
    let ran = bench("echo built", &[], &[]).run();
    let stayed = is_mounted();
    assert!(ip("del").success());
    assert!(stayed, "a named network namespace is gone from its place");
    assert_eq!(ran.log, "built\n");
}

#[test]
fn a19_what_is_denied_cannot_be_reached_and_the_build_cannot_change_that() {
    let outer = outer_address();
    let (server, loopback) = (serve(outer), serve(Ipv4Addr::LOCALHOST));
    let attempt =
        |address: &dyn std::fmt::Display, port: u16| format!("nc -w 3 {address} {port} </dev/null 2>&1; echo \"{address}: $?\"\n");
    let script = [
        attempt(&outer, server.port()),
        attempt(&"169.254.169.254", 80),
        // The stack's own names for the host.
        attempt(&"10.0.2.2", loopback.port()),
        attempt(&"127.0.0.1", loopback.port()),
        // The build's own loopback goes first, but not for a socket that is bound to the device.
        "ip route | grep -c '^unreachable 127.0.0.0/8'\n".to_owned(),
        "ip route del unreachable 169.254.0.0/16 2>/dev/null && echo deleted\n".to_owned(),
        format!("ip route add {outer}/32 via 10.0.2.2 2>/dev/null && echo added\n"),
        attempt(&outer, server.port()),
    ];
    let ran = bench(&script.concat(), &[&format!("{outer}/32")], &[]).run();
    assert!(!ran.log.contains("served") && !ran.log.contains("deleted") && !ran.log.contains("added"), "{}", ran.log);
    assert!(ran.log.lines().any(|line| line == "1"), "{}", ran.log);
    assert_eq!(ran.log.matches(": 1\n").count(), 5, "{}", ran.log);
    assert_eq!(ran.log.matches("No route to host").count(), 3, "{}", ran.log);
}

#[test]
fn what_is_allowed_within_something_denied_can_be_reached() {
    let outer = outer_address();
    let server = serve(outer);
    let script = format!("nc -w 5 {outer} {} </dev/null; nc -w 3 198.51.100.1 80 </dev/null 2>&1", server.port());
    let ran = bench(&script, &["0.0.0.0/1", "128.0.0.0/1"], &[&format!("{outer}/32")]).run();
    assert!(ran.log.starts_with("served\n") && ran.log.contains("No route to host"), "{}", ran.log);
}

#[test]
fn a01_a02_two_builds_and_the_host_share_no_abstract_socket_and_no_port() {
    let name = format!("kiln-egress-{}", std::process::id());
    let host = UnixListener::bind_addr(&UnixAddr::from_abstract_name(&name).expect("a name")).expect("listen");
    std::thread::spawn(move || host.incoming().flatten().for_each(|mut stream| drop(stream.read(&mut [0; 8]))));
    let first = bench("nc -l -p 4455 >/dev/null & echo here; sleep 3", &[], &[]);
    let script =
        format!("sleep 1; nc -w 1 127.0.0.1 4455 </dev/null 2>&1; nc -w 1 10.0.2.100 4455 </dev/null 2>&1; grep -c {name} /proc/net/unix");
    let second = bench(&script, &[], &[]);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| first.run().log);
        let log = second.run().log;
        assert_eq!(log.matches("refused").count(), 2, "{log}");
        assert!(log.ends_with("\n0\n"), "the host's sockets are not even seen: {log}");
        assert_eq!(first.join().expect("no panic"), "here\n");
    });
}

#[test]
fn a_stack_that_does_not_start_is_a_sandbox_failure_that_says_why() {
    let mut bench = bench("echo never", &[], &[]);
    bench.spec.network = Network::Egress(Egress { program: "/bin/false".into(), allowed: vec![], denied: vec![] });
    let text = chain(&*bench.try_run(&mut |_| {}).expect_err("there is no network"));
    assert!(text.contains("start the network through `/bin/false`: `/bin/false` did not bring the network up"), "{text}");
}
