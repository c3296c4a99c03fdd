//! Closures of store paths, from committed and published facts.

use std::collections::BTreeMap;

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
    while let Some(path) = waiting.pop() {
        if found.contains_key(&path) {
            continue;
        }
        let info = parts.path_info(&path).await?.ok_or_else(|| ClosureError::Missing(path.clone()))?;
        waiting.extend(info.references.iter().filter(|reference| !found.contains_key(*reference)).cloned());
        found.insert(path, info);
    }
    Ok(found.into_values().collect())
}
