//! Outputs come from the farm into the store of this machine's Nix, with all that they refer to and it lacks.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use kiln_nix::NarInfo;
use kiln_nix::daemon::{Facts, ValidPath};
use kiln_store::NarReader;
use kiln_wire::client::{Request, Response};
use kiln_wire::limits::PATHS_PER_REQUEST_MAX;
use kiln_wire::{PathInfo, StoreDir, StorePath};

use super::local::LocalNix;
use super::nixes::{Nixes, Ready, Used};
use crate::client::Client;
use crate::realise;

/// What is to be brought.
pub(super) struct Wanted {
    /// The outputs that Nix wants.
    pub(super) paths: Vec<StorePath>,
    /// All outputs of the derivation: Nix has them locked.
    pub(super) locked: BTreeSet<StorePath>,
    /// The store, as Nix names it.
    pub(super) store: String,
}

/// Brings outputs. Returns the local Nix that has taken them.
pub(super) async fn bring(client: &Client, store_dir: &StoreDir, nixes: &Nixes, ready: Ready, wanted: Wanted) -> anyhow::Result<Used> {
    let request = Request::PathInfos { paths: wanted.paths.clone(), closure: true };
    let infos = client.all(&request, realise::infos_of).await?;
    let infos: BTreeMap<StorePath, PathInfo> = infos.into_iter().map(|info| (info.path.clone(), info)).collect();
    for path in &wanted.paths {
        ensure!(infos.contains_key(path), "the farm built `{path}` and does not have it: build again");
    }
    let bringing = Bringing { client, store_dir, wanted: &wanted, infos: &infos };
    let own = match ready {
        Ready::Own(own) => own,
        Ready::Kept(kept) => {
            match kept.when_free().await {
                Some((place, nix)) => match bringing.to(nix, kept.told()).await {
                    Ok(nix) => {
                        place.give_back(nix);
                        return Ok(Used::Kept);
                    }
                    // One that was started for this alone says whether it is to blame.
                    Err(error) => tracing::debug!(%error, "the local Nix that was kept"),
                },
                None => tracing::debug!("the local Nix that was kept has other work"),
            }
            nixes.start(&wanted.store, &wanted.locked)?
        }
    };
    bringing.to(own, &BTreeSet::new()).await.map(Used::Own)
}

struct Bringing<'a> {
    client: &'a Client,
    store_dir: &'a StoreDir,
    wanted: &'a Wanted,
    infos: &'a BTreeMap<StorePath, PathInfo>,
}

impl Bringing<'_> {
    /// Gives a local Nix what it lacks, which was told of these locks beforehand.
    async fn to(&self, mut local: LocalNix, told: &BTreeSet<StorePath>) -> anyhow::Result<LocalNix> {
        let mut infos = self.infos.clone();
        let asked: BTreeSet<StorePath> = infos.keys().cloned().collect();
        let (local, valid) = blocking(move || {
            local.greet()?;
            let valid = local.valid(&asked)?;
            Ok((local, valid))
        })
        .await?;
        let wanted = &self.wanted.paths;
        ensure!(
            wanted.is_empty() || wanted.iter().any(|path| !valid.contains(path)),
            "its outputs are there already, and the farm does not build them again to compare: --check and --repair want --max-jobs 1"
        );
        infos.retain(|path, _| !valid.contains(path));
        // It would not lock these, and it may be that nobody has.
        let unlocked = infos.keys().find(|path| told.contains(*path) && !self.wanted.locked.contains(*path));
        ensure!(unlocked.is_none(), "`{}` is locked by nobody", unlocked.map(StorePath::as_str).unwrap_or_default());
        let stated = stated(self.client, self.store_dir, &infos).await?;
        let handle = tokio::runtime::Handle::current();
        let (client, mut local) = (self.client.clone(), local);
        blocking(move || {
            local.add(&stated, |path, mut to| {
                let info = infos.get(path).with_context(|| format!("`{path}` is none of those that are brought"))?;
                let blob = handle.block_on(realise::fetch_blob(&client, info, &std::env::temp_dir()))?.into_bytes();
                let mut archive = NarReader::new(blob.reader(), info.nar_size_bytes)?;
                std::io::copy(&mut archive, &mut to).with_context(|| format!("give `{path}` to the local Nix")).map(drop)
            })?;
            Ok(local)
        })
        .await
    }
}

/// Returns what the farm has signed of paths, in an order in which each comes after those that it refers to.
async fn stated(client: &Client, store_dir: &StoreDir, infos: &BTreeMap<StorePath, PathInfo>) -> anyhow::Result<Vec<ValidPath>> {
    let hash_parts: Vec<String> = infos.keys().map(|path| path.hash_part().to_owned()).collect();
    let mut stated = BTreeMap::new();
    for chunk in hash_parts.chunks(PATHS_PER_REQUEST_MAX) {
        let request = Request::Narinfos(chunk.to_vec());
        let texts = client.all(&request, |answer| if let Response::Narinfos(texts) = answer { Some(texts) } else { None }).await?;
        for text in texts {
            let info = NarInfo::parse(store_dir, text.as_bytes())?;
            stated.insert(info.path.clone(), facts(info));
        }
    }
    let lacking = infos.keys().find(|path| !stated.contains_key(*path));
    ensure!(lacking.is_none(), "the farm has not published `{}`", lacking.map(StorePath::as_str).unwrap_or_default());
    stated.retain(|path, _| infos.contains_key(path));
    Ok(ordered(stated))
}

fn facts(info: NarInfo) -> ValidPath {
    let facts = Facts {
        deriver: info.deriver.map(|deriver| deriver.as_path().clone()),
        nar_hash: info.nar_hash,
        references: info.references,
        registered_at_seconds: 0,
        nar_size_bytes: info.nar_size_bytes,
        // Another machine built it.
        ultimate: false,
        signatures: info.signatures.iter().map(ToString::to_string).collect(),
        content_address: info.content_address.unwrap_or_default(),
    };
    ValidPath { path: info.path, facts }
}

/// Orders paths so that each comes after those that it refers to. A cycle, which no store has, comes last, for Nix to refuse.
fn ordered(mut waiting: BTreeMap<StorePath, ValidPath>) -> Vec<ValidPath> {
    let mut ordered = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        let is_ready = |path: &ValidPath| !path.facts.references.iter().any(|other| *other != path.path && waiting.contains_key(other));
        let ready: Vec<StorePath> = waiting.values().filter(|path| is_ready(path)).map(|path| path.path.clone()).collect();
        if ready.is_empty() {
            ordered.extend(std::mem::take(&mut waiting).into_values());
        }
        ordered.extend(ready.iter().filter_map(|path| waiting.remove(path)));
    }
    ordered
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("talk to the local Nix")?
}

#[cfg(test)]
mod tests {
    use kiln_wire::Sha256Hash;

    use super::*;

    #[test]
    fn a_path_comes_after_those_that_it_refers_to() {
        let path = |name: &str| StorePath::parse(&format!("0hm2f1psjpcwg8fijsmr4wwxrx59s092-{name}")).expect("a path");
        let check = |graph: &str, wanted: &str| {
            let stated = graph.split_whitespace().map(|entry| {
                let (name, references) = entry.split_once(':').expect("name:references");
                let references = references.split(',').filter(|name| !name.is_empty()).map(path).collect();
                let nar_hash = Sha256Hash([0; 32]);
                let facts = Facts {
                    deriver: None,
                    nar_hash,
                    references,
                    registered_at_seconds: 0,
                    nar_size_bytes: 1,
                    ultimate: false,
                    signatures: Vec::new(),
                    content_address: String::new(),
                };
                (path(name), ValidPath { path: path(name), facts })
            });
            let names: Vec<String> = ordered(stated.collect()).iter().map(|stated| stated.path.name().to_owned()).collect();
            assert_eq!(names.join(" "), wanted, "{graph}");
        };
        check("a:b b:c c:", "c b a");
        check("a:a,b b: c:elsewhere", "b c a");
        check("a:b b:a c:", "c a b");
        check("", "");
    }
}
