//! What only leads to something else goes when that is gone: realisations, listings, where debugging information and uploaded files are.
//!
//! Nobody is told that something is there by one of these alone: whoever follows one looks at what it leads to. So none is condemned.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::ready;
use futures::{StreamExt, TryStreamExt};
use kiln_core::garbage::Sweep;
use kiln_nix::realisation::DerivedOutput;
use kiln_store::{Deleted, Pointer, StoreError, Stored};
use kiln_wire::{Sha256Hash, StorePath, Timestamp};

use super::DELETION_MAX;
use super::collection::{CollectError, Collection};
use crate::parts::Parts;
use crate::register::turn_of;

/// Deletes those that were not written lately and lead nowhere. Reads each once.
pub(super) async fn sweep(collection: &Collection, sweep: &Sweep, young_since: Timestamp) -> Result<(), CollectError> {
    let nars: Arc<BTreeSet<Sha256Hash>> = Arc::new(sweep.facts_kept().map(|facts| facts.nar_hash).collect());
    let old = |object| {
        let (pointer, at) = match object {
            Stored::Pointer { pointer, at } => (pointer, at),
            Stored::Realisation { derivation, output, at } => (Pointer::Realisation(DerivedOutput::ByPath { derivation, output }), at),
            Stored::Narinfo { .. } | Stored::Derivation { .. } | Stored::Blob { .. } | Stored::Other => return ready(Ok(None)),
        };
        ready(Ok((at <= young_since).then_some(pointer)))
    };
    let mut few = collection.parts.store.objects().try_filter_map(old).try_chunks(POINTERS_AT_A_TIME);
    let mut gone = 0;
    while let Some(pointers) = few.try_next().await.map_err(|failed| failed.1)? {
        collection.check_leads()?;
        let looks = futures::stream::iter(pointers).map(|pointer| delete_if_dangling(collection.parts.clone(), nars.clone(), pointer));
        let deletions = looks.buffer_unordered(POINTERS_AT_A_TIME).try_fold(0, |sum, one| async move { Ok(sum + u64::from(one)) });
        gone += tokio::time::timeout(DELETION_MAX, deletions).await.map_err(|_| CollectError::Slow)??;
    }
    if gone > 0 {
        tracing::info!(objects = gone, "what led nowhere is deleted");
    }
    Ok(())
}

async fn delete_if_dangling(parts: Arc<Parts>, nars: Arc<BTreeSet<Sha256Hash>>, pointer: Pointer) -> Result<bool, StoreError> {
    let turn: Option<StorePath> = match &pointer {
        Pointer::Realisation(of) => turn_of(of),
        Pointer::Debug(_) | Pointer::Uploaded(_) | Pointer::Listing(_) => None,
    };
    // Whoever writes another in its place has the turn meanwhile.
    let _turn = parts.turns.take(turn.iter()).await;
    let is_dangling = match &pointer {
        Pointer::Listing(nar) => !nars.contains(nar),
        Pointer::Debug(_) | Pointer::Uploaded(_) | Pointer::Realisation(_) => parts.store.leads_nowhere(&pointer).await?,
    };
    if is_dangling {
        parts.store.delete(Deleted::Pointer(&pointer)).await?;
    }
    Ok(is_dangling)
}

/// Pointers that are looked at together.
const POINTERS_AT_A_TIME: usize = 64;
