//! The network of a build without one (attack A18).

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use crate::program;

/// What the kernel answers where there is no such family, or the filter for it.
const NO_FAMILY: i32 = libc::EAFNOSUPPORT;

#[test]
fn a18_a_build_reaches_nothing_over_any_kind_of_network() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = listener.local_addr().expect("an address").port();
    let name = format!("kiln-a18-{}", std::process::id());
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).expect("a name")).expect("listen");
    let ran = program::bench(&["network", &port.to_string(), &name]).run();
    // Where there is no IPv6 at all, nothing is reached over it either.
    let (refused, unreachable, forbidden) = (&[libc::ECONNREFUSED], &[libc::ENETUNREACH], &[libc::EPERM]);
    let want: [(&str, &[i32]); 17] = [
        ("the host's loopback", refused),
        ("the host's loopback, IPv6", &[libc::ECONNREFUSED, NO_FAMILY]),
        ("an abstract socket of the host", refused),
        ("a way to 192.0.2.1:53", unreachable),
        ("a way to [2001:db8::1]:53", &[libc::ENETUNREACH, NO_FAMILY]),
        ("a way to 169.254.169.254:80", unreachable),
        ("a way to 224.0.0.1:5353", unreachable),
        ("a way to 255.255.255.255:67", unreachable),
        ("packets", forbidden),
        ("raw IPv4", forbidden),
        ("raw IPv6", &[libc::EPERM, NO_FAMILY]),
        ("ping", &[libc::EACCES]),
        ("vsock", &[NO_FAMILY]),
        ("qipcrtr", &[NO_FAMILY]),
        ("an address for the loopback", forbidden),
        ("a route by netlink", forbidden),
        ("another network namespace", forbidden),
    ];
    // Some kernels bring devices without addresses into every namespace.
    let (tried, rest) = ran.log.split_once("devices: ").expect("it lists the devices");
    program::check(tried, &want);
    let (devices, rest) = rest.split_once('\n').expect("a line");
    let known = ["lo", "sit0", "tunl0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6gre0", "dummy0", "teql0"];
    assert!(devices.split(' ').all(|device| known.contains(&device)), "{devices}");
    assert_eq!(rest, "sockets of the host: 0\n");
}
