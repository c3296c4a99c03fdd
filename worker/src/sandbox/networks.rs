//! Network namespaces that wait for a build, each with nothing but a loopback device that is up: making one takes the kernel longer than the
//! rest of a sandbox. A thread makes them ahead.
//!
//! Each is used by one build and by nobody before it. It belongs to the worker's user namespace, over which a build has no right, not even
//! before it gives up those that it is born with. Absences: namespaces with routes (a fixed-output build's) are not made ahead.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// The namespaces that wait, and the worker's own.
#[derive(Debug)]
pub(super) struct Networks {
    waiting: Mutex<Receiver<OwnedFd>>,
    own: OwnedFd,
}

/// How many wait: builds start in bursts when many jobs become ready at once.
const WAITING_MAX: usize = 8;

impl Networks {
    /// Starts the thread. Where the worker may make no such namespace, none will ever wait.
    ///
    /// # Errors
    /// The kernel's, if it does not show the worker's own namespace.
    pub(super) fn open() -> io::Result<Self> {
        let own = current()?;
        let back = own.try_clone()?;
        // One more is held by the thread.
        let (made, waiting) = sync_channel(WAITING_MAX - 1);
        std::thread::Builder::new().name("kiln-networks".to_owned()).spawn(move || {
            if let Err(err) = make_all(&back, &made) {
                tracing::warn!(%err, "make network namespaces ahead; each build makes its own");
            }
        })?;
        Ok(Self { waiting: Mutex::new(waiting), own })
    }

    /// Takes one, if one waits.
    pub(super) fn take(&self) -> Option<OwnedFd> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).try_recv().ok()
    }

    /// Does something with the calling thread in `network`.
    ///
    /// # Errors
    /// The kernel's, if the thread cannot enter; then nothing was done.
    pub(super) fn within<T>(&self, network: &OwnedFd, work: impl FnOnce() -> T) -> io::Result<T> {
        enter(network)?;
        let made = work();
        if let Err(err) = enter(&self.own) {
            // The worker must not go on in a build's network, and a thread that cannot leave it is out of memory at best.
            tracing::error!(%err, "leave a build's network namespace");
            std::process::abort();
        }
        Ok(made)
    }
}

/// Returns when nobody takes them any more.
fn make_all(own: &OwnedFd, made: &SyncSender<OwnedFd>) -> io::Result<()> {
    loop {
        // SAFETY: nothing of this thread's depends on its network namespace.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        raise_loopback()?;
        let network = current()?;
        // Nobody but the build is to be in it.
        enter(own)?;
        if made.send(network).is_err() {
            return Ok(());
        }
    }
}

fn current() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

fn enter(network: &OwnedFd) -> io::Result<()> {
    Ok(move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?)
}

fn raise_loopback() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let request = loopback_up();
    // SAFETY: the kernel reads the request.
    let raised = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if raised == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The request that brings the loopback device up.
pub(super) fn loopback_up() -> libc::ifreq {
    // SAFETY: all-zero is a valid request; the name fits with its terminator; the flags are the union's active field.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l'.cast_signed();
        request.ifr_name[1] = b'o'.cast_signed();
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_LOOPBACK | libc::IFF_RUNNING) as i16;
        request
    }
}
