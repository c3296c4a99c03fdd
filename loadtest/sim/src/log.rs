//! A modelled replicated log: entries, and what one coordinator's disk keeps of it. A crash loses what was not synced, or a part of it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use kiln_core::Command;
use kiln_wire::{Leader, NodeId};

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its position, from 1 on.
    pub index: u64,
    /// Who wrote it, in which term.
    pub leader: Leader,
    pub body: Body,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// A leader's first entry.
    Blank,
    Command(Command),
    /// The voters from here on, whether committed or not.
    Members(BTreeSet<NodeId>),
}

/// The state at a position, in place of the entries up to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub index: u64,
    pub term: u64,
    pub members: BTreeSet<NodeId>,
    pub bytes: Rc<[u8]>,
}

/// What survives a crash.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    /// The highest term that the node took part in.
    pub term: u64,
    pub snapshot: Option<Rc<Snapshot>>,
    /// Entries behind the snapshot, in order.
    entries: BTreeMap<u64, Rc<Entry>>,
    /// The last entry that a crash keeps.
    pub synced: u64,
    /// Takes no more writes.
    pub full: bool,
    /// How often entries were removed: a sync that was asked for before says nothing of what came in their place.
    pub cuts: u64,
    /// The voters that the node starts with.
    founders: BTreeSet<NodeId>,
}

impl Disk {
    /// An empty disk of a farm that these coordinators founded.
    pub fn new(founders: BTreeSet<NodeId>) -> Self {
        Self { term: 0, snapshot: None, entries: BTreeMap::new(), synced: 0, full: false, cuts: 0, founders }
    }

    /// Returns the last entry's position and term.
    pub fn last(&self) -> (u64, u64) {
        let in_log = self.entries.values().next_back().map(|entry| (entry.index, entry.leader.term));
        in_log.unwrap_or_else(|| self.base())
    }

    /// Returns the position and term that the entries follow.
    pub fn base(&self) -> (u64, u64) {
        self.snapshot.as_ref().map_or((0, 0), |snapshot| (snapshot.index, snapshot.term))
    }

    /// Returns the term of the entry at a position, if the log or the snapshot tells.
    pub fn term_at(&self, index: u64) -> Option<u64> {
        let base = self.base();
        if index == base.0 { Some(base.1) } else { self.entries.get(&index).map(|entry| entry.leader.term) }
    }

    /// Returns an entry.
    pub fn entry(&self, index: u64) -> Option<&Rc<Entry>> {
        self.entries.get(&index)
    }

    /// Returns at most `count` entries from a position on.
    pub fn from(&self, index: u64, count: usize) -> Vec<Rc<Entry>> {
        self.entries.range(index..).take(count).map(|(_, entry)| entry.clone()).collect()
    }

    /// Returns the voters as the log says.
    pub fn members(&self) -> &BTreeSet<NodeId> {
        self.members_up_to(u64::MAX)
    }

    /// Returns the voters as of a position.
    pub fn members_up_to(&self, index: u64) -> &BTreeSet<NodeId> {
        let named = self.entries.range(..=index).rev().find_map(|(_, entry)| match &entry.body {
            Body::Members(members) => Some(members),
            Body::Blank | Body::Command(_) => None,
        });
        named.or_else(|| self.snapshot.as_ref().map(|snapshot| &snapshot.members)).unwrap_or(&self.founders)
    }

    /// Returns the position of the last change of voters in the log.
    pub fn members_at(&self) -> u64 {
        let change = self.entries.values().rev().find(|entry| matches!(entry.body, Body::Members(_)));
        change.map_or(0, |entry| entry.index)
    }

    /// Appends an entry, in the place of what was there and behind.
    pub fn append(&mut self, entry: Rc<Entry>) {
        self.cut(entry.index);
        self.entries.insert(entry.index, entry);
    }

    /// Removes an entry and all behind it.
    pub fn cut(&mut self, index: u64) {
        if !self.entries.split_off(&index).is_empty() {
            self.cuts += 1;
        }
        self.synced = self.synced.min(index - 1);
    }

    /// Loses what was not synced, except for a first part of `kept` entries that the disk had by chance.
    pub fn crash(&mut self, kept: u64) {
        let first_lost = (self.synced + 1).saturating_add(kept);
        self.entries.split_off(&first_lost);
        self.synced = self.last().0;
    }

    /// Puts a snapshot in the place of the entries up to it.
    pub fn compact(&mut self, snapshot: Snapshot) {
        self.entries = self.entries.split_off(&(snapshot.index + 1));
        self.snapshot = Some(Rc::new(snapshot));
    }

    /// Takes a snapshot of a leader. Entries that follow it stay if they belong to it.
    pub fn install(&mut self, snapshot: &Rc<Snapshot>) {
        let belongs = self.term_at(snapshot.index) == Some(snapshot.term);
        self.entries = if belongs { self.entries.split_off(&(snapshot.index + 1)) } else { BTreeMap::new() };
        self.synced = if belongs { self.synced.max(snapshot.index) } else { snapshot.index };
        self.snapshot = Some(snapshot.clone());
    }
}
