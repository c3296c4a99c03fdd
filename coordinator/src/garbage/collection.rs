//! One collection: roots, mark, and the sweep of paths; that of blobs is in [`super::blobs`].

use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use kiln_core::garbage::{Doomed, Gate, Key, Marks, Roots, Sweep, Unready};
use kiln_store::{Deleted, StoreError};
use kiln_wire::limits::CONDEMNED_MAX;
use kiln_wire::{Collect, Collected, DrvPath, Leader, StorePath, Timestamp, Version};
use tokio::sync::mpsc;

use super::graph::{GraphError, Inventory, inventory};
use super::notes::NoteError;
use super::roots::{Kept, RootsError};
use super::{DELETION_MAX, LATE, blobs, notes, old_logs, part_keys, pointers, roots};
use crate::archive::ArchiveError;
use crate::driver::Chain;
use crate::leading;
use crate::logs::LogError;
use crate::parts::Parts;

/// A collection that did not come to its end. What it deleted is gone, and nothing that is left lacks what it refers to.
#[derive(Debug, thiserror::Error)]
pub(super) enum CollectError {
    #[error("begin a collection")]
    Unready(#[from] Unready),
    #[error("this coordinator does not lead")]
    NotLeader,
    #[error("the farm is at version {}, and a coordinator of an older program would not know what is being deleted: upgrade all of them", .0.0)]
    Version(Version),
    #[error("find what is kept")]
    Roots(#[from] RootsError),
    #[error("find what there is")]
    Graph(#[from] GraphError),
    #[error("note down what is deleted")]
    Note(#[from] NoteError),
    #[error("delete garbage")]
    Store(#[from] StoreError),
    #[error("delete garbage: the store took longer than {} s", DELETION_MAX.as_secs())]
    Slow,
    #[error("delete the log of a derivation")]
    Log(#[from] LogError),
    #[error("list logs")]
    Logs(#[source] std::io::Error),
    #[error("delete the record of a build")]
    Archive(#[from] ArchiveError),
}

/// Where the paths that a collection names go, many at a time.
pub(super) type Told = mpsc::Sender<Vec<StorePath>>;

/// A collection under way. However it ends, the gate is open again.
pub(super) struct Collection {
    pub parts: Arc<Parts>,
    pub leader: Leader,
    /// At the gate.
    number: u64,
    pub order: Collect,
    pub done: Collected,
}

/// What is known after the mark.
pub(super) struct Marked {
    pub kept: Kept,
    pub inventory: Inventory,
    pub roots: Roots,
    pub marks: Marks,
}

impl Drop for Collection {
    fn drop(&mut self) {
        self.parts.garbage.end(self.number);
    }
}

/// Collects as ordered, and tells the paths. One at a time.
pub(super) async fn collect(parts: Arc<Parts>, order: Collect, told: Told) -> Result<Collected, CollectError> {
    let deletes = !order.dry_run && !order.live;
    let mut collection = Collection::begin(parts, order, deletes).await?;
    let touched = collection.gate()?.touched(collection.parts.clock.steady());
    let Marked { kept, inventory, marks, .. } = mark(&collection.parts, &collection.order, &touched, deletes).await?;
    let Inventory { graph, old_blobs, young_since, .. } = inventory;
    collection.done.kept = graph.marked(&marks, true).count() as u64;
    if collection.order.live {
        let paths = graph.marked(&marks, true).cloned().collect();
        return Ok(collection.foretell(&told, paths).await);
    }
    let only = collection.order.only.as_ref().map(|only| only.iter().cloned().collect::<BTreeSet<_>>());
    let mut sweep = Sweep::new(graph, &marks, only.as_ref());
    if !deletes {
        collection.gate()?.spare_fresh(&mut sweep);
        collection.done.builds = kept.retired.len() as u64;
        let paths: Vec<StorePath> = sweep.outlook().cloned().collect();
        blobs::foresee(&mut collection, sweep, old_blobs, &kept).await;
        return Ok(collection.foretell(&told, paths).await);
    }
    let swept = collection.delete(&mut sweep, (old_blobs, young_since), &kept, &told).await;
    if let Err(error) = swept {
        collection.let_late_ones_end().await;
        return Err(error);
    }
    collection.check_leads()?;
    notes::ended(&collection.parts, collection.parts.clock.now()).await?;
    let done = collection.done.clone();
    tracing::info!(paths = done.paths, derivations = done.derivations, blobs = done.blobs, bytes = done.bytes, "garbage is collected");
    Ok(done)
}

/// Finds what is kept and marks it.
pub(super) async fn mark(parts: &Arc<Parts>, order: &Collect, touched: &BTreeSet<Key>, tidy: bool) -> Result<Marked, CollectError> {
    let kept = roots::find(parts, tidy).await?;
    let settings = &parts.garbage.settings;
    let grace_ms = parts.garbage.grace_seconds(order).saturating_mul(1000);
    let young_since = Timestamp(notes::now(parts).await?.0.saturating_sub(grace_ms));
    let inventory = inventory(parts, settings.rules(), young_since).await?;
    // A shorter grace is about the age of what is written: who was told that something is there relies on it for as long as ever. Whoever
    // says 0 says that nobody does; what is touched while it lasts counts even then.
    let touched = part_keys(touched).filter(|_| grace_ms > 0);
    let roots = kept.roots(&inventory.graph, touched, inventory.young.iter().copied());
    let marks = inventory.graph.mark(&roots);
    Ok(Marked { kept, inventory, roots, marks })
}

impl Collection {
    async fn begin(parts: Arc<Parts>, order: Collect, deletes: bool) -> Result<Self, CollectError> {
        let open = *parts.garbage.open.borrow();
        let (leader, since) = open.filter(|(leader, _)| leading::own(&parts) == Some(*leader)).ok_or(CollectError::NotLeader)?;
        if deletes && parts.consensus.version() < SINCE {
            return Err(CollectError::Version(parts.consensus.version()));
        }
        if deletes {
            let mut settled = parts.garbage.settled.subscribe();
            let ready = async {
                if parts.store.is_shared() {
                    tokio::time::sleep_until(since + LATE).await;
                }
                let _never_closed = settled.wait_for(|settled| *settled == Some(leader)).await;
            };
            tokio::select! {
                () = leading::lost(&parts, leader) => return Err(CollectError::NotLeader),
                () = ready => {}
            }
        }
        let number = {
            let mut gate = parts.garbage.gate();
            gate.begin(parts.clock.steady())?;
            gate.collection().unwrap_or_default()
        };
        let collection = Self { parts, leader, number, order, done: Collected::default() };
        collection.check_leads()?;
        Ok(collection)
    }

    /// Whatever this one deletes, it deletes as the leader.
    pub fn check_leads(&self) -> Result<(), CollectError> {
        match leading::own(&self.parts) == Some(self.leader) {
            true => Ok(()),
            false => Err(CollectError::NotLeader),
        }
    }

    /// The gate, as long as this collection goes on there: under another leadership it is not its own any more.
    pub fn gate(&self) -> Result<MutexGuard<'_, Gate>, CollectError> {
        self.check_leads()?;
        self.parts.garbage.gate_of(self.number).ok_or(CollectError::NotLeader)
    }

    /// Notes what is deleted next.
    pub async fn note(&self, keys: &[Key]) -> Result<(), CollectError> {
        drop(self.gate()?);
        Ok(notes::condemn(&self.parts, keys).await?)
    }

    /// The condemned batch is gone.
    pub fn release(&self) -> Result<(), CollectError> {
        self.gate()?.release();
        self.parts.garbage.moved.notify_waiters();
        Ok(())
    }

    /// Ends, and then tells: who reads slowly keeps nobody from collecting.
    async fn foretell(self, told: &Told, paths: Vec<StorePath>) -> Collected {
        let done = self.done.clone();
        drop(self);
        tell(told, paths).await;
        done
    }

    /// Forgets what is remembered of a batch: nobody may take what is being deleted for valid, however its deletion ends.
    fn forget(&self, batch: &[Doomed]) {
        for doomed in batch {
            self.parts.store.forget_path(&doomed.path);
            if let Ok(path) = DrvPath::from_path(doomed.path.clone()) {
                self.parts.derivations.forget(&path);
            }
        }
    }

    async fn delete(
        &mut self,
        sweep: &mut Sweep,
        (old_blobs, young_since): (std::collections::BTreeMap<kiln_wire::Sha256Hash, u64>, Timestamp),
        kept: &Kept,
        told: &Told,
    ) -> Result<(), CollectError> {
        if self.order.only.is_none() {
            for build in &kept.retired {
                self.check_leads()?;
                self.parts.archive.delete(*build).await?;
                self.done.builds += 1;
            }
        }
        if let Some(age_ms) =
            self.parts.garbage.settings.log_age_ms().filter(|_| self.order.only.is_none() && self.order.bytes_max.is_none())
        {
            old_logs::sweep(self, age_ms).await?;
        }
        let gone = self.sweep(sweep, told).await?;
        self.parts.store.sync_deleted().await?;
        if !gone.is_empty() {
            let nar_grace = self.order.grace_seconds.unwrap_or(self.parts.garbage.settings.nar_grace_seconds);
            tokio::select! {
                () = leading::lost(&self.parts, self.leader) => return Err(CollectError::NotLeader),
                () = tokio::time::sleep(Duration::from_secs(nar_grace)) => {}
            }
        }
        blobs::sweep(self, sweep, old_blobs, &gone, kept).await?;
        if self.order.only.is_none() && self.order.bytes_max.is_none() {
            pointers::sweep(self, sweep, young_since).await?;
        }
        self.note(&[]).await
    }

    /// Deletes narinfos and derivations, users first, until none is left that may go, or enough are gone. Returns what went.
    async fn sweep(&mut self, sweep: &mut Sweep, told: &Told) -> Result<Vec<Doomed>, CollectError> {
        let (mut gone, mut is_heard) = (Vec::new(), true);
        while self.order.bytes_max.is_none_or(|most| self.done.bytes < most) {
            let batch = self.gate()?.condemn(sweep, self.batch_max());
            if batch.is_empty() {
                break;
            }
            self.note(&batch.iter().map(Doomed::key).collect::<Vec<_>>()).await?;
            self.forget(&batch);
            for step in batch.chunk_by(|a, b| a.step == b.step) {
                self.delete_step(step).await?;
            }
            self.forget(&batch);
            self.release()?;
            for doomed in &batch {
                self.done.paths += u64::from(doomed.facts.is_some());
                self.done.derivations += u64::from(doomed.derivation_bytes.is_some());
                self.done.bytes += doomed.derivation_bytes.unwrap_or_default();
                if self.order.bytes_max.is_some() {
                    // What its blob will have given, if no other path has it.
                    self.done.bytes += doomed.facts.map_or(0, |facts| facts.blob_bytes);
                }
            }
            // Whoever does not read misses some; the counts are right.
            let paths = batch.iter().map(|doomed| doomed.path.clone()).collect();
            is_heard = is_heard && tokio::time::timeout(TOLD_WITHIN, tell(told, paths)).await.is_ok();
            gone.extend(batch);
        }
        Ok(gone)
    }

    /// Whoever wants to stop after so many bytes does not want a whole batch more.
    fn batch_max(&self) -> usize {
        if self.order.bytes_max.is_some() { 1 } else { CONDEMNED_MAX }
    }

    /// Deletes what may go in any order.
    async fn delete_step(&self, step: &[Doomed]) -> Result<(), CollectError> {
        for few in step.chunks(DELETIONS_MAX) {
            self.check_leads()?;
            let delete = |doomed| delete_one(self.parts.clone(), doomed);
            let deletions = futures::stream::iter(few.to_vec()).map(delete).buffer_unordered(DELETIONS_MAX);
            tokio::time::timeout(DELETION_MAX, deletions.try_collect::<()>()).await.map_err(|_| CollectError::Slow)??;
        }
        Ok(())
    }

    /// A deletion that failed may still be done by the store: what it was about stays condemned until then.
    async fn let_late_ones_end(&self) {
        if self.parts.store.is_shared() && self.check_leads().is_ok() {
            tokio::select! {
                () = leading::lost(&self.parts, self.leader) => {}
                () = tokio::time::sleep(LATE) => {}
            }
        }
        // Of what was begun it is not known what went.
        super::forget(&self.parts);
        if self.check_leads().is_ok()
            && let Err(error) = self.note(&[]).await
        {
            tracing::warn!(error = %Chain(&error), "clear the note of what was being deleted");
        }
    }
}

async fn delete_one(parts: Arc<Parts>, doomed: Doomed) -> Result<(), CollectError> {
    if let Some(facts) = &doomed.facts {
        parts.store.delete(Deleted::Path { path: &doomed.path, nar_hash: facts.nar_hash }).await?;
    }
    if doomed.derivation_bytes.is_some()
        && let Ok(path) = DrvPath::from_path(doomed.path)
    {
        for attempt in parts.logs.attempts(&path).collect::<Vec<_>>() {
            parts.logs.remove(&path, attempt)?;
        }
        parts.store.delete(Deleted::Derivation(&path)).await?;
    }
    Ok(())
}

/// Tells paths; nobody may be listening any more.
async fn tell(told: &Told, paths: Vec<StorePath>) {
    for some in paths.chunks(TOLD_MAX) {
        let _nobody_listens = told.send(some.to_vec()).await;
    }
}

/// Since which version of the farm all its coordinators know of collections.
const SINCE: Version = Version(3);
/// Objects that are deleted at a time.
const DELETIONS_MAX: usize = 32;
/// For a listener to take a message, while it keeps the collection from going on.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// Paths in one message.
const TOLD_MAX: usize = 4096;
