//! A simulated host's disk: what was not synced is gone after a crash, and a disk may be full. Work that would wait for the disk is done at
//! once, in the order of the host's tasks, so that a seed decides everything.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

pub use std::os::unix::fs::FileExt;
use tokio::sync::mpsc;
use turmoil::fs::shim::std::fs as simulated;
pub use turmoil::fs::shim::std::fs::{create_dir_all, read, read_dir, read_to_string};

use super::ill::{self, Ill};

/// An open file.
#[derive(Debug)]
pub struct File {
    file: simulated::File,
    path: PathBuf,
}

/// How a file is opened.
#[derive(Debug, Default)]
pub struct OpenOptions(simulated::OpenOptions);

impl OpenOptions {
    /// Opens for nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens for reading.
    pub fn read(mut self, is: bool) -> Self {
        self.0.read(is);
        self
    }

    /// Opens for writing.
    pub fn write(mut self, is: bool) -> Self {
        self.0.write(is);
        self
    }

    /// Makes the file if there is none.
    pub fn create(mut self, is: bool) -> Self {
        self.0.create(is);
        self
    }

    /// Empties the file.
    pub fn truncate(mut self, is: bool) -> Self {
        self.0.truncate(is);
        self
    }

    /// Opens the file.
    pub fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        Ok(File { file: self.0.open(&path)?, path: path.as_ref().to_owned() })
    }
}

impl File {
    /// Opens a file for reading.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        OpenOptions::new().read(true).open(path)
    }

    /// Opens a file for writing, empty.
    pub fn create(path: impl AsRef<Path>) -> io::Result<Self> {
        OpenOptions::new().write(true).create(true).truncate(true).open(path)
    }

    /// Returns what is known about it.
    pub fn metadata(&self) -> io::Result<simulated::Metadata> {
        self.file.metadata()
    }

    /// Makes it durable.
    pub fn sync_all(&self) -> io::Result<()> {
        if ill::is(&self.path, Ill::SyncsNothing) { Ok(()) } else { self.file.sync_all() }
    }

    /// Makes its bytes durable.
    pub fn sync_data(&self) -> io::Result<()> {
        if ill::is(&self.path, Ill::SyncsNothing) { Ok(()) } else { self.file.sync_data() }
    }

    /// Refuses to grow on a full disk; what is there may be written over.
    fn make_room(&self, end: u64) -> io::Result<()> {
        let len = self.file.metadata()?.len();
        ill::wrote(&self.path, len.saturating_sub(end));
        if end > len && ill::is(&self.path, Ill::Full) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl FileExt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.make_room(offset + bytes.len() as u64)?;
        self.file.write_at(bytes, offset)
    }
}

impl Read for File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Whoever writes in order begins with an empty file.
        self.make_room(self.file.metadata()?.len() + bytes.len() as u64)?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a small file.
pub fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    File::create(path)?.write_all(bytes.as_ref())
}

/// Removes a file. Of one that is soon made again under the same name, the removal is durable at once: turmoil would lose with it what is
/// synced into the new one.
pub fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    simulated::remove_file(path)?;
    match path.parent().filter(|_| path.extension().is_some_and(|ending| ending == "tmp")) {
        Some(dir) => simulated::sync_dir(dir),
        None => Ok(()),
    }
}

/// Renames a file.
pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    simulated::rename(from, to)
}

/// Renames an open file. A simulated file is known by its path, so it is opened again.
pub fn rename_open(file: &mut File, from: &Path, to: &Path) -> io::Result<()> {
    rename(from, to)?;
    *file = OpenOptions::new().read(true).write(true).open(to)?;
    ill::wrote(to, file.metadata()?.len());
    Ok(())
}

/// Makes the names in a directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    if ill::is(dir, Ill::ForgetsNames) { Ok(()) } else { simulated::sync_dir(dir) }
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
    /// Starts a task that gives `serve` what waits, while there is room in `dir`.
    pub fn start(_: &str, dir: &Path, mut serve: impl FnMut(&mut dyn Iterator<Item = T>) + Send + 'static) -> io::Result<Self> {
        let (requests, mut inbox) = mpsc::unbounded_channel();
        let dir = dir.to_owned();
        tokio::spawn(async move {
            while let Some(first) = inbox.recv().await {
                while ill::is_stuck(&dir) {
                    tokio::time::sleep(ill::LOOK_EVERY).await;
                }
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
