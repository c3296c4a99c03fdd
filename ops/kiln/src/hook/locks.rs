//! Locks by which the hooks of one machine find each other. Each ends with its process, however that ends.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, ensure};

use crate::args::is_root;

/// Locks in one directory.
pub(super) struct Locks {
    dir: PathBuf,
    turns_max: usize,
    /// The turn that this process has.
    turn: Mutex<Option<File>>,
}

impl Locks {
    /// Returns where hooks of this user find each other, if nobody says where.
    pub(super) fn usual_dir() -> anyhow::Result<PathBuf> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR");
        Ok(match runtime {
            _ if is_root() => PathBuf::from("/run/kiln-hook"),
            Some(runtime) => PathBuf::from(runtime).join("kiln-hook"),
            None => PathBuf::from(format!("/tmp/kiln-hook-{}", own_uid()?)),
        })
    }

    /// Opens the directory, making it if needed.
    pub(super) fn open(dir: PathBuf, turns_max: usize) -> anyhow::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).with_context(|| format!("make `{}`", dir.display()))?;
        let owner = dir.symlink_metadata().with_context(|| format!("look at `{}`", dir.display()))?;
        ensure!(
            owner.is_dir() && owner.uid() == own_uid()?,
            "`{}` belongs to somebody else: name another place with --locks",
            dir.display()
        );
        Ok(Self { dir, turns_max, turn: Mutex::default() })
    }

    /// Takes one of the turns, for as long as this process lives; false if others have them all.
    pub(super) fn take_turn(&self) -> anyhow::Result<bool> {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if turn.is_some() {
            return Ok(true);
        }
        // Where to begin: processes that start together do not all try the same ones.
        let first = usize::try_from(std::process::id()).unwrap_or_default();
        for at in 0..self.turns_max {
            let file = self.file(&format!("turn-{}", (first + at) % self.turns_max))?;
            match file.try_lock() {
                Ok(()) => {
                    *turn = Some(file);
                    return Ok(true);
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("lock in `{}`", self.dir.display())),
            }
        }
        Ok(false)
    }

    /// Waits until no other hook uploads; others wait as long as the file is open.
    pub(super) async fn upload(&self) -> anyhow::Result<File> {
        let file = self.file("upload")?;
        let failed = || format!("lock in `{}`", self.dir.display());
        tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await.with_context(failed)?.with_context(failed)
    }

    /// Opens a file that stands for a lock.
    pub(super) fn file(&self, name: &str) -> anyhow::Result<File> {
        let path = self.dir.join(name);
        let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        opened.with_context(|| format!("open `{}`", path.display()))
    }
}

/// Returns who this is.
pub(super) fn own_uid() -> anyhow::Result<u32> {
    Ok(std::fs::metadata("/proc/self").context("look who this is")?.uid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_turns_as_there_may_be_and_they_come_back() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let open = || Locks::open(dir.path().join("locks"), 2).expect("locks");
        let (first, second, third) = (open(), open(), open());
        let take = |locks: &Locks| locks.take_turn().expect("locks work");
        assert_eq!([take(&first), take(&first), take(&second), take(&third)], [true, true, true, false]);
        drop(first);
        // A process that another test starts holds what this one has open, until it executes its program.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !take(&third) {
            assert!(std::time::Instant::now() < deadline, "the turn does not come back");
            std::thread::yield_now();
        }
    }
}
