//! Tells one attempt to stop: its waiting parts at once, its sandbox through the kernel.

use std::io;

use tokio::sync::watch;

use crate::sandbox::Cancel;

/// Stops an attempt. Clones stop the same one.
#[derive(Clone, Debug)]
pub struct Stop {
    cancel: Cancel,
    told: watch::Sender<bool>,
}

impl Stop {
    /// Makes a handle.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { cancel: Cancel::new()?, told: watch::Sender::new(false) })
    }

    /// Tells the attempt to stop. Doing it twice is harmless.
    pub fn stop(&self) {
        self.told.send_replace(true);
        self.cancel.cancel();
    }

    /// Returns the handle that the sandbox watches.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Returns whether the attempt was told to stop: for work on a thread, which asks now and then.
    pub fn is_stopped(&self) -> bool {
        *self.told.borrow()
    }

    /// Does `work` unless the attempt is stopped before it ends.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn unless<T>(&self, work: impl Future<Output = T>) -> Result<T, Stopped> {
        let mut told = self.told.subscribe();
        tokio::select! {
            biased;
            _ = told.wait_for(|told| *told) => Err(Stopped),
            done = work => Ok(done),
        }
    }
}

/// The attempt was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;
