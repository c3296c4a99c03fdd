//! Tells how far raft is and who leads.
//!
//! This node leads when raft says so, an entry of its own term is applied (so everything of earlier terms is), and a quorum has
//! answered within the longest election wait: until then nobody else can have been elected. When that time runs out it leads no
//! more, which openraft itself notes only when somebody proposes. Once it hands over it answers nobody as leader: those that are
//! asked to vote for its heir do so at once.

use std::collections::BTreeMap;
use std::time::Duration;

use kiln_wire::{Leader, NodeId};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{Instant as _, RaftMetrics, ServerState};
use tokio::sync::watch;
use tokio::time::Instant;

use super::api::Leadership;
use super::member::Member;
use super::node::Raft;
use super::types::TypeConfig;
use super::wal::Room;

/// How far this node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Raft's term.
    pub term: u64,
    /// Index of the last entry.
    pub last_log: u64,
    /// Index up to which a snapshot reaches.
    pub snapshot: u64,
    /// Why raft cannot go on.
    pub failed: Option<String>,
    /// Who leads in this term, if anybody.
    pub leader: Option<NodeId>,
    /// Who belongs to the group.
    pub members: BTreeMap<NodeId, Member>,
    /// Who of them votes. While the voters change, only those who vote before and after.
    pub voters: Vec<NodeId>,
    /// The voters change: whoever began it must end it, or else the next leader.
    pub is_changing: bool,
    /// Until when this node leads for all that is known; none if it does not, or hands over.
    pub leads_until: Option<Instant>,
    /// How far the others are; of a leader only.
    pub matched: BTreeMap<NodeId, u64>,
    /// When they last answered; of a leader only.
    pub heard: BTreeMap<NodeId, Instant>,
    /// Since when they have been waited for: since this node leads, and each is a member; of a leader only.
    pub awaited: BTreeMap<NodeId, Instant>,
}

/// What is followed, beside raft.
pub struct Watched {
    /// This node.
    pub node: NodeId,
    /// How long a quorum's answer counts.
    pub lease: Duration,
    /// Whether the log can be written.
    pub room: watch::Receiver<Room>,
    /// The last term in which this node has handed over.
    pub handed_over: watch::Receiver<u64>,
    /// Why this node cannot read what it was sent.
    pub unreadable: watch::Receiver<Option<String>>,
}

/// Follows raft until it ends.
pub async fn follow(raft: Raft, watched: Watched, progress: watch::Sender<Progress>, leadership: watch::Sender<Leadership>) {
    let Watched { node, lease, mut room, mut handed_over, mut unreadable } = watched;
    let mut metrics = raft.metrics();
    drop(raft);
    loop {
        let seen = metrics.borrow_watched().clone();
        // A leader whose log cannot be written must not look like one: what is asked of it waits for room.
        let until = leads_until(&seen, node, lease).filter(|_| *room.borrow_and_update() != Room::None);
        let answers_until = until.filter(|_| *handed_over.borrow_and_update() < seen.current_term);
        progress.send_if_modified(|known| {
            let mut seen = Progress::of(&seen);
            seen.awaited = seen.awaits(node, known, Instant::now());
            let failed = unreadable.borrow_and_update().clone().or_else(|| seen.failed.clone());
            let fresh = Progress { leads_until: answers_until, failed, ..seen };
            let differs = *known != fresh;
            *known = fresh;
            differs
        });
        tell_leadership(&seen, until.is_some_and(|until| Instant::now() < until), node, &leadership);
        let expiry = async {
            match until {
                Some(until) if Instant::now() < until => tokio::time::sleep_until(until).await,
                Some(_) | None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = metrics.changed() => if changed.is_err() { return },
            Ok(()) = room.changed() => {}
            Ok(()) = handed_over.changed() => {}
            Ok(()) = unreadable.changed() => {}
            () = expiry => {}
        }
    }
}

/// Returns until when this node leads for all that is known; none if it does not.
fn leads_until(seen: &RaftMetrics<TypeConfig>, node: NodeId, lease: Duration) -> Option<Instant> {
    let applied_own = seen.last_applied.is_some_and(|last| last.leader_id.term == seen.current_term && last.leader_id.node_id == node.0);
    if seen.state != ServerState::Leader || seen.current_leader != Some(node.0) || !applied_own {
        return None;
    }
    let voters = &seen.membership_config;
    if voters.voter_ids().all(|voter| voter == node.0) {
        return Some(Instant::now() + ALONE);
    }
    seen.last_quorum_acked.as_ref().map(|acked| ago(acked.elapsed()) + lease)
}

fn tell_leadership(seen: &RaftMetrics<TypeConfig>, leads: bool, node: NodeId, leadership: &watch::Sender<Leadership>) {
    leadership.send_if_modified(|known| {
        let leader = match seen.current_leader {
            Some(leader) if seen.current_term >= known.leader.term => Leader { term: seen.current_term, node: NodeId(leader) },
            Some(_) | None => known.leader,
        };
        let fresh = Leadership { leader, is_self: leads && leader.node == node };
        let differs = *known != fresh;
        *known = fresh;
        differs
    });
}

impl Progress {
    fn of(seen: &RaftMetrics<TypeConfig>) -> Self {
        let members = &seen.membership_config;
        let sets = members.membership().get_joint_config();
        Self {
            term: seen.current_term,
            last_log: seen.last_log_index.unwrap_or(0),
            snapshot: seen.snapshot.map_or(0, |last| last.index),
            failed: seen.running_state.as_ref().err().map(|err| err.to_string()),
            leader: seen.current_leader.map(NodeId),
            members: members.nodes().map(|(node, member)| (NodeId(*node), member.clone())).collect(),
            voters: members.voter_ids().filter(|voter| sets.iter().all(|set| set.contains(voter))).map(NodeId).collect(),
            is_changing: sets.len() > 1,
            leads_until: None,
            matched: seen
                .replication
                .iter()
                .flatten()
                .map(|(node, matched)| (NodeId(*node), matched.map_or(0, |last| last.index)))
                .collect(),
            heard: seen.heartbeat.iter().flatten().filter_map(|(node, at)| Some((NodeId(*node), ago(at.as_ref()?.elapsed())))).collect(),
            awaited: BTreeMap::new(),
        }
    }

    /// Returns since when a node has waited for the others, if it leads; `known` is what was known before. Whoever never answers this leader,
    /// as the one before it that died, has been silent for that long.
    fn awaits(&self, node: NodeId, known: &Self, now: Instant) -> BTreeMap<NodeId, Instant> {
        if self.leader != Some(node) {
            return BTreeMap::new();
        }
        let before = Some(&known.awaited).filter(|_| known.term == self.term);
        let since = |of: &NodeId| before.and_then(|awaited| awaited.get(of)).copied().unwrap_or(now);
        self.members.keys().filter(|of| **of != node).map(|of| (*of, since(of))).collect()
    }

    /// Returns for how long a member has not answered this leader.
    pub fn silence(&self, of: NodeId) -> Option<Duration> {
        self.heard.get(&of).or_else(|| self.awaited.get(&of)).map(Instant::elapsed)
    }
}

fn ago(elapsed: Duration) -> Instant {
    let now = Instant::now();
    now.checked_sub(elapsed).unwrap_or(now)
}

/// How long a group of one looks ahead: nobody else can be elected.
const ALONE: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_never_answered_a_leader_is_silent_since_it_took_over_or_they_came() {
        let [own, dead, new] = [1, 2, 3].map(NodeId);
        let member = Member::default;
        let of = |leader: NodeId, term: u64, members: &[NodeId]| Progress {
            term,
            leader: Some(leader),
            members: members.iter().map(|node| (*node, member())).collect(),
            ..Progress::default()
        };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut known = of(dead, 1, &[own, dead]);
        let mut step = |fresh: Progress, seconds: u64| {
            known = Progress { awaited: fresh.awaits(own, &known, at(seconds)), ..fresh };
            known.awaited.clone()
        };
        assert_eq!(step(of(dead, 1, &[own, dead]), 0), BTreeMap::new(), "who follows waits for nobody");
        assert_eq!(step(of(own, 2, &[own, dead]), 5), BTreeMap::from([(dead, at(5))]));
        assert_eq!(step(of(own, 2, &[own, dead, new]), 9), BTreeMap::from([(dead, at(5)), (new, at(9))]));
        assert_eq!(step(of(own, 4, &[own, dead]), 20), BTreeMap::from([(dead, at(20))]), "another term is another leadership");
        assert!(known.silence(dead).is_some() && known.silence(new).is_none());
    }
}
