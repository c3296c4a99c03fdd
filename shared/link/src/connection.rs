//! A connection with a known peer, and the streams on it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use quinn::VarInt;
use quinn::crypto::rustls::HandshakeData;
use rustls::pki_types::CertificateDer;
use tokio::task::AbortHandle;

use crate::leaf::{CertificateRefusal, Leaf};
use crate::{Closed, LinkError, Peer, Protocol, Receiver, Role, Sender};

/// A live, mutually authenticated connection. Cheap to clone; it closes when the last clone and the last stream are dropped, and
/// at the latest when the peer's certificate expires.
#[derive(Clone)]
pub struct Connection(Arc<Inner>);

pub(crate) struct Inner {
    quinn: quinn::Connection,
    peer: Peer,
    protocol: Protocol,
    expiry: AbortHandle,
}

impl Connection {
    /// Reads who the peer of an established connection is.
    pub(crate) fn identify(quinn: quinn::Connection) -> Result<Self, LinkError> {
        let addr = quinn.remote_address();
        let refuse = |refusal| {
            quinn.close(VarInt::from_u32(0), b"who are you?");
            LinkError::Peer { addr, refusal }
        };
        let protocol = quinn.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok()).and_then(|data| data.protocol);
        let Some(protocol) = protocol.as_deref().and_then(Protocol::from_alpn) else {
            quinn.close(VarInt::from_u32(0), b"this is kiln/1");
            return Err(LinkError::Connect { addr, closed: Closed::Refused { reason: "the peer does not speak kiln/1".to_owned() } });
        };
        let chain = quinn.peer_identity().and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
        let der = chain.as_ref().and_then(|chain| chain.first()).ok_or(CertificateRefusal::Missing).map_err(refuse)?;
        let leaf = Leaf::read(der).map_err(refuse)?;
        if let (Protocol::Raft, Role::Worker(_) | Role::Client(_) | Role::Admin(_)) = (protocol, &leaf.peer.role) {
            quinn.close(VarInt::from_u32(0), b"only coordinators speak kiln-raft/1");
            let reason = format!("{} is no coordinator, and only these speak kiln-raft/1", leaf.peer);
            return Err(LinkError::Connect { addr, closed: Closed::Refused { reason } });
        }
        let expiry = tokio::spawn(close_at(quinn.clone(), leaf.not_after)).abort_handle();
        Ok(Self(Arc::new(Inner { quinn, peer: leaf.peer, protocol, expiry })))
    }

    /// Returns who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.0.peer
    }

    /// Returns what is spoken on it.
    pub fn protocol(&self) -> Protocol {
        self.0.protocol
    }

    /// Returns where the other end is.
    pub fn remote_addr(&self) -> SocketAddr {
        self.0.quinn.remote_address()
    }

    /// Opens a stream. The peer learns of it with the first message. Waits while the peer has as many open as it allows.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`LinkError::Lost`].
    pub async fn open(&self) -> Result<(Sender, Receiver), LinkError> {
        let (send, receive) = self.0.quinn.open_bi().await?;
        Ok((Sender::new(send, Arc::clone(&self.0)), Receiver::new(receive, Arc::clone(&self.0))))
    }

    /// Waits for the next stream that the peer opens; `None` when the connection was closed in an orderly way by either side.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`LinkError::Lost`] if the connection broke.
    pub async fn accept(&self) -> Result<Option<(Sender, Receiver)>, LinkError> {
        match self.0.quinn.accept_bi().await.map_err(Closed::from) {
            Ok((send, receive)) => Ok(Some((Sender::new(send, Arc::clone(&self.0)), Receiver::new(receive, Arc::clone(&self.0))))),
            Err(Closed::ByPeer { .. } | Closed::Here) => Ok(None),
            Err(closed @ (Closed::PeerRestarted | Closed::TimedOut | Closed::Refused { .. })) => Err(LinkError::Lost(closed)),
        }
    }

    /// Closes the connection at once and tells the peer why. What is still under way on its streams is lost: `finish` them first.
    pub fn close(&self, reason: &str) {
        self.0.quinn.close(VarInt::from_u32(0), reason.as_bytes());
    }

    /// Waits until the connection has ended, and says why. Cancel safe.
    pub async fn closed(&self) -> Closed {
        self.0.quinn.closed().await.into()
    }

    /// Returns why the connection has ended, if it has.
    pub fn close_reason(&self) -> Option<Closed> {
        self.0.quinn.close_reason().map(Closed::from)
    }

    /// Tells the dialer that it is accepted.
    pub(crate) async fn welcome(&self) -> Result<(), LinkError> {
        let mut mark = self.0.quinn.open_uni().await?;
        mark.finish().map_err(|_| LinkError::NotOpen)
    }

    /// Waits until the listener has accepted us: only then has it verified our certificate.
    pub(crate) async fn welcomed(&self) -> Result<(), LinkError> {
        self.0.quinn.accept_uni().await?;
        Ok(())
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({} at {})", self.peer(), self.remote_addr())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.expiry.abort();
    }
}

/// Closes a connection when its peer's certificate expires: TLS looks at it in the handshake only.
async fn close_at(quinn: quinn::Connection, not_after: SystemTime) {
    let left = not_after.duration_since(SystemTime::now()).unwrap_or_default();
    tokio::select! {
        _ = quinn.closed() => {}
        () = tokio::time::sleep(left) => quinn.close(VarInt::from_u32(0), b"your certificate has expired"),
    }
}
