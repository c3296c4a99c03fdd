//! Reads what the store holds: the graph of its paths, and its blobs.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use kiln_core::garbage::{Graph, HashPart, Rules};
use kiln_nix::derivation::Derivation;
use kiln_nix::realisation::DerivedOutput;
use kiln_store::{StoreError, Stored};
use kiln_wire::limits::GARBAGE_PATHS_MAX;
use kiln_wire::{DrvPath, OutputName, PathInfo, Sha256Hash, StorePath, Timestamp};

use crate::parts::Parts;

/// What the store held when it was listed.
pub(super) struct Inventory {
    pub graph: Graph,
    /// What was written after the asked time.
    pub young: Vec<HashPart>,
    /// Blobs that were not, with their sizes.
    pub old_blobs: BTreeMap<Sha256Hash, u64>,
    /// The time from which on things are young.
    pub young_since: Timestamp,
}

/// A store that cannot be read as a whole. Nothing is deleted then.
#[derive(Debug, thiserror::Error)]
pub(super) enum GraphError {
    #[error("read the store")]
    Store(#[from] StoreError),
    #[error("read the store: it has more than {GARBAGE_PATHS_MAX} paths")]
    TooLarge,
}

/// Lists the store and reads every narinfo and derivation.
pub(super) async fn inventory(parts: &Arc<Parts>, rules: Rules, young_since: Timestamp) -> Result<Inventory, GraphError> {
    let mut found = Listed::default();
    let mut objects = parts.store.objects();
    while let Some(object) = objects.try_next().await? {
        found.add(object, young_since);
        if found.narinfos.len() + found.derivations.len().max(found.realisations.len()) > GARBAGE_PATHS_MAX {
            return Err(GraphError::TooLarge);
        }
    }
    let mut graph = Graph::new(rules);
    let mut infos = futures::stream::iter(found.narinfos)
        .map(|part| {
            let store = parts.store.clone();
            async move { store.info_of_part(part.as_str()).await }
        })
        .buffer_unordered(READS_MAX);
    while let Some(info) = infos.try_next().await? {
        // One that is gone meanwhile was deleted by nobody but us.
        info.iter().for_each(|info: &PathInfo| graph.add_path(info));
    }
    let mut derivations = futures::stream::iter(found.derivations)
        .map(|(path, size_bytes)| {
            let parts = parts.clone();
            async move { Ok::<_, GraphError>((derivation(&parts, &path).await?, path, size_bytes)) }
        })
        .buffer_unordered(READS_MAX);
    while let Some((derivation, path, size_bytes)) = derivations.try_next().await? {
        if let Some(derivation) = derivation {
            let outputs: Vec<&StorePath> = derivation.outputs.values().filter_map(|output| output.path()).collect();
            graph.add_derivation(path.as_path(), size_bytes, &derivation.references(), outputs);
        }
        if graph.len() > GARBAGE_PATHS_MAX {
            return Err(GraphError::TooLarge);
        }
        tokio::task::consume_budget().await;
    }
    realisations(parts, &mut graph, found.realisations).await?;
    Ok(Inventory { graph, young: found.young, old_blobs: found.old_blobs, young_since })
}

/// Adds what outputs became: another derivation may have made the same, and the path names only that one.
async fn realisations(parts: &Arc<Parts>, graph: &mut Graph, listed: Vec<(DrvPath, OutputName)>) -> Result<(), GraphError> {
    let mut reads = futures::stream::iter(listed)
        .map(|(derivation, output)| {
            let parts = parts.clone();
            async move {
                let of = DerivedOutput::ByPath { derivation: derivation.clone(), output };
                (parts.store.realisation(&of, &parts.keys).await, derivation)
            }
        })
        .buffer_unordered(READS_MAX);
    while let Some((read, derivation)) = reads.next().await {
        match read {
            Ok(Some(realisation)) => graph.add_realisation(derivation.as_path(), &realisation.path),
            // Nobody can follow it.
            Ok(None) => {}
            Err(error) => return Err(error.into()),
        }
        if graph.len() > GARBAGE_PATHS_MAX {
            return Err(GraphError::TooLarge);
        }
    }
    Ok(())
}

#[derive(Default)]
struct Listed {
    realisations: Vec<(DrvPath, OutputName)>,
    narinfos: Vec<HashPart>,
    derivations: Vec<(DrvPath, u64)>,
    young: Vec<HashPart>,
    old_blobs: BTreeMap<Sha256Hash, u64>,
}

impl Listed {
    fn add(&mut self, object: Stored, young_since: Timestamp) {
        match object {
            Stored::Narinfo { hash_part, at } => {
                let Some(part) = HashPart::parse(&hash_part) else { return };
                self.narinfos.push(part);
                self.young.extend((at > young_since).then_some(part));
            }
            Stored::Derivation { path, size_bytes, at } => {
                self.young.extend((at > young_since).then(|| HashPart::from(path.as_path())));
                self.derivations.push((path, size_bytes));
            }
            Stored::Realisation { derivation, output, .. } => self.realisations.push((derivation, output)),
            Stored::Blob { sha256, size_bytes, at } => {
                if at <= young_since {
                    self.old_blobs.insert(sha256, size_bytes);
                }
            }
            Stored::Pointer { .. } | Stored::Other => {}
        }
    }
}

async fn derivation(parts: &Parts, path: &DrvPath) -> Result<Option<Derivation>, GraphError> {
    // Not by way of those that are kept in memory, whose place belongs to builds. One that Nix would write otherwise is built by nobody, and
    // yet says what it needs.
    Ok(parts.store.derivation(path).await?.map(|(_, parsed)| parsed))
}

/// Narinfos and derivations that are read at a time.
const READS_MAX: usize = 64;
