//! Objects of the farm's store in a directory of this machine: a Nix client of a socket reads files there and not from the daemon.
//!
//! Invariant: what has a name there is on the disk. So many are written together as come together: the disk is asked to keep them once.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use kiln_wire::{DrvPath, PathInfo, StoreDir, StorePath};
use tempfile::NamedTempFile;
use tokio::task::JoinSet;

use crate::client::Client;
use crate::realise::{self, Staged};

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
    pub(super) async fn bring(&self, client: &Arc<Client>, store_dir: &StoreDir, infos: &[PathInfo]) -> anyhow::Result<()> {
        let store = self.store(store_dir)?;
        let is_lacking = |info: &&PathInfo| !is_there(&store.join(info.path.as_str()));
        let lacking: BTreeMap<&StorePath, &PathInfo> = infos.iter().filter(is_lacking).map(|info| (&info.path, info)).collect();
        let lacking: Vec<&PathInfo> = lacking.into_values().collect();
        for together in lacking.chunks(BROUGHT_TOGETHER) {
            // In the order of their names, as every connection takes them: none waits for one that waits for it.
            let mut turns = Vec::new();
            for info in together {
                let turn = self.lock().entry(info.path.clone()).or_default().clone();
                turns.push(turn.lock_owned().await);
            }
            let brought = bring_together(client, &store, together.iter().copied().filter(is_lacking).cloned().collect()).await;
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
            _ => sync(&store)?,
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

/// Fetches paths, several at a time, and gives them their names once all are on the disk.
async fn bring_together(client: &Arc<Client>, store: &Path, infos: Vec<PathInfo>) -> anyhow::Result<()> {
    let (mut waiting, mut fetching, mut staged) = (VecDeque::from(infos), JoinSet::new(), Vec::<Staged>::new());
    loop {
        while fetching.len() < FETCHED_AT_A_TIME
            && let Some(info) = waiting.pop_front()
        {
            let (client, store) = (client.clone(), store.to_path_buf());
            fetching.spawn(async move { realise::stage(&client, &info, &store).await });
        }
        match fetching.join_next().await {
            Some(fetched) => staged.push(fetched??),
            None => break,
        }
    }
    let store = store.to_path_buf();
    let placed = tokio::task::spawn_blocking(move || {
        if !staged.is_empty() {
            sync(&store)?;
        }
        staged.into_iter().try_for_each(Staged::place)
    });
    placed.await?
}

/// Returns once everything that was written to the disk below `store` is kept.
fn sync(store: &Path) -> anyhow::Result<()> {
    let synced = File::open(store).and_then(|dir| rustix::fs::syncfs(dir).map_err(std::io::Error::from));
    synced.with_context(|| format!("have the disk of `{}` keep what was written", store.display()))
}

fn is_there(place: &Path) -> bool {
    place.symlink_metadata().is_ok()
}

/// Characters of a name that Nix makes a directory of logs of.
const LOG_DIR_CHARS: usize = 2;
/// Paths that get their names together: few enough that who waits for one of them does not wait for long.
const BROUGHT_TOGETHER: usize = 256;
/// Paths that are fetched at a time: most are small, and a round trip each.
const FETCHED_AT_A_TIME: usize = 16;
