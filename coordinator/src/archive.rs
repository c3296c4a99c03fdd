//! Ended builds, kept on disk after they left the farm's state, one file each.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use kiln_core::BuildRecord;
use kiln_wire::BuildId;
use kiln_wire::client::BuildView;
use kiln_wire::frame::{self, FrameError};

/// The archive cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file system refused.
    #[error("{action} `{}`", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// The record cannot be encoded or is damaged.
    #[error("decode archived build `{}`", path.display())]
    Record {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: FrameError,
    },
}

/// The archive of one coordinator.
#[derive(Debug)]
pub struct Archive {
    dir: PathBuf,
}

impl Archive {
    /// Opens the directory, making it if needed.
    ///
    /// # Errors
    /// [`ArchiveError::Io`] if it cannot be made.
    pub fn open(dir: &Path) -> Result<Self, ArchiveError> {
        fs::create_dir_all(dir).map_err(|source| ArchiveError::Io { action: "create", path: dir.to_path_buf(), source })?;
        Ok(Self { dir: dir.to_path_buf() })
    }

    /// Writes a record durably; writing it again changes nothing.
    ///
    /// # Errors
    /// [`ArchiveError`] names the file and what failed.
    pub fn put(&self, record: &BuildRecord) -> Result<(), ArchiveError> {
        let path = self.path(record.build);
        let bytes = frame::to_bytes(record).map_err(|source| ArchiveError::Record { path: path.clone(), source })?;
        let staged = path.with_extension("new");
        let write = || {
            let mut file = File::create(&staged)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&staged, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|source| ArchiveError::Io { action: "write", path: path.clone(), source })
    }

    /// Reads a record; none if the build never ended here.
    ///
    /// # Errors
    /// [`ArchiveError`] names the file and what failed.
    pub fn get(&self, build: BuildId) -> Result<Option<BuildRecord>, ArchiveError> {
        let path = self.path(build);
        match fs::read(&path) {
            Ok(bytes) => frame::from_bytes(&bytes).map(Some).map_err(|source| ArchiveError::Record { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ArchiveError::Io { action: "read", path, source }),
        }
    }

    /// Returns whether the build has ended and is kept here.
    pub fn holds(&self, build: BuildId) -> bool {
        self.path(build).exists()
    }

    fn path(&self, build: BuildId) -> PathBuf {
        self.dir.join(format!("{build}.build"))
    }
}

/// Returns an archived build as clients see it.
pub(crate) fn view(record: BuildRecord) -> BuildView {
    BuildView {
        build: record.build,
        name: record.name,
        submitted_at: record.submitted_at,
        state: record.state,
        counts: record.counts,
        remaining_ms: None,
        outputs: record.outputs,
        failures: record.failures,
        running: Vec::new(),
        waiting: Default::default(),
    }
}
