//! What planted bugs do where it takes more than a line. None of this happens without one.

use std::cell::RefCell;
use std::collections::BTreeMap;

use kiln_coordinator::raft::planted;
use kiln_core::{Command, Effect, Farm};
use kiln_store::Location;
use kiln_wire::{AttemptId, LogIndex, NodeId};

use crate::bug::Bug;

/// Has coordinators apply entries wrongly, if that is planted.
pub fn begin() {
    planted::plant(apply);
}

thread_local! {
    /// What a coordinator told as committed, to be told again: that the report is taken, and that its outputs are to be published.
    static AGAIN: RefCell<BTreeMap<NodeId, [Effect; 2]>> = RefCell::default();
}

fn apply(node: NodeId, farm: &mut Farm, index: LogIndex, command: Command) -> Vec<Effect> {
    if Bug::LeavesAnEntryOut.is_planted() && node == NodeId(2) && index.0.is_multiple_of(40) {
        return Vec::new();
    }
    let mut effects = farm.apply(index, command);
    if Bug::CountsOtherwise.is_planted() && node == NodeId(3) {
        for effect in &mut effects {
            if let Effect::Dispatch { lease, .. } = effect {
                lease.attempt = AttemptId(lease.attempt.0 + 1);
            }
        }
    }
    if Bug::CommitsTwice.is_planted() {
        let again = AGAIN.with_borrow_mut(|again| again.remove(&node));
        let taken = effects.iter().find(|effect| matches!(effect, Effect::Acknowledge { .. }));
        let published = effects.iter().find(|effect| matches!(effect, Effect::Publish { .. }));
        let committed = taken.cloned().zip(published.cloned());
        committed.map(|(taken, published)| AGAIN.with_borrow_mut(|again| again.insert(node, [taken, published])));
        effects.extend(again.into_iter().flatten());
    }
    if Bug::SendsToTwo.is_planted() {
        let mut doubled = Vec::new();
        for effect in &effects {
            if let Effect::Dispatch { lease, resources, limits } = effect
                && let Some((worker, epoch)) = farm.registrations().find(|(worker, _)| **worker != lease.worker)
            {
                let mut lease = lease.clone();
                (lease.worker, lease.epoch) = (worker.clone(), epoch);
                doubled.push(Effect::Dispatch { lease, resources: *resources, limits: *limits });
            }
        }
        effects.extend(doubled);
    }
    effects
}

/// Spoils the store, if that is planted.
pub async fn spoil(store: &Location) {
    let Location::Objects(objects) = store else { return };
    if !Bug::LosesAnObject.is_planted() && !Bug::Rots.is_planted() {
        return;
    }
    let listed = objects.list_with_delimiter(None).await.expect("memory can be listed");
    let infos = listed.objects.into_iter().map(|object| object.location).filter(|path| path.extension() == Some("narinfo"));
    for info in infos {
        if Bug::Rots.is_planted() {
            objects.put_opts(&info, "rot".into(), Default::default()).await.expect("memory can be written");
        } else {
            objects.rename_opts(&info, &"lost".into(), Default::default()).await.expect("memory can be written");
            return;
        }
    }
}
