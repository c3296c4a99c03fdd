//! Which addresses the worker's own downloads may connect to: what a fixed-output build in a network of its own could reach.
//!
//! The worker downloads in its own network, which has what a recipe must not reach: the machine's local services, the cloud's metadata
//! service, the coordinators. Addresses are judged, not names: whatever a name stands for at the moment it is connected to, and every
//! address that is written out in a URL or a redirect. Absences: does not judge a proxy of the worker's environment whose address is
//! written out, nor what a proxy connects to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::{FixedOutputNetwork, NetworkMode};
use crate::launcher::host_addresses;
use crate::sandbox::LINK_LOCAL;

/// What the downloads of one attempt may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destinations {
    /// Whatever else is said.
    never: Vec<IpNet>,
    allowed: Vec<IpNet>,
    denied: Vec<IpNet>,
}

/// An address that must not be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{host} ({address}) is among the addresses that builds of this worker must not reach (`{net}`)")]
pub struct Denied {
    host: String,
    address: IpAddr,
    net: IpNet,
}

impl Destinations {
    /// Returns what may be reached now. Everything, where fixed-output builds have the host's network by choice.
    pub fn new(network: &FixedOutputNetwork, coordinators: &[IpAddr]) -> Self {
        match network.mode {
            NetworkMode::Host => Self::default(),
            NetworkMode::Auto | NetworkMode::Isolated => {
                let own = host_addresses().chain(coordinators.iter().map(IpAddr::to_canonical)).map(IpNet::from);
                Self { never: NEVER.to_vec(), allowed: network.allow.clone(), denied: network.deny.iter().copied().chain(own).collect() }
            }
        }
    }

    /// Says whether `address`, which `host` stands for, may be reached. Of several rules that it falls under the one with the longest
    /// prefix counts, and a denial before a permission, as with the routes of a build's own network.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn check(&self, host: &str, address: IpAddr) -> Result<(), Denied> {
        let reached = destination(address);
        let longest = |nets: &[IpNet]| nets.iter().filter(|net| net.contains(&reached)).max_by_key(|net| net.prefix_len()).copied();
        let deny = |net| Err(Denied { host: host.chars().take(200).collect(), address, net });
        match (longest(&self.never), longest(&self.denied), longest(&self.allowed)) {
            (Some(net), _, _) => deny(net),
            (None, Some(net), Some(allowed)) if net.prefix_len() >= allowed.prefix_len() => deny(net),
            (None, Some(net), None) => deny(net),
            (None, Some(_) | None, Some(_)) | (None, None, None) => Ok(()),
        }
    }
}

/// Where a connection to `address` really leads: IPv4 is also reached by addresses of IPv6 that have it within.
fn destination(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(six) if TRANSLATED.contains(&six) => {
            let [.., a, b, c, d] = six.octets();
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        address => address.to_canonical(),
    }
}

const fn four(a: u8, b: u8, prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), prefix))
}

const fn six(first: u16, second: u16, last: u16, prefix: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, last), prefix))
}

/// The machine itself (`0.0.0.0` and `::` lead there too), link-local addresses, and the metadata services that clouds have at others.
const NEVER: [IpNet; 8] = [
    four(127, 0, 8),
    four(0, 0, 8),
    IpNet::V4(LINK_LOCAL),
    six(0, 0, 1, 128),
    six(0, 0, 0, 128),
    six(0xfe80, 0, 0, 10),
    // Amazon's and Google's.
    six(0xfd00, 0xec2, 0x254, 128),
    six(0xfd20, 0xce, 0x254, 128),
];

/// Where translators map IPv4. Source: RFC 6052.
const TRANSLATED: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

#[cfg(test)]
impl Destinations {
    /// May reach the loopback, where the servers of tests are, but not `nets`.
    pub(super) fn all_but(nets: &[&str]) -> Self {
        Self { denied: nets.iter().map(|net| net.parse().expect("a network")).collect(), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(mode: NetworkMode) -> FixedOutputNetwork {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a network")).collect();
        FixedOutputNetwork {
            mode,
            allow: nets(&["10.1.0.0/16", "10.2.0.7/32", "fd01::/64"]),
            deny: nets(&["10.0.0.0/8", "10.1.9.0/24", "10.2.0.7/32", "fd01::/16"]),
            ..FixedOutputNetwork::default()
        }
    }

    fn coordinators() -> [IpAddr; 2] {
        ["192.0.2.7", "2001:db8::7"].map(|text| text.parse().expect("an address"))
    }

    const TABLE: [(&str, Option<&str>); 26] = [
        ("198.51.100.1", None),
        ("2001:db8::8", None),
        ("127.0.0.1", Some("127.0.0.0/8")),
        ("127.255.0.9", Some("127.0.0.0/8")),
        ("0.0.0.0", Some("0.0.0.0/8")),
        ("169.254.169.254", Some("169.254.0.0/16")),
        ("192.0.2.7", Some("192.0.2.7/32")),
        ("192.0.2.8", None),
        ("10.0.0.1", Some("10.0.0.0/8")),
        ("10.1.0.1", None),
        ("10.1.9.1", Some("10.1.9.0/24")),
        ("10.2.0.7", Some("10.2.0.7/32")),
        ("::1", Some("::1/128")),
        ("::", Some("::/128")),
        ("fe80::1", Some("fe80::/10")),
        ("fd00:ec2::254", Some("fd00:ec2::254/128")),
        ("fd20:ce::254", Some("fd20:ce::254/128")),
        ("2001:db8::7", Some("2001:db8::7/128")),
        ("fd01:5::1", Some("fd01::/16")),
        ("fd01::1", None),
        // IPv4 within IPv6.
        ("::ffff:127.0.0.1", Some("127.0.0.0/8")),
        ("::ffff:169.254.169.254", Some("169.254.0.0/16")),
        ("::ffff:10.1.0.1", None),
        ("64:ff9b::a9fe:a9fe", Some("169.254.0.0/16")),
        ("64:ff9b::c000:207", Some("192.0.2.7/32")),
        ("64:ff9b::c633:6401", None),
    ];

    #[test]
    fn an_address_is_judged_by_where_it_leads() {
        for mode in [NetworkMode::Auto, NetworkMode::Isolated] {
            let destinations = Destinations::new(&network(mode), &coordinators());
            for (address, expect) in TABLE {
                let found = destinations.check("h", address.parse().expect("an address"));
                assert_eq!(found.err().map(|denied| denied.net.to_string()).as_deref(), expect, "{address}");
            }
        }
    }

    #[test]
    fn the_machines_own_addresses_are_denied() {
        let destinations = Destinations::new(&network(NetworkMode::Auto), &[]);
        for address in host_addresses() {
            assert!(destinations.check("h", address).is_err(), "{address}");
        }
    }

    #[test]
    fn with_the_hosts_network_everything_is_reached() {
        let destinations = Destinations::new(&network(NetworkMode::Host), &coordinators());
        for (address, _) in TABLE {
            assert_eq!(destinations.check("h", address.parse().expect("an address")), Ok(()), "{address}");
        }
    }
}
