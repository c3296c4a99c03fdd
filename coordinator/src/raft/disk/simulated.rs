//! A simulated host's disk: what was not synced is gone after a crash. Work that would wait for the disk is done at once, in the order of
//! the host's tasks, so that a seed decides everything.

use std::io;
use std::path::Path;

pub use std::os::unix::fs::FileExt;
use tokio::sync::mpsc;
pub use turmoil::fs::shim::std::fs::{
    File, OpenOptions, create_dir_all, read, read_dir, read_to_string, remove_file, rename, sync_dir, write,
};

/// Renames an open file. A simulated file is known by its path, so it is opened again.
pub fn rename_open(file: &mut File, from: &Path, to: &Path) -> io::Result<()> {
    rename(from, to)?;
    *file = OpenOptions::new().read(true).write(true).open(to)?;
    Ok(())
}

/// One process runs on a simulated host: nobody has to be kept out.
#[derive(Debug)]
pub struct Lock;

impl Lock {
    /// Takes the lock.
    pub fn take(_: &Path) -> io::Result<Option<Self>> {
        Ok(Some(Self))
    }
}

/// Does the work at once.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    Ok(work())
}

/// A task that serves requests in their order, all that wait at a time. It ends with its host, whatever waits.
pub struct Server<T> {
    requests: mpsc::UnboundedSender<T>,
}

impl<T> std::fmt::Debug for Server<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}

impl<T: Send + 'static> Server<T> {
    /// Starts a task that gives `serve` what waits.
    pub fn start(_: &str, mut serve: impl FnMut(&mut dyn Iterator<Item = T>) + Send + 'static) -> io::Result<Self> {
        let (requests, mut inbox) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(first) = inbox.recv().await {
                serve(&mut std::iter::once(first).chain(std::iter::from_fn(|| inbox.try_recv().ok())));
            }
        });
        Ok(Self { requests })
    }

    /// Asks.
    pub fn ask(&self, request: T) -> Result<(), T> {
        self.requests.send(request).map_err(|mpsc::error::SendError(request)| request)
    }
}
