//! What is spoken on a connection, agreed on in its handshake.

use crate::config::{ALPN, RAFT_ALPN};

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// `kiln/1`: sessions and requests of workers and clients.
    Farm,
    /// `kiln-raft/1`: consensus. Both ends are coordinators.
    Raft,
}

impl Protocol {
    /// Every protocol.
    pub(crate) const ALL: [Self; 2] = [Self::Farm, Self::Raft];

    /// Returns its name in the handshake.
    pub(crate) fn alpn(self) -> &'static [u8] {
        match self {
            Self::Farm => ALPN,
            Self::Raft => RAFT_ALPN,
        }
    }

    /// Reads a name of the handshake.
    pub(crate) fn from_alpn(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.alpn() == name)
    }
}
