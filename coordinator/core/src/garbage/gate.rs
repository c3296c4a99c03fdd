//! The gate: everything that anybody is about to rely on is touched here first, and what is condemned is passed by nobody.
//!
//! Does not wait: who meets a condemned object is told to, and comes again when the batch is gone. Time comes in.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use kiln_wire::Sha256Hash;

use super::sweep::{BlobSweep, Doomed, Sweep};
use super::{HashPart, Key};
use crate::clock::Steady;

/// Where those who rely on objects meet the collection.
#[derive(Debug)]
pub struct Gate {
    /// How long a touch counts, at least; twice as long at most.
    grace_ms: u64,
    touched_max: usize,
    young: BTreeSet<Key>,
    old: BTreeSet<Key>,
    turned_at: Steady,
    /// Touches were forgotten, because there were too many, and may be needed until then.
    blind_until: Option<Steady>,
    /// Touches since the collection began or last looked.
    fresh: Option<BTreeSet<Key>>,
    condemned: BTreeSet<Key>,
    /// What an earlier leader may still be deleting.
    inherited: BTreeSet<Key>,
    /// Of the last collection.
    number: u64,
}

/// What somebody who touches objects is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Whatever of it is there stays there.
    Free,
    /// Something of it is being deleted: look again when the batch is gone. It is touched: what comes after the batch stays.
    Wait,
}

/// Why no collection may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unready {
    /// Another one goes on.
    #[error("a collection is under way")]
    Collecting,
    /// More was asked for than is remembered.
    #[error("more paths were asked for than are remembered; it can begin in {wait_ms} ms, when none of them counts any more")]
    Blind {
        /// Milliseconds until one may begin.
        wait_ms: u64,
    },
}

impl Gate {
    /// Returns a gate that nobody has passed. A touch counts for `grace_ms` at least; of `touched_max` different ones in that time the gate
    /// loses sight, and lets no collection begin until they count no more.
    pub fn new(grace_ms: u64, touched_max: usize) -> Self {
        Self {
            grace_ms,
            touched_max,
            young: BTreeSet::new(),
            old: BTreeSet::new(),
            turned_at: Steady(0),
            blind_until: None,
            fresh: None,
            condemned: BTreeSet::new(),
            inherited: BTreeSet::new(),
            number: 0,
        }
    }

    /// Notes that somebody is about to rely on these.
    pub fn touch(&mut self, keys: &[Key], now: Steady) -> Pass {
        self.turn(now);
        self.young.extend(keys);
        if let Some(fresh) = &mut self.fresh {
            fresh.extend(keys);
        }
        if self.young.len() > self.touched_max {
            self.young.clear();
            self.blind_until = Some(Steady(now.0.saturating_add(self.grace_ms)));
        }
        match keys.iter().any(|key| self.condemned.contains(key) || self.inherited.contains(key)) {
            true => Pass::Wait,
            false => Pass::Free,
        }
    }

    /// Begins a collection: returns what was touched lately, which are roots; what is touched from here on spares what it needs. The roots
    /// must be read after this.
    ///
    /// # Errors
    /// [`Unready`] if another one goes on, or if it is not known what was touched.
    pub fn begin(&mut self, now: Steady) -> Result<BTreeSet<Key>, Unready> {
        self.turn(now);
        if self.fresh.is_some() {
            return Err(Unready::Collecting);
        }
        if let Some(until) = self.blind_until {
            if until > now {
                return Err(Unready::Blind { wait_ms: until.0 - now.0 });
            }
            self.blind_until = None;
        }
        self.fresh = Some(BTreeSet::new());
        self.number += 1;
        Ok(self.touched(now))
    }

    /// Returns the number of the collection that goes on. One that has another was ended, and has no business here any more.
    pub fn collection(&self) -> Option<u64> {
        self.fresh.as_ref().map(|_| self.number)
    }

    /// Returns what was touched lately.
    pub fn touched(&mut self, now: Steady) -> BTreeSet<Key> {
        self.turn(now);
        self.young.union(&self.old).copied().collect()
    }

    /// Spares what was touched meanwhile, and condemns the next batch of paths. Empty: there are no more.
    pub fn condemn(&mut self, sweep: &mut Sweep, paths_max: usize) -> Vec<Doomed> {
        self.spare_fresh(sweep);
        let batch = sweep.next_batch(paths_max);
        self.condemned = batch.iter().map(Doomed::key).collect();
        batch
    }

    /// Spares what was touched meanwhile; nothing is condemned.
    pub fn spare_fresh(&mut self, sweep: &mut Sweep) {
        for key in self.fresh.iter().flatten() {
            if let Key::Path(part) = key {
                sweep.spare(*part);
            }
        }
        // Blobs stay noted until blobs are swept.
        if let Some(fresh) = &mut self.fresh {
            fresh.retain(|key| matches!(key, Key::Blob(_)));
        }
    }

    /// Spares the blobs that were touched since the collection began, and condemns the next batch. Empty: there are no more.
    pub fn condemn_blobs(&mut self, sweep: &mut BlobSweep, blobs_max: usize) -> Vec<(Sha256Hash, u64)> {
        for key in self.fresh.iter().flatten() {
            if let Key::Blob(blob) = key {
                sweep.spare(blob);
            }
        }
        let batch = sweep.next_batch(blobs_max);
        self.condemned = batch.iter().map(|(blob, _)| Key::Blob(*blob)).collect();
        batch
    }

    /// Condemns what an earlier leader may still be deleting.
    pub fn inherit(&mut self, keys: impl IntoIterator<Item = Key>) {
        self.inherited.extend(keys);
    }

    /// What an earlier leader was deleting is gone: whoever waited may look.
    pub fn settle(&mut self) {
        self.inherited.clear();
    }

    /// The condemned batch is gone: whoever waited may look.
    pub fn release(&mut self) {
        self.condemned.clear();
    }

    /// Another leadership begins or this one is over: nothing goes on and nothing is condemned.
    pub fn reset(&mut self) {
        self.end();
        self.settle();
    }

    /// The collection is over, however it ended. What was inherited stays condemned.
    pub fn end(&mut self) {
        self.condemned.clear();
        self.fresh = None;
    }

    /// Returns whether the path is condemned at this moment.
    pub fn is_condemned(&self, part: HashPart) -> bool {
        self.condemned.contains(&Key::Path(part)) || self.inherited.contains(&Key::Path(part))
    }

    fn turn(&mut self, now: Steady) {
        let since_ms = now.0.saturating_sub(self.turned_at.0);
        if since_ms < self.grace_ms {
            return;
        }
        self.old = match since_ms / 2 < self.grace_ms {
            true => core::mem::take(&mut self.young),
            false => BTreeSet::new(),
        };
        self.young.clear();
        self.turned_at = now;
    }
}
