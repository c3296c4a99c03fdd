//! The end that is dialled. Handshakes run beside each other and are bounded in number and time, so that a peer that never
//! completes one delays nobody.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use quinn::{Endpoint, Incoming, ServerConfig, VarInt};
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::AbortHandle;

use crate::config::{self, End};
use crate::keys::NodeKeys;
use crate::{Closed, Connection, Identity, LinkError, Protocol, socket, tls};

/// A listening endpoint.
pub struct Listener {
    endpoint: Endpoint,
    addr: SocketAddr,
    server: Arc<RwLock<ServerConfig>>,
    accepted: Mutex<mpsc::Receiver<Connection>>,
    admission: AbortHandle,
}

impl Listener {
    /// Listens on `addr` as `identity`. With `state_dir` the endpoint's keys are kept there (`quic.keys`, made if missing), so
    /// that after a restart the peers of the process before notice at once. Must run within a tokio runtime.
    ///
    /// # Errors
    /// [`LinkError::Bind`], [`LinkError::Keys`], [`LinkError::Identity`].
    pub fn bind(addr: SocketAddr, identity: &Identity, state_dir: Option<&Path>) -> Result<Self, LinkError> {
        let keys = state_dir.map_or_else(|| Ok(NodeKeys::fresh()), NodeKeys::open)?;
        let server = server_config(identity)?;
        let endpoint = socket::endpoint(addr, &keys, Some(server.clone()))?;
        let addr = endpoint.local_addr().map_err(|err| LinkError::Bind { addr, err })?;
        let server = Arc::new(RwLock::new(server));
        let (ready, accepted) = mpsc::channel(config::ACCEPT_BACKLOG);
        let admission = tokio::spawn(admit(endpoint.clone(), Arc::clone(&server), ready)).abort_handle();
        Ok(Self { endpoint, addr, server, accepted: Mutex::new(accepted), admission })
    }

    /// Returns the address that it really listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Waits for the next connection whose peer is verified; `None` once the listener is closed. Cancel safe.
    pub async fn accept(&self) -> Option<Connection> {
        self.accepted.lock().await.recv().await
    }

    /// Uses another certificate (or root) for connections from now on; those that exist stay.
    ///
    /// # Errors
    /// [`LinkError::Identity`]; the one before stays in use.
    pub fn renew(&self, identity: &Identity) -> Result<(), LinkError> {
        let server = server_config(identity)?;
        self.endpoint.set_server_config(Some(server.clone()));
        *self.server.write().unwrap_or_else(PoisonError::into_inner) = server;
        Ok(())
    }

    /// Closes every connection, tells the peers why, and waits until they have been told (at most a few round trips).
    pub async fn close(&self, reason: &str) {
        self.admission.abort();
        self.endpoint.close(VarInt::from_u32(0), reason.as_bytes());
        // Quinn waits for three probe timeouts at most; a bound of our own costs nothing.
        let _told = tokio::time::timeout(config::HANDSHAKE_MAX, self.endpoint.wait_idle()).await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.admission.abort();
    }
}

fn server_config(identity: &Identity) -> Result<ServerConfig, LinkError> {
    let mut server = ServerConfig::with_crypto(Arc::new(tls::server(identity)?));
    server
        // A worker that moves dials again; nobody can then point our traffic at a third party.
        .migration(false)
        .max_incoming(config::INCOMING_MAX)
        .incoming_buffer_size(config::INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(config::INCOMING_TOTAL_BYTES_MAX);
    Ok(server)
}

/// Lets dialers in, as many at a time as the limits allow.
async fn admit(endpoint: Endpoint, server: Arc<RwLock<ServerConfig>>, ready: mpsc::Sender<Connection>) {
    let handshakes = Arc::new(Semaphore::new(config::HANDSHAKES_MAX));
    while let Some(incoming) = endpoint.accept().await {
        let under_way = config::HANDSHAKES_MAX - handshakes.available_permits();
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        if endpoint.open_connections() >= config::CONNECTIONS_MAX {
            incoming.refuse();
            continue;
        }
        if under_way >= config::HANDSHAKES_WITHOUT_RETRY_MAX && incoming.may_retry() && !incoming.remote_address_validated() {
            // It fails only for a dialer that has proved its address, which this one has not.
            let _sent = incoming.retry();
            continue;
        }
        let remote = incoming.remote_address();
        let server = server.read().unwrap_or_else(PoisonError::into_inner).clone();
        let ready = ready.clone();
        tokio::spawn(async move {
            let outcome = tokio::time::timeout(config::HANDSHAKE_MAX, handshake(incoming, server)).await;
            match outcome.unwrap_or(Err(LinkError::Connect { addr: remote, closed: Closed::TimedOut })) {
                Ok(connection) => {
                    // Fails only once the listener is gone, and then the connection goes too.
                    let _taken = ready.send(connection).await;
                }
                Err(err) => {
                    let err: &(dyn std::error::Error + 'static) = &err;
                    tracing::info!(%remote, err, "refused a dialer");
                }
            }
            drop(permit);
        });
    }
}

async fn handshake(incoming: Incoming, mut server: ServerConfig) -> Result<Connection, LinkError> {
    let addr = incoming.remote_address();
    let fail = |err: quinn::ConnectionError| LinkError::Connect { addr, closed: err.into() };
    // Which protocol it will be is known only after the handshake.
    server.transport_config(config::transport(End::Listener, Protocol::Farm, addr));
    let quinn = incoming.accept_with(Arc::new(server)).map_err(fail)?.await.map_err(fail)?;
    let connection = Connection::identify(quinn)?;
    connection.welcome().await?;
    Ok(connection)
}
