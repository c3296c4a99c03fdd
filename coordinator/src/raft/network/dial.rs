//! Where a peer's address is resolved and dialled: the only place that reaches for names and sockets, so that a simulation can put
//! others in its place.

use std::fmt;
use std::net::SocketAddr;

use kiln_link::{Connection, Dialer, Identity, LinkError, Protocol};

/// Dials other coordinators.
#[derive(Clone)]
pub struct Dial {
    dialer: Dialer,
}

/// An address that could not be dialled.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address.
    #[error("resolve `{link}`: {why}")]
    Resolve {
        /// Which.
        link: String,
        /// What the resolver said.
        why: String,
    },
    /// Nobody answered, or not as a coordinator does.
    #[error("dial `{link}`")]
    Link {
        /// Which.
        link: String,
        /// Why not.
        #[source]
        source: LinkError,
    },
}

impl Dial {
    /// Makes a dialer. Its sockets belong to the runtime of whoever dials first.
    ///
    /// # Errors
    /// [`LinkError::Identity`].
    pub fn new(identity: &Identity) -> Result<Self, LinkError> {
        Ok(Self { dialer: Dialer::speaking(identity, Protocol::Raft)? })
    }

    /// Connects to `link` (`host:port`), at whichever of its addresses answers first in order.
    ///
    /// # Errors
    /// [`DialError`] of the last address.
    pub async fn dial(&self, link: &str) -> Result<Connection, DialError> {
        let unresolved = |why: String| DialError::Resolve { link: link.to_owned(), why };
        let found: Vec<SocketAddr> = match link.parse() {
            Ok(address) => vec![address],
            Err(_) => tokio::net::lookup_host(link).await.map_err(|err| unresolved(err.to_string()))?.collect(),
        };
        let mut failed = unresolved("it has no address".to_owned());
        for address in found {
            match self.dialer.connect(address).await {
                Ok(connection) => return Ok(connection),
                Err(source) => failed = DialError::Link { link: link.to_owned(), source },
            }
        }
        Err(failed)
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dial")
    }
}
