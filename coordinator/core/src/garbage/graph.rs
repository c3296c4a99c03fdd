//! The graph of everything that the store holds, and the mark: what the roots keep, each with who keeps it.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use kiln_wire::{PathInfo, Sha256Hash, StorePath};

use super::HashPart;

/// What is kept besides what a kept object refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// A derivation keeps its outputs, as Nix's `keep-outputs`.
    pub keep_outputs: bool,
    /// A path keeps the derivation that made it, as Nix's `keep-derivations`.
    pub keep_derivations: bool,
}

/// A number of a [`Node`] in its graph.
pub(super) type NodeId = u32;

/// Everything that the store holds, by what needs what.
#[derive(Debug)]
pub struct Graph {
    rules: Rules,
    ids: BTreeMap<HashPart, NodeId>,
    pub(super) nodes: Vec<Node>,
}

/// One store path: what is stored of it, and what it needs.
#[derive(Debug)]
pub(super) struct Node {
    pub path: StorePath,
    /// Of its narinfo, if there is one.
    pub facts: Option<Facts>,
    /// Bytes of its derivation's file, if there is one.
    pub derivation_bytes: Option<u64>,
    /// What it refers to: it must not be there without them.
    pub references: Vec<NodeId>,
    /// What made it, if it keeps that.
    pub keeps: Vec<NodeId>,
    /// What it makes, as far as that is known.
    pub outputs: Vec<NodeId>,
}

/// What a collection needs to know of a published path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// SHA-256 of its blob.
    pub blob: Sha256Hash,
    /// SHA-256 of its NAR.
    pub nar_hash: Sha256Hash,
    /// Size of its blob.
    pub blob_bytes: u64,
}

impl Node {
    /// Returns whether the store holds anything of it, or others only name it.
    pub fn is_stored(&self) -> bool {
        self.facts.is_some() || self.derivation_bytes.is_some()
    }
}

impl Graph {
    /// Returns a graph of nothing.
    pub fn new(rules: Rules) -> Self {
        Self { rules, ids: BTreeMap::new(), nodes: Vec::new() }
    }

    /// Adds a published path.
    pub fn add_path(&mut self, info: &PathInfo) {
        let id = self.intern(&info.path);
        let references: Vec<NodeId> = info.references.iter().map(|path| self.intern(path)).filter(|other| *other != id).collect();
        if let Some(deriver) = &info.deriver {
            let deriver = self.intern(deriver.as_path());
            self.node(deriver).outputs.push(id);
            if self.rules.keep_derivations {
                self.node(id).keeps.push(deriver);
            }
        }
        let node = self.node(id);
        node.references.extend(references);
        node.facts = Some(Facts { blob: info.blob.sha256, nar_hash: info.nar_hash, blob_bytes: info.blob.size_bytes });
    }

    /// Adds a derivation's file: what it refers to (inputs' derivations and sources), and its outputs as far as their paths are known.
    pub fn add_derivation<'a>(
        &mut self,
        path: &StorePath,
        file_bytes: u64,
        references: impl IntoIterator<Item = &'a StorePath>,
        outputs: impl IntoIterator<Item = &'a StorePath>,
    ) {
        let id = self.intern(path);
        let references: Vec<NodeId> = references.into_iter().map(|path| self.intern(path)).collect();
        let outputs: Vec<NodeId> = outputs.into_iter().map(|path| self.intern(path)).collect();
        let node = self.node(id);
        node.derivation_bytes = Some(file_bytes);
        node.references.extend(references);
        node.outputs.extend(outputs);
    }

    /// Adds what an output of a derivation became, by whichever derivation that path was made.
    pub fn add_realisation(&mut self, derivation: &StorePath, path: &StorePath) {
        let (maker, made) = (self.intern(derivation), self.intern(path));
        let outputs = &mut self.node(maker).outputs;
        if !outputs.contains(&made) {
            outputs.push(made);
        }
    }

    /// Returns what derivations make, and with `inputs` also what those that they build on make, as far as it is stored: what a build of
    /// them needs, whatever the rules say.
    pub fn outputs_of<'a>(&'a self, derivations: impl IntoIterator<Item = &'a StorePath>, inputs: bool) -> BTreeSet<HashPart> {
        let mut found = BTreeSet::new();
        for id in derivations.into_iter().filter_map(|path| self.id_of(path.into())) {
            let node = &self.nodes[id as usize];
            let used = node.references.iter().filter(|_| inputs).map(|used| &self.nodes[*used as usize]);
            for maker in core::iter::once(node).chain(used) {
                found.extend(maker.outputs.iter().map(|output| HashPart::from(&self.nodes[*output as usize].path)));
            }
        }
        found
    }

    /// Returns how many paths it has, those among them that are only named.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns whether it has none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Returns the stored paths.
    pub fn paths(&self) -> impl Iterator<Item = &StorePath> {
        self.nodes.iter().filter(|node| node.is_stored()).map(|node| &node.path)
    }

    /// Returns the stored paths that refer to this one.
    pub fn referrers(&self, path: &StorePath) -> BTreeSet<StorePath> {
        let Some(wanted) = self.id_of(path.into()) else { return BTreeSet::new() };
        let refers = |node: &&Node| node.is_stored() && node.references.contains(&wanted);
        self.nodes.iter().filter(refers).map(|node| node.path.clone()).collect()
    }

    /// Marks what the roots keep. O(paths and references); no recursion.
    pub fn mark(&self, roots: &Roots) -> Marks {
        let mut marks = Marks { kept_by: alloc::vec![KeptBy::Nobody; self.nodes.len()] };
        let mut open: Vec<NodeId> = Vec::new();
        for (hash_part, reason) in &roots.held {
            if let Some(id) = self.id_of(*hash_part) {
                marks.mark(id, KeptBy::Root(*reason), &mut open);
            }
        }
        while let Some(id) = open.pop() {
            for needed in self.kept_by(id) {
                marks.mark(needed, KeptBy::Path(id), &mut open);
            }
        }
        marks
    }

    /// Says why a path is kept: the root in words, then the paths from there to it. None: nobody keeps it, or it is not there.
    pub fn why(&self, marks: &Marks, roots: &Roots, path: &StorePath) -> Option<(String, Vec<StorePath>)> {
        let mut chain = Vec::new();
        let mut at = self.id_of(path.into()).filter(|id| self.nodes[*id as usize].is_stored())?;
        loop {
            chain.push(self.nodes[at as usize].path.clone());
            match marks.kept_by[at as usize] {
                KeptBy::Nobody => return None,
                KeptBy::Path(user) => at = user,
                KeptBy::Root(reason) => {
                    chain.reverse();
                    return Some((roots.reasons[reason as usize].clone(), chain));
                }
            }
        }
    }

    /// Returns the stored paths that nobody keeps, or with `live` those that somebody does.
    pub fn marked<'a>(&'a self, marks: &'a Marks, live: bool) -> impl Iterator<Item = &'a StorePath> {
        let chosen = move |(at, node): &(usize, &Node)| node.is_stored() && (marks.kept_by[*at] != KeptBy::Nobody) == live;
        self.nodes.iter().enumerate().filter(chosen).map(|(_, node)| &node.path)
    }

    /// Returns what a path keeps: what it refers to, and what the rules say.
    pub(super) fn kept_by(&self, id: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let node = &self.nodes[id as usize];
        let outputs = node.outputs.iter().filter(|_| self.rules.keep_outputs);
        node.references.iter().chain(&node.keeps).chain(outputs).copied()
    }

    pub(super) fn id_of(&self, hash_part: HashPart) -> Option<NodeId> {
        self.ids.get(&hash_part).copied()
    }

    fn intern(&mut self, path: &StorePath) -> NodeId {
        let next = NodeId::try_from(self.nodes.len()).expect("a graph is bounded by `GARBAGE_PATHS_MAX`");
        let id = *self.ids.entry(path.into()).or_insert(next);
        if id == next {
            let node = Node {
                path: path.clone(),
                facts: None,
                derivation_bytes: None,
                references: Vec::new(),
                keeps: Vec::new(),
                outputs: Vec::new(),
            };
            self.nodes.push(node);
        }
        id
    }

    fn node(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id as usize]
    }
}

/// What must stay, and why. A root that the store does not hold keeps nothing.
#[derive(Clone, Debug, Default)]
pub struct Roots {
    reasons: Vec<String>,
    held: Vec<(HashPart, u32)>,
}

impl Roots {
    /// Adds paths that stay for a reason, which people read.
    pub fn add<'a>(&mut self, reason: &str, paths: impl IntoIterator<Item = &'a StorePath>) {
        self.add_parts(reason, paths.into_iter().map(HashPart::from));
    }

    /// As [`Roots::add`], by hash parts.
    pub fn add_parts(&mut self, reason: &str, parts: impl IntoIterator<Item = HashPart>) {
        let number = u32::try_from(self.reasons.len()).unwrap_or(u32::MAX);
        self.held.extend(parts.into_iter().map(|part| (part, number)));
        self.reasons.push(reason.to_owned());
    }

    /// Returns the roots that a graph holds, each with its reason.
    pub fn of<'a>(&'a self, graph: &'a Graph) -> impl Iterator<Item = (String, StorePath)> + 'a {
        self.held.iter().filter_map(|(part, reason)| {
            let node = &graph.nodes[graph.id_of(*part)? as usize];
            node.is_stored().then(|| (self.reasons[*reason as usize].to_string(), node.path.clone()))
        })
    }
}

/// Who keeps each path of a graph.
#[derive(Clone, Debug)]
pub struct Marks {
    kept_by: Vec<KeptBy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeptBy {
    Nobody,
    /// The root with the reason of this number.
    Root(u32),
    /// Another path, which needs it or keeps it by a rule.
    Path(NodeId),
}

impl Marks {
    fn mark(&mut self, id: NodeId, by: KeptBy, open: &mut Vec<NodeId>) {
        let slot = &mut self.kept_by[id as usize];
        if *slot == KeptBy::Nobody {
            *slot = by;
            open.push(id);
        }
    }

    pub(super) fn keeps(&self, id: NodeId) -> bool {
        self.kept_by[id as usize] != KeptBy::Nobody
    }
}
