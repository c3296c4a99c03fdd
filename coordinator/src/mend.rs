//! Damage of the store: finding it, and taking anew from upstream caches what is damaged.
//!
//! Invariant: a valid path never changes. What is put back has the NAR hash that its narinfo says; its blob may be another, for the same NAR
//! can be compressed in several ways. Building anew is a check of the derivation, which clients ask for. Source: ADR 0034.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use kiln_store::StoreError;
use kiln_wire::client::{Damage, Refusal, Thoroughness};
use kiln_wire::limits::PATHS_PER_REQUEST_MAX;
use kiln_wire::{DrvPath, PathInfo, StorePath};

use crate::driver::Chain;
use crate::garbage::touch;
use crate::parts::Parts;
use crate::{leading, refuse};

/// Looks at what is stored of some paths, and mends by upstream caches if that is wanted. Returns those that are damaged in the end; what is
/// not valid is no damage.
pub(crate) async fn damaged(parts: &Arc<Parts>, paths: Vec<StorePath>, how: Thoroughness) -> Result<Vec<Damage>, Refusal> {
    if paths.len() > PATHS_PER_REQUEST_MAX {
        return Err(refuse::invalid(format!("verify {} paths: over the limit of {PATHS_PER_REQUEST_MAX}; ask in parts", paths.len())));
    }
    touch(parts, &paths).await;
    let looks = futures::stream::iter(paths).map(|path| async move {
        let found = look(parts, &path, how).await;
        let told = found.map(|damage| damage.map(|damage| Damage { path, message: Chain(&damage).to_string() }));
        told.map_err(|error| refuse::unavailable("verify", &error))
    });
    let found: Vec<_> = looks.buffered(LOOKS_MAX).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// Returns what is wrong with a path, if anything is.
async fn look(parts: &Arc<Parts>, path: &StorePath, how: Thoroughness) -> Result<Option<StoreError>, StoreError> {
    let damage = match verify(parts, path, how).await {
        Ok(()) => return Ok(None),
        Err(StoreError::Absent { .. }) => return Ok(None),
        Err(error) if error.is_passing() => return Err(error),
        Err(damage) => damage,
    };
    tracing::error!(%path, damage = %Chain(&damage), "a valid path is damaged");
    if how != Thoroughness::Mend || !take_anew(parts, path).await? {
        return Ok(Some(damage));
    }
    match verify(parts, path, how).await {
        Ok(()) => Ok(None),
        Err(error) if error.is_passing() => Err(error),
        Err(damage) => Ok(Some(damage)),
    }
}

async fn verify(parts: &Parts, path: &StorePath, how: Thoroughness) -> Result<(), StoreError> {
    if let Ok(derivation) = DrvPath::from_path(path.clone()) {
        return parts.store.derivation(&derivation).await.map(drop);
    }
    if how != Thoroughness::Names {
        return parts.store.verify(path).await.map(drop);
    }
    let Some(info) = parts.store.path_info(path).await? else { return Ok(()) };
    // Farms that were made before blobs lay under their own hash have them under that of their NAR.
    match parts.store.has_blob(&info.blob.sha256).await? || parts.store.has_blob(&info.nar_hash).await? {
        true => Ok(()),
        false => Err(StoreError::MissingBlob { path: path.clone(), key: info.blob.sha256.to_string() }),
    }
}

/// Takes the archive of a path from an upstream cache that has the same. Returns whether one had.
async fn take_anew(parts: &Arc<Parts>, path: &StorePath) -> Result<bool, StoreError> {
    let leader = leading::own(parts);
    let Ok(Some(known)) = parts.store.path_info(path).await else { return Ok(false) };
    let upstreams = parts.substitution.upstreams();
    let order = upstreams.order().await;
    let mut but = BTreeSet::new();
    while let Some(found) = upstreams.find(&order, path, &but).await {
        but.insert(found.from);
        let narinfo = &found.believed.narinfo;
        if narinfo.nar_hash != known.nar_hash || narinfo.references != known.references {
            tracing::warn!(%path, "an upstream cache has it with another content, which is not taken");
            continue;
        }
        match upstreams.take(&parts.store, &found).await {
            Ok(endorsed) => {
                put_back(parts, leader, &known, &endorsed.info).await?;
                return Ok(true);
            }
            Err(error) => tracing::warn!(%path, error = %Chain(&error), "an upstream cache does not give what it has"),
        }
    }
    Ok(false)
}

/// Has a path's narinfo lead to a blob of the same NAR that was stored.
async fn put_back(parts: &Parts, leader: Option<kiln_wire::Leader>, known: &PathInfo, sound: &PathInfo) -> Result<(), StoreError> {
    let _turn = parts.turns.take(std::iter::once(&known.path)).await;
    if leader.is_some() && leading::own(parts) == leader {
        let mended = PathInfo { blob: sound.blob, ..known.clone() };
        parts.store.publish(&[mended], &parts.keys).await?;
        tracing::info!(path = %known.path, "a damaged path is whole again, from an upstream cache");
    }
    Ok(())
}

/// Returns whether what is stored of a path is damaged, where the same NAR came in another blob: then that one is to take its place.
pub(crate) async fn gives_way(parts: &Parts, kept: &PathInfo, made: &PathInfo) -> Result<bool, StoreError> {
    if kept.nar_hash != made.nar_hash || kept.blob == made.blob {
        return Ok(false);
    }
    match parts.store.verify(&kept.path).await {
        Ok(_) | Err(StoreError::Absent { .. }) => Ok(false),
        Err(error) if error.is_passing() => Err(error),
        Err(_) => Ok(true),
    }
}

/// Paths that are read at a time for one request: each takes a processor.
const LOOKS_MAX: usize = 2;
