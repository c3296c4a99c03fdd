//! The machine's disk and threads.

pub use std::fs::{File, OpenOptions, create_dir_all, read, read_dir, read_to_string, remove_file, rename, write};
use std::io;
pub use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;

/// Makes the names in a directory durable.
///
/// # Errors
/// What the system says.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Renames an open file.
///
/// # Errors
/// What the system says.
pub fn rename_open(_: &mut File, from: &Path, to: &Path) -> io::Result<()> {
    rename(from, to)
}

/// Keeps others out of a directory while it is held.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock `file`; nothing if somebody else has it.
    ///
    /// # Errors
    /// What the system says.
    pub fn take(file: &Path) -> io::Result<Option<Self>> {
        let file = File::options().write(true).create(true).truncate(false).open(file)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(err)) => Err(err),
        }
    }
}

/// Does work that waits for the disk on a thread where that holds nobody up.
///
/// # Errors
/// [`io::Error`] if the work panicked or the runtime ends.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// A thread that serves requests in their order, all that wait at a time.
pub struct Server<T> {
    requests: Option<mpsc::Sender<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T> std::fmt::Debug for Server<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}

impl<T: Send + 'static> Server<T> {
    /// Starts a thread that gives `serve` what waits. Serving may wait for room in the directory.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(name: &str, _: &Path, mut serve: impl FnMut(&mut dyn Iterator<Item = T>) + Send + 'static) -> io::Result<Self> {
        let (requests, inbox) = mpsc::channel();
        let run = move || {
            while let Ok(first) = inbox.recv() {
                serve(&mut std::iter::once(first).chain(inbox.try_iter()));
            }
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(Self { requests: Some(requests), thread: Some(thread) })
    }

    /// Asks.
    ///
    /// # Errors
    /// The request itself, if the thread has ended.
    pub fn ask(&self, request: T) -> Result<(), T> {
        let requests = self.requests.as_ref().expect("taken only by drop");
        requests.send(request).map_err(|mpsc::SendError(request)| request)
    }
}

impl<T> Drop for Server<T> {
    /// Waits until everything that was asked for is served.
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by its hook.
            let _ = thread.join();
        }
    }
}
