//! The way out of a fixed-output build: a network namespace of its own, whose only route leads through a user-mode stack
//! (`slirp4netns`), so that nothing of the host's network is there to talk to, and no other build.
//!
//! What the stack would let through and must not be reached (the host's own addresses, the cloud's metadata service, the coordinators,
//! whatever the administrator denies) is made unreachable by routes in the build's namespace, which the build cannot change. IPv4 only,
//! as the stack is by default. Absences: does not decide what is denied; does not touch the worker's own downloads.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};

/// How a build reaches out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// The `slirp4netns` program.
    pub program: PathBuf,
    /// What can be reached even where it lies within something denied, unless it is denied itself by the same or a longer prefix.
    pub allowed: Vec<Ipv4Net>,
    /// What cannot be reached.
    pub denied: Vec<Ipv4Net>,
}

/// Never reached by any build: the link-local block, where clouds have their metadata service.
pub const LINK_LOCAL: Ipv4Net = match Ipv4Net::new(Ipv4Addr::new(169, 254, 0, 0), 16) {
    Ok(net) => net,
    Err(_) => panic!("16 is a prefix length"),
};

/// Never reached either. A socket that is bound to the device passes by the build's own loopback, and the stack would carry what it
/// sends to the host's.
const LOOPBACK: Ipv4Net = match Ipv4Net::new(Ipv4Addr::new(127, 0, 0, 0), 8) {
    Ok(net) => net,
    Err(_) => panic!("8 is a prefix length"),
};

/// The name server that the stack offers, which asks the host's.
pub(super) const RESOLV_CONF: &[u8] = b"nameserver 10.0.2.3\n";

/// The stack's own address in the build's network: the next hop of everything.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The stack is up in milliseconds; a host that cannot do it for so long has other troubles.
const READY_MAX: Duration = Duration::from_secs(10);
/// Largest datagram of the stack: fewer system calls for each megabyte.
const MTU: &str = "65520";

/// A running user-mode stack. Dropping it ends it.
pub(super) struct Stack {
    child: Child,
    /// What it writes about itself: memory, which nobody has to read while it runs.
    words: File,
    /// The stack ends when this is closed, also by the worker's own death.
    _alive: OwnedFd,
}

impl Egress {
    /// Starts the stack for the namespaces of process `pid` and waits until its device is up.
    ///
    /// # Errors
    /// The kernel's, or what the program wrote before it gave up.
    pub(super) fn start(&self, pid: u32) -> io::Result<Stack> {
        let (alive_read, alive) = pipe_with(PipeFlags::CLOEXEC)?;
        let (ready, ready_write) = pipe_with(PipeFlags::CLOEXEC)?;
        let words = File::from(memfd_create("kiln-egress", MemfdFlags::CLOEXEC)?);
        let mut command = Command::new(&self.program);
        command
            .args(["--configure", "--disable-host-loopback", "--enable-sandbox", "--enable-seccomp", "--mtu", MTU])
            // Standard input and output carry these two, because only those three descriptors are handed on.
            .args(["--ready-fd", "0", "--exit-fd", "1", &pid.to_string(), "tap0"])
            .env_clear()
            .current_dir("/")
            .stdin(ready_write)
            .stdout(alive_read)
            .stderr(words.try_clone()?);
        let child = spawn_apart(&mut command)?;
        let mut stack = Stack { child, words, _alive: alive };
        match wait_for_byte(&ready) {
            Ok(true) => Ok(stack),
            Ok(false) => {
                Err(io::Error::other(format!("`{}` did not bring the network up: {}", self.program.display(), stack.last_words())))
            }
            Err(err) => Err(err),
        }
    }

    /// Returns the netlink requests that shut what is denied, in order. A later one replaces an earlier one of the same prefix.
    pub(super) fn routes(&self) -> Vec<Vec<u8>> {
        let open = self.allowed.iter().map(|net| route(*net, Some(GATEWAY)));
        open.chain(self.denied.iter().chain([&LINK_LOCAL, &LOOPBACK]).map(|net| route(*net, None))).collect()
    }
}

impl Stack {
    fn last_words(&mut self) -> String {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mut words = vec![0; 4096];
        let length = self.words.read_at(&mut words, 0).unwrap_or(0);
        String::from_utf8_lossy(&words[..length]).trim().replace('\n', "; ")
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // It can only fail when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a program in mounts of its own. The stack takes all others away when it shuts itself in, and does not ask whether they are
/// shared: named network namespaces of the host, which lie in a shared mount, would go with them.
fn spawn_apart(command: &mut Command) -> io::Result<Child> {
    let spawn = || {
        match unshare_mounts() {
            // Without the right to mounts of its own the stack gets its own from a user namespace, and the kernel keeps those apart.
            Ok(()) | Err(nix::errno::Errno::EPERM) => command.spawn(),
            Err(err) => Err(err.into()),
        }
    };
    // The thread ends here, and what it has of its own goes on in the child.
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, spawn)?;
        thread.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
    })
}

/// Gives this thread mounts of its own, of which no change reaches others.
fn unshare_mounts() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)
}

/// Whether the other side wrote something, rather than closing or waiting too long.
fn wait_for_byte(ready: &OwnedFd) -> io::Result<bool> {
    let until = Instant::now() + READY_MAX;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(0), tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(ready, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(File::from(ready.try_clone()?).read(&mut [0])? == 1),
            Err(rustix::io::Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
}

/// A request to the kernel to route `net` through `gateway`, or to answer that it is unreachable. See rtnetlink(7).
fn route(net: Ipv4Net, gateway: Option<Ipv4Addr>) -> Vec<u8> {
    const RTN_UNICAST: u8 = 1;
    const RTN_UNREACHABLE: u8 = 7;
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let kind = if gateway.is_some() { RTN_UNICAST } else { RTN_UNREACHABLE };
    let mut body = vec![
        libc::AF_INET as u8,
        net.prefix_len(),
        0,
        0,
        libc::RT_TABLE_MAIN,
        libc::RTPROT_STATIC,
        libc::RT_SCOPE_UNIVERSE,
        kind,
        0,
        0,
        0,
        0,
    ];
    body.extend(attribute(libc::RTA_DST, net.network()));
    body.extend(gateway.map(|gateway| attribute(libc::RTA_GATEWAY, gateway)).into_iter().flatten());
    let length = u32::try_from(HEADER_BYTES + body.len()).expect("some forty bytes");
    let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(libc::RTM_NEWROUTE.to_ne_bytes());
    message.extend(u16::try_from(flags).expect("the flags of a request fit").to_ne_bytes());
    // Sequence and sender: one request at a time needs neither.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Bytes of netlink's header.
const HEADER_BYTES: usize = 16;

fn attribute(kind: u16, address: Ipv4Addr) -> [u8; 8] {
    let [a, b] = 8_u16.to_ne_bytes();
    let [c, d] = kind.to_ne_bytes();
    let [e, f, g, h] = address.octets();
    [a, b, c, d, e, f, g, h]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_denied_comes_after_what_is_allowed_and_what_always_is_last() {
        let net = |text: &str| text.parse::<Ipv4Net>().expect("a prefix");
        let egress = Egress { program: "slirp4netns".into(), allowed: vec![net("10.1.0.0/16")], denied: vec![net("10.0.0.0/8")] };
        let routes = egress.routes();
        // Kind of route, prefix length, address.
        let seen: Vec<_> = routes.iter().map(|route| (route[23], route[17], route[32..36].to_vec())).collect();
        let [allowed, denied] = [(1, 16, vec![10, 1, 0, 0]), (7, 8, vec![10, 0, 0, 0])];
        assert_eq!(seen, [allowed, denied, (7, 16, vec![169, 254, 0, 0]), (7, 8, vec![127, 0, 0, 0])]);
        for route in routes {
            assert_eq!(route[..4], u32::try_from(route.len()).expect("short").to_ne_bytes());
        }
    }
}
