//! Garbage and roots, as a Nix client asks about them: what a connection relies on, links on this machine, and what nobody keeps.
//!
//! A link is a pin of the farm under the name of this machine and the link; what a link does not lead to any more is unpinned before
//! roots are told and before anything is deleted, by the daemon of the machine that has the link.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use kiln_nix::daemon::{Collection, CollectionAction};
use kiln_wire::client::{Request, Response};
use kiln_wire::limits::HELD_MS;
use kiln_wire::{Collect, GarbageAnswer, GarbageRequest, StoreDir, StorePath};
use tokio::task::JoinHandle;

use super::store::Store;
use crate::client::{Client, unexpected};
use crate::gc;

/// What a connection relies on, for as long as it lasts.
pub(super) struct Held {
    client: Arc<Client>,
    holders: Arc<Mutex<Vec<Holder>>>,
    renewal: Option<JoinHandle<()>>,
}

/// What is held under one number: few paths, for all are said again with each.
#[derive(Clone)]
struct Holder {
    number: u64,
    paths: Vec<StorePath>,
}

impl Held {
    pub(super) fn new(client: &Arc<Client>) -> Self {
        Self { client: client.clone(), holders: Arc::default(), renewal: None }
    }

    /// Holds a path, which need not be there yet.
    pub(super) async fn hold(&mut self, path: StorePath) -> anyhow::Result<()> {
        let changed = {
            let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
            if holders.iter().any(|holder| holder.paths.contains(&path)) {
                return Ok(());
            }
            if holders.last().is_none_or(|holder| holder.paths.len() >= HOLDER_PATHS_MAX) {
                holders.push(Holder { number: draw(), paths: Vec::new() });
            }
            let last = holders.last_mut().context("there is one")?;
            last.paths.push(path);
            last.clone()
        };
        say(&self.client, changed).await?;
        if self.renewal.is_none() {
            let (client, holders) = (self.client.clone(), self.holders.clone());
            self.renewal = Some(tokio::spawn(async move {
                loop {
                    tokio::time::sleep(RENEWAL).await;
                    let all = holders.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    for holder in all {
                        if let Err(error) = say(&client, holder).await {
                            tracing::warn!(error = %format_args!("{error:#}"), "hold what a client relies on; tried again later");
                        }
                    }
                }
            }));
        }
        Ok(())
    }

    /// Lets everything go: the client is gone.
    pub(super) async fn release(&mut self) {
        if let Some(renewal) = self.renewal.take() {
            renewal.abort();
        }
        let all = std::mem::take(&mut *self.holders.lock().unwrap_or_else(PoisonError::into_inner));
        for Holder { number, .. } in all {
            if let Err(error) = say(&self.client, Holder { number, paths: Vec::new() }).await {
                tracing::debug!(error = %format_args!("{error:#}"), "let go of what a client held; that ends by itself");
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(renewal) = &self.renewal {
            renewal.abort();
        }
    }
}

async fn say(client: &Client, Holder { number, paths }: Holder) -> anyhow::Result<()> {
    client.one(&Request::Garbage(GarbageRequest::Hold { holder: number, paths })).await.map(drop)
}

/// Keeps what a link on this machine leads to, as long as it does.
pub(super) async fn add_link(store: &Store, link: &str) -> anyhow::Result<()> {
    ensure!(link.starts_with('/'), "keep what `{link}` leads to: the name of a link is absolute");
    let path =
        target(store.store_dir(), link).with_context(|| format!("keep what `{link}` leads to: it is no link into the store here"))?;
    let name = format!("{}{link}", prefix());
    pin(store, name.clone(), vec![path.clone()]).await?;
    let old: Vec<StorePath> = pins(store).await?.into_iter().filter(|(pin, _)| *pin == name).flat_map(|(_, paths)| paths).collect();
    unpin_stale(store, name, old.into_iter().filter(|other| *other != path).collect()).await;
    Ok(())
}

/// Keeps a path under a name that no link stands behind.
pub(super) async fn add_permanent(store: &Store, path: StorePath, name: &str) -> anyhow::Result<()> {
    pin(store, name.to_owned(), vec![path]).await
}

/// Returns what is kept by itself, and under which names.
pub(super) async fn find(store: &Store) -> anyhow::Result<Vec<(String, StorePath)>> {
    tidy(store).await?;
    let request = Request::Garbage(GarbageRequest::Roots);
    let found = store.client().all(&request, |answer| match answer {
        Response::Garbage(GarbageAnswer::Roots(roots)) => Some(roots),
        _ => None,
    });
    let prefix = prefix();
    let shown = |(name, path): (String, StorePath)| (name.strip_prefix(&prefix).map_or(name.clone(), str::to_owned), path);
    Ok(found.await?.into_iter().map(shown).collect())
}

/// Lists or deletes garbage. Returns the paths, and the bytes that are free.
pub(super) async fn collect(store: &Store, wanted: Collection, trusted: bool) -> anyhow::Result<(Vec<StorePath>, u64)> {
    let deletes = matches!(wanted.action, CollectionAction::DeleteDead | CollectionAction::DeleteSpecific);
    ensure!(!deletes || trusted, "only a trusted client may delete garbage");
    if wanted.ignores_liveness {
        bail!("collect garbage: the farm deletes nothing that something else needs; leave out --ignore-liveness");
    }
    tidy(store).await?;
    let only = (wanted.action == CollectionAction::DeleteSpecific).then(|| wanted.paths.iter().cloned().collect());
    let order = Collect {
        dry_run: !deletes,
        live: wanted.action == CollectionAction::ReturnLive,
        only,
        bytes_max: Some(wanted.bytes_max).filter(|most| deletes && *most != u64::MAX),
        grace_seconds: None,
    };
    let mut told = Vec::new();
    let collected = gc::collect(store.client(), order, |paths| told.extend(paths)).await?;
    if deletes {
        store.forget_derivations();
    }
    if let Some(alive) = wanted.paths.iter().find(|path| wanted.action == CollectionAction::DeleteSpecific && !told.contains(path))
        && store.is_valid(alive).await?
    {
        let alive = store.store_dir().join(alive);
        bail!("cannot delete path `{alive}` since it is still alive; `kiln gc --why {alive}` says what keeps it");
    }
    Ok((told, if deletes { collected.bytes } else { 0 }))
}

/// Returns what a request about the whole store lists.
pub(super) async fn list(store: &Store, request: GarbageRequest) -> anyhow::Result<std::collections::BTreeSet<StorePath>> {
    let request = Request::Garbage(request);
    let found = store.client().all(&request, |answer| match answer {
        Response::Garbage(GarbageAnswer::Paths(paths)) => Some(paths),
        _ => None,
    });
    Ok(found.await?.into_iter().collect())
}

/// Unpins what links of this machine do not lead to any more.
async fn tidy(store: &Store) -> anyhow::Result<()> {
    let prefix = prefix();
    for (name, paths) in pins(store).await? {
        let Some(link) = name.strip_prefix(&prefix) else { continue };
        let stale: Vec<StorePath> = paths.into_iter().filter(|path| is_stale(store.store_dir(), link, path)).collect();
        unpin_stale(store, name, stale).await;
    }
    Ok(())
}

async fn pins(store: &Store) -> anyhow::Result<Vec<(String, Vec<StorePath>)>> {
    match store.client().one(&Request::Garbage(GarbageRequest::Pins)).await? {
        Response::Garbage(GarbageAnswer::Pins(pins)) => Ok(pins),
        _ => Err(unexpected("another kind").into_error()),
    }
}

async fn pin(store: &Store, name: String, paths: Vec<StorePath>) -> anyhow::Result<()> {
    store.client().one(&Request::Garbage(GarbageRequest::Pin { name, paths })).await.map(drop)
}

/// Ends that a link's pin has these; none changes nothing. What a daemon with another certificate pinned stays.
async fn unpin_stale(store: &Store, name: String, paths: Vec<StorePath>) {
    if paths.is_empty() {
        return;
    }
    if let Err(error) = store.client().one(&Request::Garbage(GarbageRequest::Unpin { name, paths })).await {
        tracing::warn!(error = %format_args!("{error:#}"), "unpin what a link does not lead to any more");
    }
}

/// Returns whether a link is known not to lead to a path any more. What cannot be looked at may be there still.
fn is_stale(store_dir: &StoreDir, link: &str, path: &StorePath) -> bool {
    match std::fs::read_link(Path::new(link)) {
        Ok(_) => target(store_dir, link).as_ref() != Some(path),
        // As for Nix a link that is gone is no root, whatever of its directories is gone with it: `nix-build` makes one in a directory that it
        // removes.
        Err(error) => matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory),
    }
}

/// Returns the store path that a link leads to.
fn target(store_dir: &StoreDir, link: &str) -> Option<StorePath> {
    let leads_to = std::fs::read_link(Path::new(link)).ok()?;
    let below = leads_to.to_str()?.strip_prefix(store_dir.as_str())?.strip_prefix('/')?;
    StorePath::parse(below.split('/').next()?).ok()
}

/// What the pins for links of this machine begin with, as far as this daemon's user sees them. Machines may have one name.
fn prefix() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let user = std::fs::metadata("/proc/self").map(|own| own.uid()).unwrap_or_default();
    format!("link {} {} {user}:", host.trim(), machine.trim())
}

fn draw() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library's hasher is seeded from the system's randomness.
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish()
}

/// Paths under one number.
const HOLDER_PATHS_MAX: usize = 64;
/// Between two times that it is said what is held: several fit in the time that it counts for.
const RENEWAL: Duration = Duration::from_millis(HELD_MS / 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_counts_as_long_as_it_leads_into_the_store() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let base = "0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar";
        for (leads_to, expected) in [
            (format!("/nix/store/{base}"), Some(base)),
            (format!("/nix/store/{base}/bin/x"), Some(base)),
            (format!("/gnu/store/{base}"), None),
            ("/nix/store".to_owned(), None),
            ("/nix/store/bar".to_owned(), None),
        ] {
            let link = dir.path().join("link");
            std::os::unix::fs::symlink(&leads_to, &link).expect("a link");
            let found = target(&StoreDir::default(), link.to_str().expect("text"));
            assert_eq!(found.as_ref().map(StorePath::as_str), expected, "{leads_to}");
            std::fs::remove_file(&link).expect("removes");
        }
        assert_eq!(target(&StoreDir::default(), "/does/not/exist"), None);
    }

    #[test]
    fn a_link_is_stale_only_if_that_can_be_seen() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| StorePath::parse(&format!("0hm2f1psjpcwg8fijsmr4wwxrx59s092-{name}")).expect("a path");
        let at = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
        std::os::unix::fs::symlink(format!("/nix/store/{}", path("bar")), at("link")).expect("a link");
        std::fs::write(at("file"), "").expect("a file");
        for (link, expected) in [("link", false), ("gone", true), ("away/link", true), ("file/link", true), ("file", false)] {
            assert_eq!(is_stale(&StoreDir::default(), &at(link), &path("bar")), expected, "{link}");
        }
        assert!(is_stale(&StoreDir::default(), &at("link"), &path("other")));
    }
}
