//! Brings outputs from the farm to a directory store on this machine: a whole closure, each path verified before it has its name.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use futures::{StreamExt, stream};
use kiln_store::{Spool, unpack};
use kiln_wire::client::{Request, Response};
use kiln_wire::{PathInfo, StoreDir, StorePath};

use crate::client::{AskError, Client, Leading, lost, unexpected};
use crate::progress::Progress;
use crate::words;

/// Returns where the store of `root` lies: `root` itself stands for `/`.
pub fn store_below(root: &Path, store_dir: &StoreDir) -> PathBuf {
    root.join(store_dir.as_str().trim_start_matches('/'))
}

/// Fetches the closure of `paths` into the store below `root`. Paths that are there already are left alone.
///
/// # Errors
/// Names the path that could not be fetched or verified; nothing half-written has a store path's name.
pub async fn realise(client: &Client, paths: Vec<StorePath>, root: &Path, store_dir: &StoreDir, progress: &Progress) -> anyhow::Result<()> {
    let store = store_below(root, store_dir);
    std::fs::create_dir_all(&store).with_context(|| format!("create `{}`", store.display()))?;
    let infos = client.all(&Request::PathInfos { paths, closure: true }, infos_of).await?;
    let lacking: Vec<PathInfo> = infos.into_iter().filter(|info| store.join(info.path.as_str()).symlink_metadata().is_err()).collect();
    let bytes: u64 = lacking.iter().map(|info| info.nar_size_bytes).sum();
    if !lacking.is_empty() {
        progress.say(&format!("fetching {} ({}) to `{}`", words::count(lacking.len() as u64, "path"), words::size(bytes), store.display()));
    }
    for together in lacking.chunks(BROUGHT_TOGETHER) {
        bring(client, together.to_vec(), &store).await?;
    }
    Ok(())
}

/// Fetches paths into the directory `store`, several at a time, and gives them their names once all are on the disk.
///
/// # Errors
/// Names the first that could not be fetched or verified; the others are there.
pub async fn bring(client: &Client, infos: Vec<PathInfo>, store: &Path) -> anyhow::Result<()> {
    let mut staging = stream::iter(infos).map(async |info| stage(client, &info, store).await).buffer_unordered(FETCHED_AT_A_TIME);
    let (mut staged, mut failed) = (Vec::new(), None);
    while let Some(fetched) = staging.next().await {
        match fetched {
            Ok(fetched) => staged.push(fetched),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    if !staged.is_empty() {
        let store = store.to_path_buf();
        let place = move || sync(&store).and_then(|()| staged.into_iter().try_for_each(Staged::place));
        tokio::task::spawn_blocking(place).await??;
    }
    failed.map_or(Ok(()), Err)
}

/// Returns once everything that was written to the disk below `store` is kept: a name that came to be stands for good.
///
/// # Errors
/// What the kernel says.
pub fn sync(store: &Path) -> anyhow::Result<()> {
    let synced = File::open(store).and_then(|dir| rustix::fs::syncfs(dir).map_err(std::io::Error::from));
    synced.with_context(|| format!("have the disk of `{}` keep what was written", store.display()))
}

/// Takes facts about paths from an answer.
pub fn infos_of(answer: Response) -> Option<Vec<PathInfo>> {
    match answer {
        Response::PathInfos(infos) => Some(infos),
        _ => None,
    }
}

/// A path that was fetched and lies beside its final place, which it does not have yet. Goes away unless it is placed.
struct Staged {
    path: StorePath,
    /// Where it lies.
    staged: PathBuf,
    store: PathBuf,
}

impl Staged {
    /// Gives it its name. Whoever was quicker made the same.
    ///
    /// # Errors
    /// What the kernel says of the rename.
    fn place(self) -> anyhow::Result<()> {
        let place = self.store.join(self.path.as_str());
        match std::fs::rename(&self.staged, &place) {
            Err(_) if place.symlink_metadata().is_ok() => Ok(()),
            renamed => renamed.with_context(|| format!("make `{}`", place.display())),
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let Ok(meta) = self.staged.symlink_metadata() else { return };
        let removed = if meta.is_dir() { remove_tree(&self.staged) } else { std::fs::remove_file(&self.staged) };
        if let Err(error) = removed {
            tracing::warn!(path = %self.staged.display(), %error, "remove what was not placed");
        }
    }
}

/// Removes a tree that may be read-only by now; its owner alone may write into it then.
fn remove_tree(tree: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut waiting = vec![tree.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))?;
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    std::fs::remove_dir_all(tree)
}

/// Fetches one path into the directory `store`, verified, without its name.
///
/// # Errors
/// Says what was wrong with it; nothing is left of it.
async fn stage(client: &Client, wanted: &PathInfo, store: &Path) -> anyhow::Result<Staged> {
    let fetching = async {
        let spool = fetch_blob(client, wanted, store).await?;
        let (store, info) = (store.to_path_buf(), wanted.clone());
        tokio::task::spawn_blocking(move || unpack_beside(&info, spool, store)).await?
    };
    fetching.await.with_context(|| format!("fetch `{}`", wanted.path))
}

/// Fetches the blob of a path; a large one to an unnamed file in `spool_dir`. Its bytes are verified.
///
/// # Errors
/// What became of the last try.
pub async fn fetch_blob(client: &Client, wanted: &PathInfo, spool_dir: &Path) -> anyhow::Result<Spool> {
    let mut tries = client.tries();
    loop {
        match try_blob(&tries.leader().await?, wanted, spool_dir).await {
            Ok(spool) => return Ok(spool),
            Err(error) => tries.failed(error).await?,
        }
    }
}

async fn try_blob(leader: &Leading, wanted: &PathInfo, spool_dir: &Path) -> Result<Spool, AskError> {
    let (_sender, mut answers) = leader.ask(&Request::FetchBlob { path: wanted.path.clone(), offset_bytes: 0 }).await?;
    let info = match answers.next().await? {
        // What it is compressed to may differ by now; what it holds may not.
        Some(Response::Blob(info)) if info.nar_hash == wanted.nar_hash => info,
        _ => return Err(unexpected("another kind")),
    };
    let mut spool = Spool::new(spool_dir);
    let sink = |bytes: &[u8]| std::io::Write::write_all(&mut spool, bytes);
    answers.receiver().recv_blob(info.blob.blake3, info.blob.size_bytes, 0, sink).await.map_err(lost)?;
    Ok(spool)
}

fn unpack_beside(info: &PathInfo, spool: Spool, store: PathBuf) -> anyhow::Result<Staged> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let own = format!(".{}.{}.{}", info.path.hash_part(), std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let staged = Staged { path: info.path.clone(), staged: store.join(own), store };
    unpack(info, spool.into_bytes().reader(), &staged.staged)?;
    make_read_only(&staged.staged)?;
    Ok(staged)
}

/// Makes a store object read-only, with a time of 1: that is what Nix checks and what keeps a stray program from changing it.
pub fn make_read_only(path: &Path) -> anyhow::Result<()> {
    let mut waiting = vec![path.to_path_buf()];
    let mut dirs = Vec::new();
    while let Some(path) = waiting.pop() {
        let meta = path.symlink_metadata()?;
        if meta.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                waiting.push(entry?.path());
            }
            dirs.push(path);
        } else if meta.is_file() {
            settle(&path, &meta)?;
        }
    }
    // A directory's time changes with its content, so directories come last, inner before outer.
    for dir in dirs.iter().rev() {
        settle(dir, &dir.symlink_metadata()?)?;
    }
    Ok(())
}

fn settle(path: &Path, meta: &std::fs::Metadata) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = if meta.permissions().mode() & 0o100 == 0 { 0o444 } else { 0o555 };
    let file = std::fs::File::open(path)?;
    file.set_times(std::fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1)))?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// Paths that get their names together: few enough that who waits for one of them does not wait for long.
pub const BROUGHT_TOGETHER: usize = 256;
/// Paths that are fetched at a time: most are small, and a round trip each.
const FETCHED_AT_A_TIME: usize = 16;
