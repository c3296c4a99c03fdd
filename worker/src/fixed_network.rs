//! Which network the fixed-output builds of this worker get, and what they must not reach in it.
//!
//! Does not start anything: [`crate::sandbox`] does. The worker's own downloads (`builtin:fetchurl`) are not concerned.

use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;

use crate::config::{Config, NetworkMode};
use crate::sandbox::{Egress, Network};

/// The network of fixed-output builds.
#[derive(Debug)]
pub struct FixedNetwork {
    /// The user-mode stack; without it they have the host's network.
    program: Option<PathBuf>,
    allowed: Vec<Ipv4Net>,
    denied: Vec<Ipv4Net>,
    coordinators: Vec<String>,
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
    pub fn open(config: &Config) -> Result<Self, NoStack> {
        let wanted = &config.fixed_output_network;
        let program = match wanted.mode {
            NetworkMode::Host => None,
            NetworkMode::Auto => find(&wanted.slirp4netns),
            NetworkMode::Isolated => Some(find(&wanted.slirp4netns).ok_or_else(|| NoStack { program: wanted.slirp4netns.clone() })?),
        };
        let coordinators = config.coordinators.clone();
        Ok(Self { program, allowed: wanted.allow.clone(), denied: wanted.deny.clone(), coordinators })
    }

    /// Says what builds get, for the farm and its people.
    pub fn describe(&self) -> String {
        match &self.program {
            Some(_) => "own namespace, out through slirp4netns".to_owned(),
            None => "the host's".to_owned(),
        }
    }

    /// Returns the network of a build that starts now. The host's own addresses and the coordinators' are looked up each time, because
    /// they change; a name that does not resolve now denies nothing.
    pub fn of_build(&self) -> Network {
        let Some(program) = &self.program else { return Network::Host };
        let coordinators =
            self.coordinators.iter().filter_map(|address| address.to_socket_addrs().ok()).flatten().map(|address| address.ip());
        let own = coordinators.chain(host_addresses()).filter_map(|address| match address {
            IpAddr::V4(address) => Some(Ipv4Net::from(address)),
            // There is no IPv6 in the build's network.
            IpAddr::V6(_) => None,
        });
        let denied = self.denied.iter().copied().chain(own.filter(|net| !net.addr().is_loopback())).collect();
        Network::Egress(Egress { program: program.clone(), allowed: self.allowed.clone(), denied })
    }
}

/// Returns where a program is: an absolute path itself, any other below the directories of `PATH`.
fn find(program: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&path).map(|dir| dir.join(program));
    candidates.into_iter().find(|candidate| candidate.is_absolute() && candidate.is_file())
}

fn host_addresses() -> impl Iterator<Item = IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    interfaces.filter_map(|interface| Some(IpAddr::V4(interface.address?.as_sockaddr_in()?.ip())))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn config(mode: NetworkMode, program: &Path) -> Config {
        let mut config = Config::new(
            kiln_wire::WorkerId::parse("w1").expect("a name"),
            "/w".into(),
            vec!["192.0.2.7:7420".into(), "127.0.0.1:7420".into()],
        );
        config.fixed_output_network.mode = mode;
        config.fixed_output_network.slirp4netns = program.into();
        config
    }

    #[test]
    fn the_coordinators_and_the_host_itself_are_denied() {
        let network = FixedNetwork::open(&config(NetworkMode::Isolated, Path::new("/bin/sh"))).expect("any program does");
        let Network::Egress(egress) = network.of_build() else { panic!("{network:?}") };
        let has = |address: &str| egress.denied.contains(&Ipv4Net::from(address.parse::<Ipv4Addr>().expect("an address")));
        assert!(has("192.0.2.7"), "{egress:?}");
        assert!(!has("127.0.0.1"), "the build has a loopback of its own: {egress:?}");
        for address in host_addresses().filter(|address| !address.is_loopback()) {
            assert!(has(&address.to_string()), "{address}: {egress:?}");
        }
    }

    #[test]
    fn without_the_stack_a_build_has_the_hosts_network_unless_the_worker_must_not() {
        let absent = Path::new("/nonexistent/slirp4netns");
        for mode in [NetworkMode::Auto, NetworkMode::Host] {
            assert_eq!(FixedNetwork::open(&config(mode, absent)).expect("the host's").of_build(), Network::Host);
        }
        let error = FixedNetwork::open(&config(NetworkMode::Isolated, absent)).expect_err("not there");
        assert!(error.to_string().contains("install slirp4netns"), "{error}");
    }
}
