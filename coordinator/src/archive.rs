//! Ended builds, kept after they left the farm's state: one file each, or one object each where several coordinators share a store.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use kiln_core::BuildRecord;
use kiln_store::{Deleted, Store, StoreError};
use kiln_wire::BuildId;
use kiln_wire::client::BuildView;
use kiln_wire::frame::{self, FrameError};

use crate::heavy::heavy;

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
    /// The shared store failed.
    #[error("{action} archived build {build}")]
    Store {
        /// What was being done.
        action: &'static str,
        /// Which build.
        build: BuildId,
        /// What the store said.
        #[source]
        source: Box<StoreError>,
    },
    /// The shared store cannot be listed.
    #[error("list archived builds")]
    List {
        /// What the store said.
        #[source]
        source: Box<StoreError>,
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

/// The archive of a farm.
#[derive(Clone, Debug)]
pub enum Archive {
    /// Files of this coordinator.
    Files(FileArchive),
    /// Objects of the farm.
    Shared(Store),
}

/// An archive in a directory.
#[derive(Clone, Debug)]
pub struct FileArchive {
    dir: PathBuf,
}

impl Archive {
    /// Opens the archive: in the store if that is shared, else in this directory, which is made if needed.
    ///
    /// # Errors
    /// [`ArchiveError::Io`] if it cannot be made.
    pub fn open(dir: &Path, store: &Store) -> Result<Self, ArchiveError> {
        match store.is_shared() {
            true => Ok(Self::Shared(store.clone())),
            false => FileArchive::open(dir).map(Self::Files),
        }
    }

    /// Writes a record durably; writing it again changes nothing.
    ///
    /// # Errors
    /// [`ArchiveError`] names the build or its file, and what failed.
    pub async fn put(&self, record: &BuildRecord) -> Result<(), ArchiveError> {
        match self {
            Self::Files(files) => {
                let (files, copy) = (files.clone(), record.clone());
                let path = files.path(record.build);
                let written = tokio::task::spawn_blocking(move || files.put(&copy)).await;
                written.map_err(|ended| ArchiveError::Io { action: "write", path, source: ended.into() })?
            }
            Self::Shared(store) => {
                let build = record.build;
                let bytes = frame::to_bytes(record).map_err(|source| ArchiveError::Record { path: name(build), source })?;
                store.put_build(build, bytes.into()).await.map_err(|err| ArchiveError::Store {
                    action: "write",
                    build,
                    source: Box::new(err),
                })
            }
        }
    }

    /// Reads a record; none if the build never ended in this farm.
    ///
    /// # Errors
    /// [`ArchiveError`] names the build or its file, and what failed.
    pub async fn get(&self, build: BuildId) -> Result<Option<BuildRecord>, ArchiveError> {
        match self {
            Self::Files(files) => heavy(|| files.get(build)),
            Self::Shared(store) => {
                let read = store.build(build).await.map_err(|err| ArchiveError::Store { action: "read", build, source: Box::new(err) })?;
                let record = read.map(|bytes| frame::from_bytes(&bytes)).transpose();
                record.map_err(|source| ArchiveError::Record { path: name(build), source })
            }
        }
    }

    /// Returns the builds whose records are kept, in their order.
    ///
    /// # Errors
    /// [`ArchiveError`] if they cannot be listed.
    pub async fn list(&self) -> Result<Vec<BuildId>, ArchiveError> {
        match self {
            Self::Files(files) => heavy(|| files.list()),
            Self::Shared(store) => {
                let listed = store.builds().await;
                listed.map_err(|err| ArchiveError::List { source: Box::new(err) })
            }
        }
    }

    /// Deletes the record of a build whose time is over; one that is not there is gone too.
    ///
    /// # Errors
    /// [`ArchiveError`] names the build or its file, and what failed.
    pub async fn delete(&self, build: BuildId) -> Result<(), ArchiveError> {
        match self {
            Self::Files(files) => files.delete(build),
            Self::Shared(store) => {
                let deleted = store.delete(Deleted::Build(build)).await;
                deleted.map_err(|err| ArchiveError::Store { action: "delete", build, source: Box::new(err) })
            }
        }
    }

    /// Returns whether the build has ended and is kept.
    ///
    /// # Errors
    /// [`ArchiveError::Store`] if the store cannot be asked.
    pub async fn holds(&self, build: BuildId) -> Result<bool, ArchiveError> {
        match self {
            Self::Files(files) => Ok(files.holds(build)),
            Self::Shared(store) => {
                store.has_build(build).await.map_err(|err| ArchiveError::Store { action: "look up", build, source: Box::new(err) })
            }
        }
    }
}

impl FileArchive {
    /// Opens the directory, making it if needed.
    fn open(dir: &Path) -> Result<Self, ArchiveError> {
        fs::create_dir_all(dir).map_err(|source| ArchiveError::Io { action: "create", path: dir.to_path_buf(), source })?;
        Ok(Self { dir: dir.to_path_buf() })
    }

    /// Writes a record durably; writing it again changes nothing.
    fn put(&self, record: &BuildRecord) -> Result<(), ArchiveError> {
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
    fn get(&self, build: BuildId) -> Result<Option<BuildRecord>, ArchiveError> {
        let path = self.path(build);
        match fs::read(&path) {
            Ok(bytes) => frame::from_bytes(&bytes).map(Some).map_err(|source| ArchiveError::Record { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ArchiveError::Io { action: "read", path, source }),
        }
    }

    /// Returns whether the build has ended and is kept here.
    fn holds(&self, build: BuildId) -> bool {
        self.path(build).exists()
    }

    /// Returns the builds that have ended here, in their order.
    fn list(&self) -> Result<Vec<BuildId>, ArchiveError> {
        let failed = |source| ArchiveError::Io { action: "list", path: self.dir.clone(), source };
        let mut builds = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".build")?.parse().ok());
            builds.extend(number.map(BuildId));
        }
        builds.sort();
        Ok(builds)
    }

    fn delete(&self, build: BuildId) -> Result<(), ArchiveError> {
        let path = self.path(build);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(ArchiveError::Io { action: "delete", path, source }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn path(&self, build: BuildId) -> PathBuf {
        self.dir.join(name(build))
    }
}

fn name(build: BuildId) -> PathBuf {
    PathBuf::from(format!("{build}.build"))
}

/// Returns an archived build as clients see it.
pub(crate) fn view(record: BuildRecord) -> BuildView {
    let (evaluated, failures) = (record.evaluated(), record.failures_named());
    BuildView {
        build: record.build,
        name: record.name,
        submitted_at: record.submitted_at,
        state: record.state,
        counts: record.counts,
        remaining_ms: None,
        outputs: record.outputs,
        failures,
        running: Vec::new(),
        waiting: Default::default(),
        evaluated,
    }
}
