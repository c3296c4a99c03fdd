//! What lies in the cache, by memory: paths, pins, the order of last use, and the bytes that all of it takes. Touches no disk but the
//! ledger.

use std::collections::BTreeMap;

use kiln_wire::{PathInfo, StorePath};

use super::ledger::{Ledger, Line};
use super::links::{Shared, Swept};

/// The paths of a cache. No operation leaves it half changed.
#[derive(Debug)]
pub struct Index {
    pub entries: BTreeMap<StorePath, Entry>,
    /// Unpinned entries by last use: the first is removed first.
    pub idle: BTreeMap<u64, StorePath>,
    /// Bytes that belong to single paths.
    own_bytes: u64,
    /// Bytes of shared files, each counted once.
    links_bytes: u64,
    /// Shared bytes of paths that were removed, of which is not yet known whether others have them.
    leaving_bytes: u64,
    /// A sweep will tell.
    sweeping: bool,
    clock: u64,
    ledger: Ledger,
}

/// One path.
#[derive(Debug)]
pub struct Entry {
    pub line: Line,
    pub used: u64,
    pub pins: u32,
}

impl Index {
    /// Starts without paths, when shared files of `links_bytes` are there.
    pub fn new(ledger: Ledger, links_bytes: u64) -> Self {
        let (entries, idle) = (BTreeMap::new(), BTreeMap::new());
        Self { entries, idle, own_bytes: 0, links_bytes, leaving_bytes: 0, sweeping: false, clock: 0, ledger }
    }

    /// Returns the bytes that the cache takes. What removed paths shared is taken for free until a sweep has looked.
    pub fn bytes(&self) -> u64 {
        self.own_bytes + self.links_bytes.saturating_sub(self.leaving_bytes)
    }

    /// Says whether a sweep is due: once what is only taken for free passes `bytes_max`, and none is under way. The caller starts it.
    pub fn wants_sweep(&mut self, bytes_max: u64) -> bool {
        let due = self.leaving_bytes > bytes_max && !self.sweeping;
        self.sweeping |= due;
        due
    }

    /// Returns what a sweep that starts now will have looked at.
    pub fn leaving_bytes(&self) -> u64 {
        self.leaving_bytes
    }

    /// Takes in what a sweep has found, which had `looked_at` so many bytes of removed paths.
    pub fn swept(&mut self, swept: Swept, looked_at: u64) {
        self.links_bytes = self.links_bytes.saturating_sub(swept.freed_bytes);
        self.leaving_bytes = self.leaving_bytes.saturating_sub(looked_at);
        self.sweeping = false;
    }

    /// Counts the files that a tree shares from now on, whatever becomes of the tree.
    pub fn shared(&mut self, shared: Shared) {
        self.links_bytes += shared.new_bytes;
    }

    /// Counts the files of a tree that was shared and is not kept.
    pub fn unshared(&mut self, shared: Shared) {
        self.leaving_bytes += shared.new_bytes;
    }

    /// Whether the path is there with this content, known to be whole.
    pub fn has(&self, info: &PathInfo) -> bool {
        self.entries.get(&info.path).is_some_and(|entry| entry.line.nar_hash == info.nar_hash && entry.line.proven)
    }

    /// Adds an unpinned entry that is not there yet.
    pub fn insert(&mut self, path: StorePath, line: Line) {
        let line = Line { shared_bytes: line.shared_bytes.min(line.nar_size_bytes), ..line };
        self.clock += 1;
        self.own_bytes += line.nar_size_bytes - line.shared_bytes;
        self.idle.insert(self.clock, path.clone());
        self.entries.insert(path, Entry { line, used: self.clock, pins: 0 });
    }

    /// Drops an entry.
    pub fn forget(&mut self, path: &StorePath) {
        if let Some(entry) = self.entries.remove(path) {
            self.idle.remove(&entry.used);
            self.own_bytes -= entry.line.nar_size_bytes - entry.line.shared_bytes;
            self.leaving_bytes += entry.line.shared_bytes;
        }
    }

    /// Keeps an entry that is there.
    pub fn pin(&mut self, path: &StorePath) {
        let entry = self.entries.get_mut(path).expect("only present entries are pinned");
        self.idle.remove(&entry.used);
        entry.pins += 1;
    }

    /// Gives one pin of an entry up.
    pub fn unpin(&mut self, path: &StorePath) {
        let entry = self.entries.get_mut(path).expect("pinned entries are not removed");
        entry.pins -= 1;
        if entry.pins == 0 {
            self.clock += 1;
            entry.used = self.clock;
            self.idle.insert(self.clock, path.clone());
        }
    }

    /// Writes an entry's line. A path whose line is lost is fetched again after a restart; nothing worse happens.
    pub fn note(&mut self, path: &StorePath, line: &Line) {
        if let Err(err) = self.ledger.append(path, line) {
            tracing::warn!(%path, %err, "write the store cache's ledger");
        }
    }
}
