//! Connections of downloads: to reachable servers only, by whatever way their address comes.
//!
//! A name is resolved here, and the connection made to one of the addresses that were checked; an address in a URL or in a redirect is
//! checked before it is used, because nothing is resolved then.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};

use super::super::Destinations;
use super::super::destinations::Denied;

/// Redirects that are followed. Mirrors use one or two.
const REDIRECTS_MAX: usize = 10;
/// Time for a connection to stand. Nix has the same.
const CONNECT: Duration = Duration::from_secs(15);
/// Longest time without a byte. Nix has the same (`stalled-download-timeout`).
const STALL: Duration = Duration::from_secs(300);

/// Makes a client for one download: they are rare, and a kept one would keep connections and an old list of roots.
///
/// # Errors
/// [`reqwest`]'s, if it cannot prepare for TLS.
pub fn client(reachable: &Destinations) -> reqwest::Result<Client> {
    let resolver = Arc::new(Checked(Arc::new(reachable.clone())));
    let builder = || {
        let reachable = reachable.clone();
        let redirects = Policy::custom(move |attempt| match check_literal(&reachable, attempt.url()) {
            Err(denied) => attempt.error(denied),
            Ok(()) => Policy::limited(REDIRECTS_MAX).redirect(attempt),
        });
        let agent = concat!("kiln/", env!("CARGO_PKG_VERSION"), " (Nix builtin:fetchurl)");
        let client = Client::builder().redirect(redirects).connect_timeout(CONNECT).read_timeout(STALL).user_agent(agent);
        client.dns_resolver(resolver.clone())
    };
    // A machine without certificates of its own still verifies, against the roots that we bring.
    builder().build().or_else(|_| {
        let roots = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().filter_map(|der| reqwest::Certificate::from_der(der).ok());
        builder().tls_certs_only(roots).build()
    })
}

/// Checks a URL whose host is an address.
///
/// # Errors
/// [`Denied`] if it must not be reached.
pub fn check_literal(reachable: &Destinations, url: &Url) -> Result<(), Denied> {
    let Some(host) = url.host_str() else { return Ok(()) };
    let address: Result<IpAddr, _> = host.trim_start_matches('[').trim_end_matches(']').parse();
    address.map_or(Ok(()), |address| reachable.check(host, address))
}

/// Returns the denial that a request failed by, if it did.
pub fn denied(err: &reqwest::Error) -> Option<Denied> {
    let mut next: Option<&(dyn Error + 'static)> = Some(err);
    while let Some(err) = next {
        if let Some(denied) = err.downcast_ref::<Denied>() {
            return Some(denied.clone());
        }
        next = err.source();
    }
    None
}

/// Resolves a name to those of its addresses that may be reached.
struct Checked(Arc<Destinations>);

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let reachable = self.0.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let (mut open, mut last) = (Vec::new(), None);
            for address in found {
                match reachable.check(name.as_str(), address.ip()) {
                    Ok(()) => open.push(address),
                    Err(denied) => last = Some(denied),
                }
            }
            match last {
                Some(denied) if open.is_empty() => Err(denied.into()),
                Some(_) | None => Ok(Box::new(open.into_iter()) as reqwest::dns::Addrs),
            }
        })
    }
}
