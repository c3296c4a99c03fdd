//! Closures of store paths, from committed and published facts.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt, stream};
use kiln_wire::{PathInfo, StorePath};

use crate::parts::Parts;

/// A closure that cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClosureError {
    /// The farm lacks a path.
    #[error("the farm has no `{0}`")]
    Missing(StorePath),
    /// The store failed.
    #[error("read path facts")]
    Store(#[from] kiln_store::StoreError),
}

/// Returns `paths` and everything that they refer to, each with its facts, sorted by path.
///
/// # Errors
/// [`ClosureError::Missing`] names the first path that is not there.
pub(crate) async fn closure(parts: &Parts, paths: impl IntoIterator<Item = StorePath>) -> Result<Vec<PathInfo>, ClosureError> {
    let mut found: BTreeMap<StorePath, PathInfo> = BTreeMap::new();
    let mut waiting: Vec<StorePath> = paths.into_iter().collect();
    while !waiting.is_empty() {
        let layer: BTreeSet<StorePath> = waiting.drain(..).filter(|path| !found.contains_key(path)).collect();
        let lookups = stream::iter(layer).map(|path| async move {
            let info = parts.path_info(&path).await?;
            info.ok_or(ClosureError::Missing(path))
        });
        let infos: Vec<PathInfo> = lookups.buffered(LOOKUPS_MAX).try_collect().await?;
        for info in infos {
            waiting.extend(info.references.iter().filter(|reference| !found.contains_key(*reference)).cloned());
            found.insert(info.path.clone(), info);
        }
    }
    Ok(found.into_values().collect())
}

/// Lookups under way at a time for one closure: a leader that is new knows nothing by heart, and a bucket takes 20 ms for each.
const LOOKUPS_MAX: usize = 64;
