//! The store cache: store paths that lie unpacked below `<dir>/store`, ready to be shown to builds.
//!
//! A path is written aside and renamed into place, so that a name in the cache is always whole. What is there is known from memory:
//! a build whose inputs are all present costs no I/O. Paths in use are pinned; the least recently used of the others go when the
//! budget is passed. Files that several paths have are one file on disk and counted once (see [`links`]). Does not fetch (see [`crate::inputs`]) and does not pack (see [`crate::outputs`]).

mod index;
mod ledger;
mod links;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_wire::{PathInfo, Sha256Hash, StorePath};
use rustix::fs::CWD;

use crate::trash::{Trash, TrashError, c_name, move_tree, names, open_dir, owned_dir, private_dir};
use index::Index;
use ledger::{Ledger, LedgerError, Line, boot_id};
use links::{Links, Shared as SharedFiles, Swept};

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
    links: Links,
    /// Whether new trees are shared.
    shares: bool,
    bytes_max: u64,
    index: Mutex<Index>,
    /// What [`Cache::make_room`] removed is on its way out.
    making_room: AtomicBool,
}

/// What a cache may take, and how it takes it.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Bytes of NAR, what paths share counted once.
    pub bytes_max: u64,
    /// Whether files with the same bytes become one.
    pub share_files: bool,
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

/// What removed paths shared is looked at once it is more than one part in so many of the budget: a look costs some microseconds for each
/// shared file, and until then the budget may be passed by so much.
const UNSWEPT_SHARE: u64 = 32;

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
    pub fn open(dir: &Path, budget: Budget, trash: Trash) -> Result<Self, CacheError> {
        // Builds' first processes pass through, so that its mode is not only the worker's affair.
        let (store_dir, fd) = open_own(&dir.join("store"), |path| owned_dir(path).map(|_| ()))?;
        let (incoming_dir, incoming) = open_own(&dir.join("incoming"), private_dir)?;
        let (links_dir, links_fd) = open_own(&dir.join("links"), private_dir)?;
        let (links, swept) = Links::open(links_fd).map_err(|err| CacheError::Open { path: links_dir, err })?;
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
        let mut index = Index::new(ledger, swept.kept_bytes);
        for (path, line) in lines {
            unknown.remove(&path);
            index.insert(path, line);
        }
        for name in unknown.into_values().chain(strange.into_iter().map(|(_, name)| name)) {
            trash.discard(fd.as_fd(), &name)?;
        }
        let incoming_next = AtomicU64::new(0);
        let index = Mutex::new(index);
        let Budget { bytes_max, share_files: shares } = budget;
        let making_room = AtomicBool::new(false);
        let shared =
            Shared { dir: store_dir, fd, incoming_dir, incoming, incoming_next, trash, links, shares, bytes_max, index, making_room };
        let cache = Self { shared: Arc::new(shared) };
        // What the trash still has was counted above.
        cache.sweep_links(0);
        cache.collect(&mut cache.index());
        Ok(cache)
    }

    /// Returns the bytes that the budget counts.
    pub fn bytes(&self) -> u64 {
        self.index().bytes()
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

    /// Gives `bytes` back to a disk that others have filled, by removing the least recently used unpinned paths. Does nothing while what it
    /// removed the last time is still on its way out. Blocks: each path is renamed.
    pub fn make_room(&self, bytes: u64) {
        if self.shared.making_room.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut index = self.index();
        let before = index.bytes();
        self.shrink(&mut index, before.saturating_sub(bytes));
        let removed_bytes = before - index.bytes();
        if index.wants_sweep(0) {
            self.sweep_links(index.leaving_bytes());
        }
        drop(index);
        if removed_bytes > 0 {
            tracing::info!(removed_bytes, wanted_bytes = bytes, "the disk is short: what the store cache used longest ago goes");
        }
        let shared = Arc::downgrade(&self.shared);
        self.shared.trash.then(move || {
            if let Some(shared) = shared.upgrade() {
                shared.making_room.store(false, Ordering::Relaxed);
            }
        });
    }

    /// Removes the least recently used unpinned paths until the others take no more than `bytes_max`.
    fn shrink(&self, index: &mut Index, bytes_max: u64) {
        while index.bytes() > bytes_max {
            let Some(path) = index.idle.first_key_value().map(|(_, path)| path.clone()) else { break };
            self.remove(index, &path);
        }
    }

    /// Holds the budget, as far as what is pinned lets it.
    fn collect(&self, index: &mut Index) {
        self.shrink(index, self.shared.bytes_max);
        if index.wants_sweep(self.shared.bytes_max / UNSWEPT_SHARE) {
            self.sweep_links(index.leaving_bytes());
        }
    }

    /// Has the shared files that no path has any more removed, in the background, once the paths themselves are.
    fn sweep_links(&self, looked_at: u64) {
        let shared = Arc::downgrade(&self.shared);
        self.shared.trash.then(move || {
            let Some(shared) = shared.upgrade() else { return };
            let cache = Self { shared };
            let swept = cache.shared.links.sweep().unwrap_or_else(|err| {
                tracing::warn!(%err, "look for shared files that no path of the store cache has");
                Swept::default()
            });
            let mut index = cache.index();
            index.swept(swept, looked_at);
            cache.collect(&mut index);
        });
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
    /// Moves the object `name` in `dir`, made canonical, into the cache as `info.path`, and pins it. If the same content is there already,
    /// that is pinned and the new copy is thrown away. Blocks: files of the object are read and shared.
    ///
    /// # Errors
    /// [`CacheError::InUse`] if builds use other content of the path, [`CacheError::Keep`] if the kernel refuses.
    pub fn keep(&mut self, info: &PathInfo, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), CacheError> {
        let incoming = self.cache.incoming();
        let here = c_name(Path::new(incoming.file_name().unwrap_or_default()));
        let keep = |err| CacheError::Keep { path: info.path.clone(), err };
        let here = here.map_err(keep)?;
        move_tree(dir, name, self.cache.shared.incoming.as_fd(), &here).map_err(|err| keep(err.into()))?;
        self.keep_here(info, &here).inspect_err(|_| self.cache.discard_incoming(&incoming))
    }

    /// Does [`Pin::keep`] with something that was written at a path from [`Cache::incoming`].
    ///
    /// # Errors
    /// As [`Pin::keep`].
    pub fn keep_incoming(&mut self, info: &PathInfo, written: &Path) -> Result<(), CacheError> {
        let name = c_name(Path::new(written.file_name().unwrap_or_default()));
        let name = name.map_err(|err| CacheError::Keep { path: info.path.clone(), err })?;
        self.keep_here(info, &name)
    }

    fn keep_here(&mut self, info: &PathInfo, name: &CStr) -> Result<(), CacheError> {
        let cache = self.cache.clone();
        let incoming = cache.shared.incoming.as_fd();
        let share = cache.shared.shares && !cache.index().has(info);
        let files = if share { cache.shared.links.share(incoming, name) } else { SharedFiles::default() };
        let mut index = cache.index();
        index.shared(files);
        let path = &info.path;
        let placed = match index.entries.get(path) {
            Some(_) if index.has(info) => {
                index.unshared(files);
                cache.trash(incoming, name);
                Ok(())
            }
            Some(entry) if entry.pins > 0 => {
                Err(CacheError::InUse { path: path.clone(), present: entry.line.nar_hash, wanted: info.nar_hash })
            }
            Some(_) => {
                cache.remove(&mut index, path);
                cache.place(&mut index, info, name, files)
            }
            None => cache.place(&mut index, info, name, files),
        };
        placed.inspect_err(|_| index.unshared(files))?;
        index.pin(path);
        self.paths.push(path.clone());
        cache.collect(&mut index);
        Ok(())
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
    fn place(&self, index: &mut Index, info: &PathInfo, name: &CStr, files: SharedFiles) -> Result<(), CacheError> {
        move_tree(self.shared.incoming.as_fd(), name, self.shared.fd.as_fd(), &entry_name(&info.path))
            .map_err(|err| CacheError::Keep { path: info.path.clone(), err: err.into() })?;
        let PathInfo { nar_hash, nar_size_bytes, .. } = *info;
        let line = Line { nar_hash, nar_size_bytes, shared_bytes: files.bytes, proven: true };
        index.note(&info.path, &line);
        index.insert(info.path.clone(), line);
        Ok(())
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
