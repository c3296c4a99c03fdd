//! What must hold when a run has ended, whatever happened in it. Each check says what it found wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use kiln_coordinator::raft::Consensus;
use kiln_core::Farm;
use kiln_store::Store;
use kiln_wire::{Leader, NodeId};

use crate::told::Line;
use crate::work::Graph;
use crate::worker::Sighting;

/// Who said that it leads.
#[derive(Clone, Debug, Default)]
pub struct Leaders(Arc<Mutex<BTreeSet<Leader>>>);

impl Leaders {
    pub fn note(&self, leader: Leader) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(leader);
    }

    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// One leader a term.
    pub fn check(&self) -> Result<(), String> {
        let mut terms: BTreeMap<u64, NodeId> = BTreeMap::new();
        for leader in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if let Some(other) = terms.insert(leader.term, leader.node) {
                return Err(format!("one leader a term: {other} and {} led in term {}", leader.node, leader.term));
            }
        }
        Ok(())
    }
}

/// Coordinators tell the same of the same entry, and every job is committed once.
pub fn log_lines(lines: &[Line], graphs: &[Graph]) -> Vec<String> {
    let mut breaches = Vec::new();
    let mut entries: BTreeMap<(String, String), BTreeSet<&Line>> = BTreeMap::new();
    let mut committed: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in lines {
        let field = |name: &str| line.fields.get(name).map_or("", String::as_str);
        entries.entry((field("index").to_owned(), field("job").to_owned() + &line.what)).or_default().insert(line);
        if line.what == "committed" {
            committed.entry(field("job")).or_default().insert(field("index"));
        }
    }
    if let Some(((index, _), told)) = entries.iter().find(|(_, told)| told.len() > 1) {
        breaches.push(format!("replicas apply the same: entry {index} is told as {told:?}"));
    }
    if let Some((derivation, indexes)) = committed.iter().find(|(_, indexes)| indexes.len() > 1) {
        breaches.push(format!("a job is committed once: {derivation} was at {indexes:?}"));
    }
    let mut jobs = graphs.iter().flat_map(|graph| &graph.order);
    if let Some(path) = jobs.find(|path| !committed.contains_key(path.as_str())) {
        breaches.push(format!("every job of an ended build is committed: {path} was not"));
    }
    breaches
}

/// Returns how many attempts were made beyond the first of each job. Workers obey no leader below the highest they have seen, no attempt runs on two workers, and no job begins before its inputs are committed.
pub fn workers(sightings: &[Sighting], lines: &[Line], graphs: &[Graph], breaches: &mut Vec<String>) -> u64 {
    let index_of = |line: &Line| line.fields.get("index").and_then(|text| text.parse::<u64>().ok()).unwrap_or(u64::MAX);
    let committed = lines.iter().filter(|line| line.what == "committed");
    let committed: BTreeMap<&str, u64> = committed.map(|line| (line.fields["job"].as_str(), index_of(line))).collect();
    let mut holders = BTreeMap::new();
    let mut attempts: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for sighting in sightings {
        let Sighting::Began { lease, leader, seen } = sighting;
        if leader < seen {
            breaches.push(format!("no deposed leader is obeyed: attempt {} began for {leader:?} after {seen:?}", lease.attempt));
        }
        if holders.insert(lease.attempt, &lease.worker).is_some_and(|other| *other != lease.worker) {
            breaches.push(format!("an attempt is one worker's: {} ran on two", lease.attempt));
        }
        attempts.entry(&lease.derivation).or_default().insert(lease.attempt);
        let job = graphs.iter().find_map(|graph| graph.jobs.get(&lease.derivation)).expect("only jobs of the graphs are dispatched");
        let derivation =
            kiln_nix::derivation::Derivation::parse(&Default::default(), lease.derivation.name(), &job.file.bytes).expect("parses");
        for input in derivation.inputs.keys() {
            if committed.get(input.as_str()).is_none_or(|index| *index > lease.attempt.0) {
                breaches.push(format!(
                    "inputs come first: attempt {} of {} began before {input} was committed",
                    lease.attempt, lease.derivation
                ));
            }
        }
    }
    attempts.values().map(|tries| tries.len() as u64 - 1).sum()
}

/// Every output is in the store, and is what was built.
pub async fn outputs(store: &Store, graphs: &[Graph]) -> Result<(), String> {
    for job in graphs.iter().flat_map(|graph| graph.jobs.values()) {
        let path = &job.output.info.path;
        match store.path_info(path).await {
            Ok(Some(info)) if info.nar_hash == job.output.info.nar_hash => {}
            Ok(Some(info)) => return Err(format!("an output is what was built: {path} has hash {:?}", info.nar_hash)),
            Ok(None) => return Err(format!("an output of an ended build is published: {path} is not")),
            Err(error) => return Err(format!("the store can be read: {error}")),
        }
    }
    Ok(())
}

/// Returns whether all coordinators have applied the same entry; then their farms must be equal.
pub fn replicas(nodes: &[Consensus]) -> Result<bool, String> {
    let applied: BTreeSet<_> = nodes.iter().map(|node| node.metrics().applied_index).collect();
    if applied.len() > 1 {
        return Ok(false);
    }
    let farms: BTreeSet<Vec<u8>> = nodes.iter().map(|node| node.read(Farm::to_snapshot)).collect();
    match farms.len() {
        1 => Ok(true),
        _ => Err(format!("replicas are equal: they differ at entry {applied:?}")),
    }
}

/// The group is whom the operator has left in it, and all of them vote.
pub fn group(nodes: &[Consensus], members: &BTreeSet<NodeId>) -> Result<(), String> {
    for node in nodes {
        let standings = node.members();
        let known: BTreeSet<NodeId> = standings.iter().map(|standing| standing.node).collect();
        let voters: BTreeSet<NodeId> = standings.iter().filter(|standing| standing.votes).map(|standing| standing.node).collect();
        if known != *members || voters != *members {
            let node = node.node();
            return Err(format!("the group is whom the operator has left in it, {members:?}: {node} knows {known:?}, voters {voters:?}"));
        }
    }
    Ok(())
}

/// Nothing keeps a coordinator from taking part once its disk has room.
pub fn room(nodes: &[Consensus]) -> Result<(), String> {
    match nodes.iter().find_map(|node| Some((node.node(), node.trouble()?))) {
        Some((node, trouble)) => Err(format!("every coordinator takes part again once its disk has room: {node} says `{trouble}`")),
        None => Ok(()),
    }
}
