//! The sweep: what goes, in batches, users before what they use, so that no narinfo is ever there without those that it refers to.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use kiln_wire::{Sha256Hash, StorePath};

use super::graph::{Facts, Graph, Marks, NodeId};
use super::{HashPart, Key};

/// Paths that go. Those that are touched, and what they need, are spared as long as their batch has not been handed out.
#[derive(Debug)]
pub struct Sweep {
    graph: Graph,
    fates: Vec<Fate>,
    /// What nobody kept at the mark, users before what they use, in steps: what is in one step needs nothing of the same step.
    order: Vec<(u32, NodeId)>,
    next: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    Waits,
    HandedOut,
}

/// What goes of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doomed {
    /// Which path.
    pub path: StorePath,
    /// Of its narinfo, if it has one.
    pub facts: Option<Facts>,
    /// Bytes of its derivation's file, if it has one.
    pub derivation_bytes: Option<u64>,
    /// Goes only after those of lower steps are gone.
    pub step: u32,
}

impl Sweep {
    /// Prepares to sweep what the marks do not keep; with `only`, no other paths than these.
    pub fn new(graph: Graph, marks: &Marks, only: Option<&BTreeSet<StorePath>>) -> Self {
        let chosen = |id: NodeId| {
            let node = &graph.nodes[id as usize];
            node.is_stored() && !marks.keeps(id) && only.is_none_or(|only| only.contains(&node.path))
        };
        let ids = 0..NodeId::try_from(graph.nodes.len()).expect("a graph is bounded by `GARBAGE_PATHS_MAX`");
        let mut fates: Vec<Fate> = ids.map(|id| if chosen(id) { Fate::Waits } else { Fate::Stays }).collect();
        if only.is_some() {
            spare_what_others_need(&graph, &mut fates);
        }
        let order = order(&graph, &fates);
        Self { graph, fates, order, next: 0 }
    }

    /// Spares a path that somebody relies on, and all that it needs or keeps.
    pub fn spare(&mut self, part: HashPart) {
        let mut open: Vec<NodeId> = self.graph.id_of(part).into_iter().collect();
        while let Some(id) = open.pop() {
            let fate = &mut self.fates[id as usize];
            if *fate == Fate::Waits {
                *fate = Fate::Stays;
                open.extend(self.graph.kept_by(id));
            }
        }
    }

    /// Hands out at most `paths_max` of the next that go. Empty: there are no more.
    pub fn next_batch(&mut self, paths_max: usize) -> Vec<Doomed> {
        let mut batch = Vec::new();
        while batch.len() < paths_max
            && let Some((step, id)) = self.order.get(self.next).copied()
        {
            self.next += 1;
            let fate = &mut self.fates[id as usize];
            if *fate == Fate::Waits {
                *fate = Fate::HandedOut;
                let node = &self.graph.nodes[id as usize];
                let (path, facts, derivation_bytes) = (node.path.clone(), node.facts, node.derivation_bytes);
                batch.push(Doomed { path, facts, derivation_bytes, step });
            }
        }
        batch
    }

    /// Returns what would go if nobody touched anything from here on, users first.
    pub fn outlook(&self) -> impl Iterator<Item = &StorePath> {
        let waits = |(_, id): &&(u32, NodeId)| self.fates[*id as usize] == Fate::Waits;
        self.order.iter().filter(waits).map(|(_, id)| &self.graph.nodes[*id as usize].path)
    }

    /// Returns what the narinfos that were not handed out say of blobs: none of these may go.
    pub fn facts_kept(&self) -> impl Iterator<Item = &Facts> {
        let stays = |(at, _): &(usize, _)| self.fates[*at] != Fate::HandedOut;
        self.graph.nodes.iter().enumerate().filter(stays).filter_map(|(_, node)| node.facts.as_ref())
    }
}

/// Of a choice, what something outside of it refers to cannot go, and neither what that refers to.
fn spare_what_others_need(graph: &Graph, fates: &mut [Fate]) {
    let stored = |id: usize| graph.nodes[id].is_stored();
    let mut open: Vec<NodeId> = Vec::new();
    for (id, node) in graph.nodes.iter().enumerate() {
        if stored(id) && fates[id] == Fate::Stays {
            open.extend(&node.references);
        }
    }
    while let Some(id) = open.pop() {
        if fates[id as usize] == Fate::Waits {
            fates[id as usize] = Fate::Stays;
            open.extend(&graph.nodes[id as usize].references);
        }
    }
}

/// Returns what goes, by steps. What is in a circle, which no store of ours writes, goes last.
fn order(graph: &Graph, fates: &[Fate]) -> Vec<(u32, NodeId)> {
    let goes = |id: NodeId| fates[id as usize] == Fate::Waits;
    let mut users: BTreeMap<NodeId, u32> = BTreeMap::new();
    for (id, node) in (0..).zip(&graph.nodes).filter(|(id, _)| goes(*id)) {
        users.entry(id).or_default();
        for needed in node.references.iter().filter(|needed| goes(**needed)) {
            *users.entry(*needed).or_default() += 1;
        }
    }
    let mut ready: Vec<NodeId> = users.iter().filter(|(_, count)| **count == 0).map(|(id, _)| *id).collect();
    let mut ordered = Vec::with_capacity(users.len());
    let mut step = 0;
    while !ready.is_empty() {
        let mut next = Vec::new();
        for id in ready {
            ordered.push((step, id));
            users.remove(&id);
            for needed in graph.nodes[id as usize].references.iter().filter(|needed| goes(**needed)) {
                if let Some(count) = users.get_mut(needed) {
                    *count -= 1;
                    if *count == 0 {
                        next.push(*needed);
                    }
                }
            }
        }
        ready = next;
        step += 1;
    }
    ordered.extend(users.into_keys().map(|id| (step, id)));
    ordered
}

/// Blobs that go: those that no narinfo names.
#[derive(Debug)]
pub struct BlobSweep {
    waiting: BTreeMap<Sha256Hash, u64>,
}

impl BlobSweep {
    /// Prepares to sweep blobs, each with its size.
    pub fn new(blobs: BTreeMap<Sha256Hash, u64>) -> Self {
        Self { waiting: blobs }
    }

    /// Spares a blob that somebody relies on.
    pub fn spare(&mut self, blob: &Sha256Hash) {
        self.waiting.remove(blob);
    }

    /// Hands out at most `blobs_max` of those that go, with their sizes. Empty: there are no more.
    pub fn next_batch(&mut self, blobs_max: usize) -> Vec<(Sha256Hash, u64)> {
        let mut batch = Vec::new();
        while batch.len() < blobs_max
            && let Some(first) = self.waiting.pop_first()
        {
            batch.push(first);
        }
        batch
    }

    /// Returns how many bytes would go.
    pub fn bytes(&self) -> u64 {
        self.waiting.values().sum()
    }
}

impl Doomed {
    /// Returns the key that is condemned.
    pub fn key(&self) -> Key {
        Key::from(&self.path)
    }
}
