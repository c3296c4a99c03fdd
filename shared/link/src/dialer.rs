//! The end that dials: workers, clients, and coordinators among themselves.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use quinn::{ClientConfig, Endpoint, VarInt};
use tokio::sync::OnceCell;

use crate::config::{self, End};
use crate::keys::NodeKeys;
use crate::{Closed, Connection, Identity, LinkError, Protocol, Role, socket, tls};

/// The name given to TLS, which wants one. Coordinators are known by role and farm, not by host name.
const SERVER_NAME: &str = "coordinator.kiln";

/// Dials coordinators of the identity's farm. Cheap to clone; all clones share one socket for each IP version.
#[derive(Clone)]
pub struct Dialer(Arc<Inner>);

struct Inner {
    identity: Identity,
    client: ClientConfig,
    protocol: Protocol,
    v4: OnceCell<Endpoint>,
    v6: OnceCell<Endpoint>,
}

impl Dialer {
    /// Makes a dialer that speaks as workers and clients do. Sockets are opened with the first connection.
    ///
    /// # Errors
    /// [`LinkError::Identity`].
    pub fn new(identity: &Identity) -> Result<Self, LinkError> {
        Self::speaking(identity, Protocol::Farm)
    }

    /// Makes a dialer that speaks `protocol`.
    ///
    /// # Errors
    /// [`LinkError::Identity`].
    pub fn speaking(identity: &Identity, protocol: Protocol) -> Result<Self, LinkError> {
        let client = ClientConfig::new(Arc::new(tls::client(identity, protocol)?));
        Ok(Self(Arc::new(Inner { identity: identity.clone(), client, protocol, v4: OnceCell::new(), v6: OnceCell::new() })))
    }

    /// Connects to the coordinator at `addr`. Each call makes a connection of its own. Returns once the coordinator has verified
    /// our certificate, at most [`config::HANDSHAKE_MAX`] later. Cancel safe.
    ///
    /// # Errors
    /// [`LinkError::Connect`] says why there is none: nobody answers, either side refuses the other's certificate, …;
    /// [`LinkError::NotCoordinator`] if somebody else is there.
    pub async fn connect(&self, addr: SocketAddr) -> Result<Connection, LinkError> {
        match tokio::time::timeout(config::HANDSHAKE_MAX, self.handshake(addr)).await {
            Ok(Err(LinkError::Lost(closed))) => Err(LinkError::Connect { addr, closed }),
            Ok(outcome) => outcome,
            Err(_) => Err(LinkError::Connect { addr, closed: Closed::TimedOut }),
        }
    }

    /// Closes all its connections, tells the peers why, and waits until they have been told (at most a few round trips).
    pub async fn close(&self, reason: &str) {
        for endpoint in [&self.0.v4, &self.0.v6].into_iter().filter_map(OnceCell::get) {
            endpoint.close(VarInt::from_u32(0), reason.as_bytes());
            let _told = tokio::time::timeout(config::HANDSHAKE_MAX, endpoint.wait_idle()).await;
        }
    }

    async fn handshake(&self, addr: SocketAddr) -> Result<Connection, LinkError> {
        let endpoint = self.endpoint(addr).await?;
        let mut client = self.0.client.clone();
        client.transport_config(config::transport(End::Dialer, self.0.protocol, addr));
        let connecting = endpoint
            .connect_with(client, addr, SERVER_NAME)
            .map_err(|err| LinkError::Connect { addr, closed: Closed::Refused { reason: err.to_string() } })?;
        let connection = Connection::identify(connecting.await?)?;
        let peer = connection.peer();
        match peer.role {
            Role::Coordinator(_) if peer.farm == self.0.identity.peer().farm => {}
            Role::Coordinator(_) | Role::Worker(_) | Role::Client(_) | Role::Admin(_) => {
                let found = Box::new(peer.clone());
                connection.close("you are no coordinator of my farm");
                return Err(LinkError::NotCoordinator { addr, found });
            }
        }
        connection.welcomed().await?;
        Ok(connection)
    }

    async fn endpoint(&self, addr: SocketAddr) -> Result<&Endpoint, LinkError> {
        let (cell, any) = match addr {
            SocketAddr::V4(_) => (&self.0.v4, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))),
            SocketAddr::V6(_) => (&self.0.v6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))),
        };
        cell.get_or_try_init(async || socket::endpoint(any, &NodeKeys::fresh(), None)).await
    }
}
