//! Sockets and time of a simulated network: quinn on turmoil's UDP and tokio's clock.
//!
//! Only with the feature `simulation`, which the product never has. Source: the traits of `quinn::Runtime` and `quinn::AsyncUdpSocket`.

use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, UdpPoller};

/// Tasks and timers of the simulated host that calls.
#[derive(Debug)]
pub(super) struct Host;

/// A socket of a simulated host.
pub(super) struct Socket {
    udp: Arc<turmoil::net::UdpSocket>,
    readable: Mutex<Option<Readable>>,
}

type Readable = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// A simulated socket takes whatever it is given.
#[derive(Debug)]
struct AlwaysWritable;

impl Socket {
    /// Binds a socket. A simulated host has one address: any specified one means that.
    pub(super) fn bind(addr: SocketAddr) -> io::Result<Self> {
        // Binding never waits in a simulation; it is a future because the real one is.
        let bound = futures_now(Box::pin(turmoil::net::UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], addr.port())))));
        Ok(Self { udp: Arc::new(bound?), readable: Mutex::new(None) })
    }
}

fn futures_now<T>(mut future: Pin<Box<dyn Future<Output = T> + '_>>) -> T {
    match future.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => unreachable!("a simulated socket is bound at once"),
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.udp.fmt(f)
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // A partition drops what is sent without a word, as a real one does; other errors are quinn's to log.
        self.udp.try_send_to(transmit.contents, transmit.destination).map(|_| ())
    }

    fn poll_recv(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        let mut readable = self.readable.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(waiting) = readable.as_mut() {
                ready!(waiting.as_mut().poll(cx))?;
                *readable = None;
            }
            match self.udp.try_recv_from(&mut bufs[0]) {
                Ok((len, addr)) => {
                    meta[0] = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
                    return Poll::Ready(Ok(1));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let udp = Arc::clone(&self.udp);
                    *readable = Some(Box::pin(async move { udp.readable().await }));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Runtime for Host {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(tokio::time::sleep_until(at.into()))
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(task);
    }

    fn wrap_udp_socket(&self, _: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a simulated host has no sockets of the kernel"))
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}
