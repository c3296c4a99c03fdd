//! The farm's store is collected by its leader: what nobody keeps is deleted, beside builds and uploads that go on.
//!
//! What is kept, and in which order the rest goes, [`kiln_core::garbage`] says. Here: whoever is about to rely on objects touches them at
//! the gate ([`touch`]); [`collection`] runs one collection; [`roots`] finds what is kept; [`notes`] has what clients ask to be kept;
//! [`answers`] is what they hear; [`schedule`] begins collections by itself.
//!
//! Invariant: only a leader deletes, in a shared store not before [`LATE`] after it began to lead; what is being deleted is noted down
//! first. Source: ADR 0028.

mod answers;
mod blobs;
mod collection;
mod config;
mod graph;
mod notes;
mod old_logs;
mod pointers;
mod roots;
mod schedule;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_core::garbage::{Gate, Key, Pass};
use kiln_wire::limits::TOUCHED_MAX;
use kiln_wire::{Collect, Leader, RetentionView};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

pub(crate) use self::answers::answer;
pub use self::config::Gc;
pub(crate) use self::schedule::run;
use crate::driver::Chain;
use crate::leading;
use crate::parts::Parts;
use crate::pauses::Pauses;

/// What the collections of one coordinator share.
pub(crate) struct Garbage {
    settings: Gc,
    gate: Mutex<Gate>,
    /// Under which leadership the gate is open, and since when this coordinator leads so.
    open: watch::Sender<Option<(Leader, Instant)>>,
    /// Under which leadership what the leader before was deleting is gone, and its note with it: a collection may write its own.
    settled: watch::Sender<Option<Leader>>,
    /// Which taking over or stepping down was the last.
    turn: AtomicU64,
    /// Something that was condemned is not any more, or the gate was opened.
    moved: Notify,
    /// Held while a note is read and written again.
    noting: tokio::sync::Mutex<()>,
    /// Held while somebody looks at the whole store, beside a collection: that takes memory.
    graphs: tokio::sync::Semaphore,
}

impl Garbage {
    pub(crate) fn new(settings: Gc) -> Self {
        let gate = Gate::new(settings.grace_seconds.saturating_mul(1000), TOUCHED_MAX);
        Self {
            settings,
            gate: Mutex::new(gate),
            open: watch::Sender::new(None),
            settled: watch::Sender::new(None),
            turn: AtomicU64::new(0),
            moved: Notify::new(),
            noting: Default::default(),
            graphs: tokio::sync::Semaphore::new(1),
        }
    }

    /// Returns how long things are kept, for people.
    pub(crate) fn retention(&self) -> RetentionView {
        self.settings.shown()
    }

    /// Returns how long what was written or asked for lately is kept in such a collection; with 0 nobody relies on anything of that.
    fn grace_seconds(&self, order: &Collect) -> u64 {
        order.grace_seconds.unwrap_or(self.settings.grace_seconds)
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the gate, unless the collection of this number is over.
    fn gate_of(&self, collection: u64) -> Option<MutexGuard<'_, Gate>> {
        Some(self.gate()).filter(|gate| gate.collection() == Some(collection))
    }

    /// Ends the collection of this number, if it goes on.
    fn end(&self, collection: u64) {
        if let Some(mut gate) = self.gate_of(collection) {
            gate.end();
        }
        self.moved.notify_waiters();
    }

    /// Returns the number of this turn.
    fn reset(&self) -> u64 {
        let turn = self.turn.fetch_add(1, Ordering::SeqCst) + 1;
        self.open.send_replace(None);
        self.settled.send_replace(None);
        self.gate().reset();
        self.moved.notify_waiters();
        turn
    }
}

/// Says that somebody is about to rely on these, if they are there. When this returns, whatever is there stays there for the grace period
/// at least, with all that it refers to; under another leader it has to be said again.
pub(crate) async fn touch<K: Into<Key>>(parts: &Parts, keys: impl IntoIterator<Item = K>) {
    let keys: Vec<Key> = keys.into_iter().map(Into::into).collect();
    if keys.is_empty() {
        return;
    }
    loop {
        let mut moved = std::pin::pin!(parts.garbage.moved.notified());
        moved.as_mut().enable();
        let pass = parts.garbage.gate().touch(&keys, parts.clock.steady());
        // Whoever asks one that does not lead is told so.
        let Some(leader) = leading::own(parts) else { return };
        let is_open = parts.garbage.open.borrow().is_some_and(|(open, _)| open == leader);
        if is_open && pass == Pass::Free {
            return;
        }
        tokio::select! {
            () = moved => {}
            () = leading::lost(parts, leader) => {}
        }
    }
}

/// Opens the gate of a coordinator that begins to lead. What the leader before it may still be deleting stays condemned for a while.
pub(crate) fn take_over(parts: &Arc<Parts>, leader: Leader) {
    let turn = parts.garbage.reset();
    // Another leader may have deleted what is remembered here, and published others.
    forget(parts);
    parts.store.forget_published();
    let (parts, since) = (parts.clone(), Instant::now());
    tokio::spawn(async move {
        let mut pauses = Pauses::default();
        let condemned = loop {
            match notes::condemned(&parts).await {
                Ok(condemned) => break condemned,
                Err(error) if is_turn(&parts, turn) => pauses.after(&error).await,
                Err(_) => return,
            }
        };
        if !is_turn(&parts, turn) {
            return;
        }
        let inherited = !condemned.is_empty() && parts.store.is_shared();
        if inherited {
            tracing::info!(objects = condemned.len(), "the leader before was deleting garbage: what may be under way is waited for");
            parts.garbage.gate().inherit(condemned.iter().copied());
        }
        open(&parts, leader, since);
        if inherited {
            tokio::time::sleep(LATE).await;
            // Somebody may have read what went then.
            forget(&parts);
        }
        learn(&parts, turn);
        // It may be uncertain for a moment whether this one leads.
        while is_turn(&parts, turn) && leading::own(&parts) != Some(leader) {
            tokio::time::sleep(UNCERTAIN).await;
        }
        if !is_turn(&parts, turn) {
            return;
        }
        parts.garbage.gate().settle();
        parts.garbage.moved.notify_waiters();
        if !condemned.is_empty()
            && let Err(error) = notes::condemn(&parts, &[]).await
        {
            tracing::warn!(error = %Chain(&error), "clear the note of what is being deleted; the next collection does");
        }
        // Not before: the note of a collection would be taken for that one.
        if is_turn(&parts, turn) {
            parts.garbage.settled.send_replace(Some(leader));
        }
    });
}

/// Has the leader know which paths are published, beside what it does: until then the store is asked for each.
fn learn(parts: &Arc<Parts>, turn: u64) {
    let parts = parts.clone();
    tokio::spawn(async move {
        let mut pauses = Pauses::default();
        while is_turn(&parts, turn) {
            match parts.store.learn_published().await {
                Ok(Some(paths)) => return tracing::debug!(paths, "the published paths are known"),
                Ok(None) => return,
                Err(error) => pauses.after(&error).await,
            }
        }
    });
}

/// Closes the gate of a coordinator that leads no more.
pub(crate) fn step_down(parts: &Parts) {
    parts.garbage.reset();
    forget(parts);
    parts.store.forget_published();
}

/// Forgets what is remembered of paths and derivations: some may be gone.
fn forget(parts: &Parts) {
    parts.store.forget_paths();
    parts.derivations.forget_all();
}

/// Returns whether nothing was taken over or given up since, and this coordinator goes on.
fn is_turn(parts: &Parts, turn: u64) -> bool {
    parts.consensus.leadership().has_changed().is_ok() && parts.garbage.turn.load(Ordering::SeqCst) == turn
}

fn open(parts: &Parts, leader: Leader, since: Instant) {
    parts.garbage.open.send_replace(Some((leader, since)));
    parts.garbage.moved.notify_waiters();
}

/// Longest time that a deletion or publication takes which a leader began: one that was deposed meanwhile may end it so late. A request to
/// the store is tried for 20 s.
const LATE: Duration = Duration::from_secs(45);
/// Between two looks whether this coordinator leads for certain.
const UNCERTAIN: Duration = Duration::from_millis(100);
/// Longest time that a leader gives a batch of deletions; it looks before each whether it leads.
const DELETION_MAX: Duration = Duration::from_secs(30);

/// Keys of paths.
fn part_keys(keys: &BTreeSet<Key>) -> impl Iterator<Item = kiln_core::garbage::HashPart> + '_ {
    keys.iter().filter_map(|key| match key {
        Key::Path(part) => Some(*part),
        Key::Blob(_) => None,
    })
}
