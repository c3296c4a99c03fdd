//! Blobs go last: those that no narinfo names, no committed output, and nobody who is storing the same.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt};
use kiln_core::garbage::{BlobSweep, Doomed, Key, Sweep};
use kiln_store::Deleted;
use kiln_wire::Sha256Hash;
use kiln_wire::limits::CONDEMNED_MAX;

use super::DELETION_MAX;
use super::collection::{CollectError, Collection};
use super::roots::Kept;

/// Deletes what no path has any more; where only some paths were to go, what those had.
pub(super) async fn sweep(
    collection: &mut Collection,
    sweep: &Sweep,
    blobs: BTreeMap<Sha256Hash, u64>,
    gone: &[Doomed],
    kept: &Kept,
) -> Result<(), CollectError> {
    let mut blobs = unnamed(collection, blobs, sweep, kept);
    if collection.order.only.is_some() || collection.order.bytes_max.is_some() {
        let theirs: BTreeSet<Sha256Hash> =
            gone.iter().filter_map(|doomed| doomed.facts).flat_map(|facts| [facts.blob, facts.nar_hash]).collect();
        blobs.retain(|blob, _| theirs.contains(blob));
    }
    let is_counted = collection.order.bytes_max.is_some();
    let mut sweep = BlobSweep::new(blobs);
    loop {
        let batch = collection.gate()?.condemn_blobs(&mut sweep, CONDEMNED_MAX);
        if batch.is_empty() {
            return Ok(());
        }
        let parts = collection.parts.clone();
        collection.note(&batch.iter().map(|(blob, _)| Key::Blob(*blob)).collect::<Vec<_>>()).await?;
        for few in batch.chunks(DELETIONS_MAX) {
            collection.check_leads()?;
            let delete = |(blob, _): &(Sha256Hash, u64)| {
                let (parts, blob) = (parts.clone(), *blob);
                async move { parts.store.delete(Deleted::Blob(&blob)).await }
            };
            let deletions = futures::stream::iter(few.iter().map(delete)).buffer_unordered(DELETIONS_MAX);
            tokio::time::timeout(DELETION_MAX, deletions.try_collect::<()>()).await.map_err(|_| CollectError::Slow)??;
        }
        collection.release()?;
        collection.done.blobs += batch.len() as u64;
        if !is_counted {
            collection.done.bytes += batch.iter().map(|(_, bytes)| bytes).sum::<u64>();
        }
    }
}

/// Counts what deleting would give.
pub(super) async fn foresee(collection: &mut Collection, mut sweep: Sweep, blobs: BTreeMap<Sha256Hash, u64>, kept: &Kept) {
    let chosen_only = collection.order.only.is_some();
    let mut gone = Vec::new();
    loop {
        let batch = sweep.next_batch(CONDEMNED_MAX);
        if batch.is_empty() {
            break;
        }
        gone.extend(batch);
    }
    let done = &mut collection.done;
    for doomed in &gone {
        done.paths += u64::from(doomed.facts.is_some());
        done.derivations += u64::from(doomed.derivation_bytes.is_some());
        done.bytes += doomed.derivation_bytes.unwrap_or_default();
    }
    let theirs: BTreeSet<Sha256Hash> =
        gone.iter().filter_map(|doomed| doomed.facts).flat_map(|facts| [facts.blob, facts.nar_hash]).collect();
    let mut blobs = unnamed(collection, blobs, &sweep, kept);
    blobs.retain(|blob, _| !chosen_only || theirs.contains(blob));
    collection.done.blobs = blobs.len() as u64;
    collection.done.bytes += blobs.values().sum::<u64>();
}

/// Returns the blobs that nobody is known to name.
fn unnamed(collection: &Collection, mut blobs: BTreeMap<Sha256Hash, u64>, sweep: &Sweep, kept: &Kept) -> BTreeMap<Sha256Hash, u64> {
    let parts = &collection.parts;
    // Farms that were made before blobs lay under their own hash have them under that of their NAR.
    let mut named: BTreeSet<Sha256Hash> = sweep.facts_kept().flat_map(|facts| [facts.blob, facts.nar_hash]).collect();
    let work = parts.farm(|farm| farm.work());
    named.extend(kept.work.outputs.iter().chain(&work.outputs).flat_map(|info| [info.blob.sha256, info.nar_hash]));
    // Outputs of attempts that go on were asked for when they came, which may be long ago.
    named.extend(parts.verified.blobs());
    if parts.garbage.grace_seconds(&collection.order) > 0 {
        let touched = parts.garbage.gate().touched(parts.clock.steady());
        named.extend(touched.into_iter().filter_map(|key| if let Key::Blob(blob) = key { Some(blob) } else { None }));
    }
    blobs.retain(|blob, _| !named.contains(blob));
    blobs
}

/// Blobs that are deleted at a time.
const DELETIONS_MAX: usize = 32;
