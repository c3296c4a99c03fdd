//! The handle that stops a run from another thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

/// Stops a run. Clones stop the same run; using it twice, or before the start, is fine.
#[derive(Clone, Debug)]
pub struct Cancel {
    event: Arc<OwnedFd>,
}

impl Cancel {
    /// Makes a handle.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { event: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?) })
    }

    /// Asks for the run to be stopped. Returns at once; the run ends as [`super::Stop::Cancelled`].
    pub fn cancel(&self) {
        // The only way to fail is a full counter, and then the run has been told already.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }
}

impl AsFd for Cancel {
    /// Readable once the handle was used.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
