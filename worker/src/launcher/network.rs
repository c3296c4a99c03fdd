//! Which network the fixed-output builds of this worker get, and what they must not reach in it.
//!
//! Does not start anything: [`crate::sandbox`] does. The worker's own downloads are bounded by the worker itself. Resolves no names: which
//! addresses the coordinators have is said by the worker.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net};

use crate::config::{FixedOutputNetwork, NetworkMode};
use crate::sandbox::{Egress, Network};

/// The network of fixed-output builds.
#[derive(Debug)]
pub struct FixedNetwork {
    /// The user-mode stack; without it they have the host's network.
    program: Option<PathBuf>,
    allowed: Vec<Ipv4Net>,
    denied: Vec<Ipv4Net>,
}

/// The stack that is asked for is not there.
#[derive(Debug, thiserror::Error)]
#[error("find `{program}` for fixed-output builds; install slirp4netns, or set `fixed_output_network.mode` to \"host\"")]
pub struct NoStack {
    program: PathBuf,
}

impl FixedNetwork {
    /// Looks for the user-mode stack, if the configuration does not want the host's network.
    ///
    /// # Errors
    /// [`NoStack`] if the configuration insists on it and it is not there.
    pub fn open(wanted: &FixedOutputNetwork) -> Result<Self, NoStack> {
        let program = match wanted.mode {
            NetworkMode::Host => None,
            NetworkMode::Auto => find(&wanted.slirp4netns).filter(|_| has_tun()),
            NetworkMode::Isolated => Some(find(&wanted.slirp4netns).ok_or_else(|| NoStack { program: wanted.slirp4netns.clone() })?),
        };
        Ok(Self { program, allowed: of_version_4(&wanted.allow), denied: of_version_4(&wanted.deny) })
    }

    /// Says what builds get, for the farm and its people.
    pub fn describe(&self) -> String {
        match &self.program {
            Some(_) => "own namespace, out through slirp4netns".to_owned(),
            None => "the host's".to_owned(),
        }
    }

    /// Returns the network of a build that starts now, in which `denied` cannot be reached either. The host's own addresses are looked up
    /// each time, because they change.
    pub fn of_build(&self, denied: &[Ipv4Net]) -> Network {
        let Some(program) = &self.program else { return Network::Host };
        let own = host_addresses().filter_map(|address| match address {
            IpAddr::V4(address) => Some(Ipv4Net::from(address)),
            // There is no IPv6 in the build's network.
            IpAddr::V6(_) => None,
        });
        // The build has a loopback of its own.
        let own = own.chain(denied.iter().copied()).filter(|net| !net.addr().is_loopback());
        Network::Egress(Egress {
            program: program.clone(),
            allowed: self.allowed.clone(),
            denied: self.denied.iter().copied().chain(own).collect(),
        })
    }
}

/// Whether a device can be made for a build's network.
fn has_tun() -> bool {
    File::options().read(true).write(true).open("/dev/net/tun").is_ok()
}

/// Returns where a program is: an absolute path itself, any other below the directories of `PATH`.
fn find(program: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&path).map(|dir| dir.join(program));
    candidates.into_iter().find(|candidate| candidate.is_absolute() && candidate.is_file())
}

/// Returns the addresses of this machine's devices, the loopback's among them.
pub fn host_addresses() -> impl Iterator<Item = IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    interfaces.filter_map(|interface| {
        let address = interface.address?;
        let four = address.as_sockaddr_in().map(|four| IpAddr::V4(four.ip()));
        four.or_else(|| address.as_sockaddr_in6().map(|six| IpAddr::V6(six.ip())))
    })
}

/// There is no IPv6 in the build's network.
fn of_version_4(nets: &[IpNet]) -> Vec<Ipv4Net> {
    let four = nets.iter().filter_map(|net| match net {
        IpNet::V4(net) => Some(*net),
        IpNet::V6(_) => None,
    });
    four.collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn wanted(mode: NetworkMode, program: &Path) -> FixedOutputNetwork {
        FixedOutputNetwork { mode, slirp4netns: program.into(), ..FixedOutputNetwork::default() }
    }

    #[test]
    fn the_coordinators_and_the_host_itself_are_denied() {
        let network = FixedNetwork::open(&wanted(NetworkMode::Isolated, Path::new("/bin/sh"))).expect("any program does");
        let net = |address: &str| Ipv4Net::from(address.parse::<Ipv4Addr>().expect("an address"));
        let Network::Egress(egress) = network.of_build(&[net("192.0.2.7"), net("127.0.0.1")]) else { panic!("{network:?}") };
        assert!(egress.denied.contains(&net("192.0.2.7")), "{egress:?}");
        assert!(!egress.denied.contains(&net("127.0.0.1")), "the build has a loopback of its own: {egress:?}");
        for address in host_addresses().filter(|address| address.is_ipv4() && !address.is_loopback()) {
            assert!(egress.denied.contains(&net(&address.to_string())), "{address}: {egress:?}");
        }
    }

    #[test]
    fn without_the_stack_a_build_has_the_hosts_network_unless_the_worker_must_not() {
        let absent = Path::new("/nonexistent/slirp4netns");
        for mode in [NetworkMode::Auto, NetworkMode::Host] {
            assert_eq!(FixedNetwork::open(&wanted(mode, absent)).expect("the host's").of_build(&[]), Network::Host);
        }
        let error = FixedNetwork::open(&wanted(NetworkMode::Isolated, absent)).expect_err("not there");
        assert!(error.to_string().contains("install slirp4netns"), "{error}");
    }
}
