//! UDP sockets with buffers that hold a burst; in a simulation, sockets of the simulated network.

#[cfg(feature = "simulation")]
mod simulated;

use std::net::SocketAddr;
#[cfg(not(feature = "simulation"))]
use std::net::UdpSocket;
use std::sync::Arc;

#[cfg(not(feature = "simulation"))]
use nix::sys::socket::{setsockopt, sockopt};
#[cfg(not(feature = "simulation"))]
use quinn::TokioRuntime;
use quinn::{Endpoint, ServerConfig};

use crate::LinkError;
#[cfg(not(feature = "simulation"))]
use crate::config::SOCKET_BUFFER_BYTES;
use crate::keys::NodeKeys;

/// Opens an endpoint on `addr`, an address of the simulated host that calls.
///
/// # Errors
/// [`LinkError::Bind`].
#[cfg(feature = "simulation")]
pub(crate) fn endpoint(addr: SocketAddr, keys: &NodeKeys, server: Option<ServerConfig>) -> Result<Endpoint, LinkError> {
    let fail = |err| LinkError::Bind { addr, err };
    let socket = Arc::new(simulated::Socket::bind(addr).map_err(fail)?);
    let mut config = keys.endpoint();
    config.rng_seed(Some(keys.seed()));
    Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(simulated::Host)).map_err(fail)
}

/// Opens an endpoint on `addr`. Must run within a tokio runtime.
///
/// # Errors
/// [`LinkError::Bind`].
#[cfg(not(feature = "simulation"))]
pub(crate) fn endpoint(addr: SocketAddr, keys: &NodeKeys, server: Option<ServerConfig>) -> Result<Endpoint, LinkError> {
    let fail = |err| LinkError::Bind { addr, err };
    let socket = UdpSocket::bind(addr).map_err(fail)?;
    // Best effort: the kernel grants what its own limit allows.
    let granted =
        setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BUFFER_BYTES).and(setsockopt(&socket, sockopt::SndBuf, &SOCKET_BUFFER_BYTES));
    if let Err(err) = granted {
        tracing::warn!(%addr, %err, "the socket keeps the system's small buffers; transfers will lose packets");
    }
    Endpoint::new(keys.endpoint(), server, socket, Arc::new(TokioRuntime)).map_err(fail)
}
