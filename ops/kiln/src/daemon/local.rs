//! Objects of the farm's store in a directory of this machine: a Nix client of a socket reads files there and not from the daemon.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use kiln_wire::{DrvPath, PathInfo, StoreDir, StorePath};

use crate::client::Client;
use crate::realise;

/// A directory that stands for `/`.
pub(super) struct Local {
    root: PathBuf,
    /// Held while a path is brought, so that two connections do not bring it both.
    turns: Mutex<BTreeMap<StorePath, Arc<tokio::sync::Mutex<()>>>>,
}

impl Local {
    /// Takes the directory; it is made when something comes.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, turns: Mutex::default() }
    }

    /// Brings a path, unless it is there.
    pub(super) async fn bring(&self, client: &Client, store_dir: &StoreDir, info: &PathInfo) -> anyhow::Result<()> {
        let store = self.store(store_dir)?;
        let place = store.join(info.path.as_str());
        let is_there = || place.symlink_metadata().is_ok();
        if is_there() {
            return Ok(());
        }
        let turn = self.lock().entry(info.path.clone()).or_default().clone();
        let mine = turn.lock().await;
        let brought = if is_there() { Ok(()) } else { realise::fetch(client, info, &store).await };
        drop(mine);
        self.lock().remove(&info.path);
        // Another process may have been quicker.
        if is_there() { Ok(()) } else { brought }
    }

    /// Writes a derivation, unless it is there.
    pub(super) fn write(&self, store_dir: &StoreDir, path: &DrvPath, bytes: &[u8]) -> anyhow::Result<()> {
        let store = self.store(store_dir)?;
        let place = store.join(path.as_str());
        if place.symlink_metadata().is_ok() {
            return Ok(());
        }
        let written = tempfile::NamedTempFile::new_in(&store).and_then(|mut file| {
            std::io::Write::write_all(&mut file, bytes)?;
            // A name that came to be stands for good: it must never be that of an empty file.
            file.as_file().sync_all()?;
            Ok(file)
        });
        let file = written.with_context(|| format!("write into `{}`", store.display()))?;
        realise::make_read_only(file.path())?;
        file.persist(&place).map(drop).with_context(|| format!("make `{}`", place.display()))
    }

    fn store(&self, store_dir: &StoreDir) -> anyhow::Result<PathBuf> {
        let store = realise::store_below(&self.root, store_dir);
        std::fs::create_dir_all(&store).with_context(|| format!("create `{}`", store.display()))?;
        Ok(store)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<StorePath, Arc<tokio::sync::Mutex<()>>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
