//! Every kind of way out over a network (attack A18).

use std::fs;
use std::net::{Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixStream};

use crate::{call, told};

const SOCKET: i64 = 41;
const BIND: i64 = 49;
const IOCTL: i64 = 16;

/// `port` is one that the host listens on at its loopback, `name` an abstract socket of the host's.
pub fn attack(port: u16, name: &str) {
    told("the host's loopback", TcpStream::connect(("127.0.0.1", port)));
    told("the host's loopback, IPv6", TcpStream::connect((Ipv6Addr::LOCALHOST, port)));
    told("an abstract socket of the host", UnixStream::connect_addr(&UnixAddr::from_abstract_name(name).expect("a name")));
    // Connecting such a socket sends nothing: it asks for a route.
    for address in ["192.0.2.1:53", "[2001:db8::1]:53", "169.254.169.254:80", "224.0.0.1:5353", "255.255.255.255:67"] {
        let address: SocketAddr = address.parse().expect("an address");
        let from = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        told(&format!("a way to {address}"), UdpSocket::bind(from).and_then(|socket| socket.connect(address)));
    }
    // Families and kinds of sockets, by number: each leads past addresses.
    for (what, family, kind, protocol) in [
        ("packets", 17, 3, 0x300),
        ("raw IPv4", 2, 3, 1),
        ("raw IPv6", 10, 3, 58),
        ("ping", 2, 2, 1),
        ("vsock", 40, 1, 0),
        ("qipcrtr", 42, 2, 0),
    ] {
        told(what, call(SOCKET, [family, kind, protocol, 0, 0]));
    }
    told("an address for the loopback", change_address());
    told("a route by netlink", add_route());
    told("another network namespace", call(272, [0x4000_0000, 0, 0, 0, 0]));
    let devices = fs::read_to_string("/proc/net/dev").expect("read /proc/net/dev");
    let devices: Vec<&str> = devices.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect();
    println!("devices: {}", devices.join(" "));
    let sockets = fs::read_to_string("/proc/net/unix").expect("read /proc/net/unix");
    println!("sockets of the host: {}", sockets.matches(name).count());
}

/// `ioctl(SIOCSIFADDR)` for `lo`.
fn change_address() -> std::io::Result<i64> {
    let socket = call(SOCKET, [2, 2, 0, 0, 0])?;
    let mut request = [0_u8; 40];
    request[..2].copy_from_slice(b"lo");
    request[16..24].copy_from_slice(&[2, 0, 0, 0, 10, 0, 0, 1]);
    call(IOCTL, [socket, 0x8916, request.as_ptr() as i64, 0, 0])
}

/// A default route through `lo`, asked for by netlink; the kernel's answer comes as a message.
fn add_route() -> std::io::Result<i64> {
    let socket = call(SOCKET, [16, 3, 0, 0, 0])?;
    call(BIND, [socket, [16_u16, 0, 0, 0, 0, 0].as_ptr() as i64, 12, 0, 0])?;
    let mut request = Vec::new();
    request.extend(36_u32.to_ne_bytes());
    // RTM_NEWROUTE; NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE.
    request.extend([24_u16, 0x405].map(u16::to_ne_bytes).concat());
    request.extend([0_u8; 8]);
    // struct rtmsg: AF_INET, main table, static, of the link, unicast.
    request.extend([2, 0, 0, 0, 254, 4, 253, 1, 0, 0, 0, 0]);
    // RTA_OIF: the first device.
    request.extend([8_u16, 4].map(u16::to_ne_bytes).concat());
    request.extend(1_u32.to_ne_bytes());
    call(1, [socket, request.as_ptr() as i64, request.len() as i64, 0, 0])?;
    let mut answer = [0_i32; 64];
    call(0, [socket, answer.as_mut_ptr() as i64, 256, 0, 0])?;
    if answer[4] == 0 { Ok(0) } else { Err(std::io::Error::from_raw_os_error(-answer[4])) }
}
