//! Objects of the farm's store in a directory of this machine: a Nix client of a socket reads files there and not from the daemon.
//!
//! Invariant: what has a name there is on the disk. So many are written together as come together: the disk is asked to keep them once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use kiln_wire::{DrvPath, PathInfo, StoreDir, StorePath};
use tempfile::NamedTempFile;

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

    /// Brings paths, those that are not there.
    pub(super) async fn bring(&self, client: &Client, store_dir: &StoreDir, infos: &[PathInfo]) -> anyhow::Result<()> {
        let store = self.store(store_dir)?;
        let is_lacking = |info: &&PathInfo| !is_there(&store.join(info.path.as_str()));
        let lacking: BTreeMap<&StorePath, &PathInfo> = infos.iter().filter(is_lacking).map(|info| (&info.path, info)).collect();
        let lacking: Vec<&PathInfo> = lacking.into_values().collect();
        for together in lacking.chunks(realise::BROUGHT_TOGETHER) {
            // In the order of their names, as every connection takes them: none waits for one that waits for it.
            let mut turns = Vec::new();
            for info in together {
                let turn = self.lock().entry(info.path.clone()).or_default().clone();
                turns.push(turn.lock_owned().await);
            }
            let brought = realise::bring(client, together.iter().copied().filter(is_lacking).cloned().collect(), &store).await;
            drop(turns);
            for info in together {
                self.lock().remove(&info.path);
            }
            brought?;
        }
        Ok(())
    }

    /// Writes derivations, those that are not there.
    pub(super) fn write(&self, store_dir: &StoreDir, files: &[(&DrvPath, &[u8])]) -> anyhow::Result<()> {
        let store = self.store(store_dir)?;
        let failed = || format!("write into `{}`", store.display());
        let mut written = Vec::new();
        for (path, bytes) in files {
            let place = store.join(path.as_str());
            if !is_there(&place) {
                let mut file = NamedTempFile::new_in(&store).with_context(failed)?;
                std::io::Write::write_all(&mut file, bytes).with_context(failed)?;
                realise::make_read_only(file.path())?;
                written.push((file, place));
            }
        }
        match written.as_slice() {
            [] => return Ok(()),
            [(file, _)] => file.as_file().sync_all().with_context(failed)?,
            _ => realise::sync(&store)?,
        }
        for (file, place) in written {
            file.persist(&place).map(drop).with_context(|| format!("make `{}`", place.display()))?;
        }
        Ok(())
    }

    /// Returns where a Nix client of this directory looks for a derivation's log.
    pub(super) fn log_place(&self, derivation: &DrvPath) -> PathBuf {
        let (first, rest) = derivation.as_str().split_at(LOG_DIR_CHARS);
        self.root.join("nix/var/log/nix/drvs").join(first).join(rest)
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

fn is_there(place: &Path) -> bool {
    place.symlink_metadata().is_ok()
}

/// Characters of a name that Nix makes a directory of logs of.
const LOG_DIR_CHARS: usize = 2;
