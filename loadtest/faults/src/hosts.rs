//! Who takes part: each host is a network namespace with one address, and runs one program.

use std::fmt;
use std::net::Ipv4Addr;

/// One host of the farm under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// A coordinator, by its node number.
    Coordinator(u8),
    /// A worker, counted from 1.
    Worker(u8),
    /// The S3-compatible server.
    Store,
    /// Whoever uses the farm.
    Client,
}

impl Host {
    /// Returns the host's address, in a network that exists in these namespaces only.
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number())
    }

    fn number(self) -> u8 {
        match self {
            Self::Coordinator(node) => 10 + node,
            Self::Worker(worker) => 100 + worker,
            Self::Store => 201,
            Self::Client => 202,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator(node) => write!(f, "c{node}"),
            Self::Worker(worker) => write!(f, "w{worker}"),
            Self::Store => f.write_str("s3"),
            Self::Client => f.write_str("client"),
        }
    }
}

/// UDP port of every coordinator.
pub const LINK_PORT: u16 = 7420;
/// TCP port of every coordinator.
pub const HTTP_PORT: u16 = 7480;
/// TCP port of the S3-compatible server.
pub const STORE_PORT: u16 = 9000;
