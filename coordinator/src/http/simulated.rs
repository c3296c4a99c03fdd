//! A listening socket of a simulated host.

use std::io;
use std::net::SocketAddr;

use turmoil::net::{TcpListener, TcpStream};

/// Simulated bytes wait for no confirmation.
pub fn send_at_once(_connection: &mut TcpStream) {}

/// Listens on a simulated host.
pub struct Socket(TcpListener);

impl Socket {
    /// Binds a socket on the one address that the host has.
    pub async fn bind(addr: SocketAddr) -> io::Result<Self> {
        TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], addr.port()))).await.map(Self)
    }

    /// Returns the address that it listens on.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl axum::serve::Listener for Socket {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            if let Ok(accepted) = self.0.accept().await {
                return accepted;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
