//! UDP sockets with buffers that hold a burst.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use nix::sys::socket::{setsockopt, sockopt};
use quinn::{Endpoint, ServerConfig, TokioRuntime};

use crate::LinkError;
use crate::config::SOCKET_BUFFER_BYTES;
use crate::keys::NodeKeys;

/// Opens an endpoint on `addr`. Must run within a tokio runtime.
///
/// # Errors
/// [`LinkError::Bind`].
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
