//! The store cache: store paths that lie unpacked below `<dir>/store`, ready to be shown to builds.
//!
//! A path is written aside and renamed into place, so that a name in the cache is always whole. What is there is known from memory:
//! a build whose inputs are all present costs no I/O. Paths in use are pinned; the least recently used of the others go when the
//! budget is passed. Does not fetch (see [`crate::inputs`]) and does not pack (see [`crate::outputs`]).

mod ledger;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_wire::{PathInfo, Sha256Hash, StorePath};
use rustix::fs::CWD;

use crate::trash::{Trash, TrashError, c_name, move_tree, names, open_dir, owned_dir, private_dir};
use ledger::{Ledger, LedgerError, Line, boot_id};

/// The store cache of one worker. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cache {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    fd: OwnedFd,
    incoming_dir: PathBuf,
    incoming: OwnedFd,
    incoming_next: AtomicU64,
    trash: Trash,
    bytes_max: u64,
    index: Mutex<Index>,
}

#[derive(Debug)]
struct Index {
    entries: BTreeMap<StorePath, Entry>,
    /// Unpinned entries by last use: the first is removed first.
    idle: BTreeMap<u64, StorePath>,
    bytes: u64,
    clock: u64,
    ledger: Ledger,
}

#[derive(Debug)]
struct Entry {
    line: Line,
    used: u64,
    pins: u32,
}

/// Store paths that stay in the cache until this is dropped.
#[derive(Debug)]
pub struct Pin {
    cache: Cache,
    paths: Vec<StorePath>,
}

/// A cache that cannot be opened, or a path that cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A directory of the cache cannot be used.
    #[error("open the store cache's directory `{path}`")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        err: std::io::Error,
    },
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// What is not in the ledger cannot be removed.
    #[error(transparent)]
    Trash(#[from] TrashError),
    /// The path cannot be put in place.
    #[error("keep `{path}` in the store cache")]
    Keep {
        /// Which path.
        path: StorePath,
        /// Why not.
        #[source]
        err: std::io::Error,
    },
    /// Running builds use other content of the same path.
    #[error("`{path}` is in use with other content (NAR hash {present}, wanted {wanted})")]
    InUse {
        /// Which path.
        path: StorePath,
        /// What is there.
        present: Sha256Hash,
        /// What should be.
        wanted: Sha256Hash,
    },
}

/// What the cache has of a list of paths.
#[derive(Debug)]
pub struct Found {
    /// Keeps those that are present.
    pub pin: Pin,
    /// Those that must be fetched.
    pub missing: Vec<PathInfo>,
    /// Those that must be hashed before they are used, because the machine may have died since they were written. Not pinned.
    pub unproven: Vec<PathInfo>,
}

impl Cache {
    /// Opens the cache below `dir`: what the ledger does not know, and what was being written, goes to the trash.
    ///
    /// # Errors
    /// [`CacheError`] names the directory or file.
    pub fn open(dir: &Path, bytes_max: u64, trash: Trash) -> Result<Self, CacheError> {
        // Builds' first processes pass through, so that its mode is not only the worker's affair.
        let (store_dir, fd) = open_own(&dir.join("store"), |path| owned_dir(path).map(|_| ()))?;
        let (incoming_dir, incoming) = open_own(&dir.join("incoming"), private_dir)?;
        let state_dir = dir.join("state");
        private_dir(&state_dir).map_err(|err| CacheError::Open { path: state_dir.clone(), err })?;
        let listed = |path: &Path, err: rustix::io::Errno| CacheError::Open { path: path.into(), err: err.into() };
        for name in names(incoming.as_fd(), usize::MAX).map_err(|err| listed(&incoming_dir, err))? {
            trash.discard(incoming.as_fd(), &name)?;
        }
        let present = names(fd.as_fd(), usize::MAX).map_err(|err| listed(&store_dir, err))?;
        let (paths, strange): (Vec<_>, Vec<_>) =
            present.into_iter().map(|name| (as_path(&name), name)).partition(|(path, _)| path.is_some());
        let mut unknown: BTreeMap<StorePath, CString> = paths.into_iter().filter_map(|(path, name)| Some((path?, name))).collect();
        let (ledger, lines) = Ledger::open(&state_dir.join("store.ledger"), &boot_id(), |path| unknown.contains_key(path))?;
        let mut index = Index { entries: BTreeMap::new(), idle: BTreeMap::new(), bytes: 0, clock: 0, ledger };
        for (path, line) in lines {
            unknown.remove(&path);
            index.insert(path, line);
        }
        for name in unknown.into_values().chain(strange.into_iter().map(|(_, name)| name)) {
            trash.discard(fd.as_fd(), &name)?;
        }
        let incoming_next = AtomicU64::new(0);
        let index = Mutex::new(index);
        let shared = Shared { dir: store_dir, fd, incoming_dir, incoming, incoming_next, trash, bytes_max, index };
        let cache = Self { shared: Arc::new(shared) };
        cache.collect(&mut cache.index());
        Ok(cache)
    }

    /// Returns where `path` lies, or would lie.
    pub fn host_path(&self, path: &StorePath) -> PathBuf {
        self.shared.dir.join(path.as_str())
    }

    /// Returns a path that nothing uses, where something can be written before [`Pin::keep`] moves it into place.
    pub fn incoming(&self) -> PathBuf {
        let number = self.shared.incoming_next.fetch_add(1, Ordering::Relaxed);
        self.shared.incoming_dir.join(number.to_string())
    }

    /// Throws away what was being written at a path from [`Cache::incoming`].
    pub fn discard_incoming(&self, path: &Path) {
        let name = path.file_name().and_then(|name| c_name(Path::new(name)).ok());
        if let Some(name) = name {
            self.trash(self.shared.incoming.as_fd(), &name);
        }
    }

    /// Pins those of `wanted` that are present with the wanted content, and says what is missing.
    pub fn pin(&self, wanted: &[PathInfo]) -> Found {
        let mut found = Found { pin: self.empty_pin(), missing: Vec::new(), unproven: Vec::new() };
        let mut index = self.index();
        for info in wanted {
            match index.entries.get(&info.path).map(|entry| entry.line) {
                Some(line) if line.nar_hash != info.nar_hash => found.missing.push(info.clone()),
                Some(line) if !line.proven => found.unproven.push(info.clone()),
                Some(_) => {
                    index.pin(&info.path);
                    found.pin.paths.push(info.path.clone());
                }
                None => found.missing.push(info.clone()),
            }
        }
        found
    }

    /// Returns a pin that holds nothing yet.
    pub fn empty_pin(&self) -> Pin {
        Pin { cache: self.clone(), paths: Vec::new() }
    }

    /// Notes that `path` was hashed and holds what the ledger says.
    pub fn prove(&self, path: &StorePath) {
        let mut index = self.index();
        let Some(entry) = index.entries.get_mut(path) else { return };
        entry.line.proven = true;
        let line = entry.line;
        index.note(path, &line);
    }

    /// Throws away a path that does not hold what the ledger says, unless a build uses it.
    pub fn reject(&self, path: &StorePath) {
        let mut index = self.index();
        if index.entries.get(path).is_some_and(|entry| entry.pins == 0) {
            self.remove(&mut index, path);
        }
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // No operation on the index leaves it half changed, so that another thread's panic does not spoil it.
        self.shared.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the least recently used unpinned paths until the budget holds.
    fn collect(&self, index: &mut Index) {
        while index.bytes > self.shared.bytes_max {
            let Some(path) = index.idle.first_key_value().map(|(_, path)| path.clone()) else { return };
            self.remove(index, &path);
        }
    }

    fn remove(&self, index: &mut Index, path: &StorePath) {
        index.forget(path);
        self.trash(self.shared.fd.as_fd(), &entry_name(path));
    }

    fn trash(&self, dir: BorrowedFd<'_>, name: &CStr) {
        if let Err(err) = self.shared.trash.discard(dir, name) {
            tracing::warn!(name = %name.to_string_lossy(), %err, "throw away a path of the store cache");
        }
    }
}

impl Pin {
    /// Moves the object `name` in `dir` into the cache as `info.path`, and pins it. If the same content is there already, that is
    /// pinned and the new copy is thrown away.
    ///
    /// # Errors
    /// [`CacheError::InUse`] if builds use other content of the path, [`CacheError::Keep`] if the kernel refuses.
    pub fn keep(&mut self, info: &PathInfo, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), CacheError> {
        let cache = self.cache.clone();
        let mut index = cache.index();
        let path = &info.path;
        match index.entries.get(path) {
            Some(entry) if entry.line.nar_hash == info.nar_hash && entry.line.proven => cache.trash(dir, name),
            Some(entry) if entry.pins > 0 => {
                return Err(CacheError::InUse { path: path.clone(), present: entry.line.nar_hash, wanted: info.nar_hash });
            }
            Some(_) => {
                cache.remove(&mut index, path);
                cache.place(&mut index, info, dir, name)?;
            }
            None => cache.place(&mut index, info, dir, name)?,
        }
        index.pin(path);
        self.paths.push(path.clone());
        cache.collect(&mut index);
        Ok(())
    }

    /// Does [`Pin::keep`] with something that was written at a path from [`Cache::incoming`].
    ///
    /// # Errors
    /// As [`Pin::keep`].
    pub fn keep_incoming(&mut self, info: &PathInfo, written: &Path) -> Result<(), CacheError> {
        let name = c_name(Path::new(written.file_name().unwrap_or_default()));
        let name = name.map_err(|err| CacheError::Keep { path: info.path.clone(), err })?;
        let cache = self.cache.clone();
        self.keep(info, cache.shared.incoming.as_fd(), &name)
    }

    /// Takes over everything that `other` holds.
    pub fn join(&mut self, mut other: Pin) {
        self.paths.append(&mut other.paths);
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut index = self.cache.index();
        self.paths.iter().for_each(|path| index.unpin(path));
        self.cache.collect(&mut index);
    }
}

impl Cache {
    fn place(&self, index: &mut Index, info: &PathInfo, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), CacheError> {
        move_tree(dir, name, self.shared.fd.as_fd(), &entry_name(&info.path))
            .map_err(|err| CacheError::Keep { path: info.path.clone(), err: err.into() })?;
        let line = Line { nar_hash: info.nar_hash, nar_size_bytes: info.nar_size_bytes, proven: true };
        index.note(&info.path, &line);
        index.insert(info.path.clone(), line);
        Ok(())
    }
}

impl Index {
    /// Adds an unpinned entry that is not there yet.
    fn insert(&mut self, path: StorePath, line: Line) {
        self.clock += 1;
        self.bytes += line.nar_size_bytes;
        self.idle.insert(self.clock, path.clone());
        self.entries.insert(path, Entry { line, used: self.clock, pins: 0 });
    }

    fn forget(&mut self, path: &StorePath) {
        if let Some(entry) = self.entries.remove(path) {
            self.idle.remove(&entry.used);
            self.bytes -= entry.line.nar_size_bytes;
        }
    }

    fn pin(&mut self, path: &StorePath) {
        let entry = self.entries.get_mut(path).expect("only present entries are pinned");
        self.idle.remove(&entry.used);
        entry.pins += 1;
    }

    fn unpin(&mut self, path: &StorePath) {
        let entry = self.entries.get_mut(path).expect("pinned entries are not removed");
        entry.pins -= 1;
        if entry.pins == 0 {
            self.clock += 1;
            entry.used = self.clock;
            self.idle.insert(self.clock, path.clone());
        }
    }

    /// A path whose line is lost is fetched again after a restart; nothing worse happens.
    fn note(&mut self, path: &StorePath, line: &Line) {
        if let Err(err) = self.ledger.append(path, line) {
            tracing::warn!(%path, %err, "write the store cache's ledger");
        }
    }
}

fn open_own(path: &Path, make: impl Fn(&Path) -> std::io::Result<()>) -> Result<(PathBuf, OwnedFd), CacheError> {
    let error = |err| CacheError::Open { path: path.into(), err };
    make(path).map_err(error)?;
    let fd = open_dir(CWD, &c_name(path).map_err(error)?).map_err(|err| error(err.into()))?;
    Ok((path.into(), fd))
}

fn as_path(name: &CStr) -> Option<StorePath> {
    StorePath::parse(name.to_str().ok()?).ok()
}

fn entry_name(path: &StorePath) -> CString {
    CString::new(path.as_str()).expect("a store path holds no NUL")
}

#[cfg(test)]
mod tests;
