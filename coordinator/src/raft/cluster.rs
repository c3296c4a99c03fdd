//! Who belongs to the group: adding, removing, handing over. Runs at the leader.
//!
//! Goals: a number is never used by two directories; a group keeps a quorum that answers; a learner votes once it is in step, and
//! no sooner. One change at a time. Non-goals: starting or stopping processes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kiln_wire::NodeId;
use openraft::ChangeMembers;
use openraft::errors::ClientWriteError;
use tokio::sync::{Mutex, mpsc, oneshot, watch};

use super::follow::Progress;
use super::member::{DirectoryId, Member};
use super::network::{Dial, Host, Introduction, LaneError, Moved, Pace, Route, chain, open};
use super::types::{Change, TypeConfig};
use super::wal::Room;

/// A change of the group that was refused or did not come about.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// This node does not lead.
    #[error("this coordinator does not lead: ask the leader")]
    NotLeader,
    /// This node has no identity towards others.
    #[error("this coordinator runs alone: it has no identity towards others")]
    Alone,
    /// The new coordinator cannot be reached.
    #[error("add coordinator {node}: reach it at `{link}`")]
    Unreachable {
        /// Which.
        node: NodeId,
        /// Where.
        link: String,
        /// Why not.
        #[source]
        source: Box<LaneError>,
    },
    /// A rule of the group forbids it.
    #[error("{operation} coordinator {node}: {why}")]
    Refused {
        /// What was asked.
        operation: &'static str,
        /// Of which coordinator.
        node: NodeId,
        /// The rule, and what to do.
        why: String,
    },
    /// Raft did not carry it out.
    #[error("{operation} coordinator {node}: whether it was carried out is unknown ({why}); look at `kiln cluster status`")]
    Unknown {
        /// What was asked.
        operation: &'static str,
        /// Of which coordinator.
        node: NodeId,
        /// Raft's words.
        why: String,
    },
    /// Consensus has stopped.
    #[error("consensus has stopped")]
    Stopped,
}

/// What is asked of the group.
#[derive(Debug)]
pub enum Order {
    /// Take in the coordinator that listens there, or note that it listens somewhere else.
    Add { node: NodeId, link: String },
    /// Let it go for good.
    Remove { node: NodeId },
    /// Let it lead; anybody who is in step if none is named.
    HandOver { to: Option<NodeId> },
}

/// An order and who waits for it.
#[derive(Debug)]
pub struct Ordered {
    /// What is asked.
    pub order: Order,
    /// Told what became of it.
    pub done: oneshot::Sender<Result<(), ClusterError>>,
}

/// What orders are carried out with.
#[derive(Debug)]
pub struct Group {
    /// This node.
    pub host: Arc<Host>,
    /// How to reach a coordinator that is no member yet.
    pub dial: Option<Dial>,
    /// How fast things go.
    pub pace: Pace,
    /// Where coordinators are that have moved.
    pub moved: Moved,
    /// How far everybody is.
    pub progress: watch::Receiver<Progress>,
    /// Told the term in which this node hands over.
    pub handed_over: watch::Sender<u64>,
    /// Held during a change.
    pub changing: Mutex<()>,
}

/// Carries out orders, and makes voters of learners that are in step, until raft ends.
pub async fn run(group: Arc<Group>, mut orders: mpsc::UnboundedReceiver<Ordered>) {
    loop {
        tokio::select! {
            ordered = orders.recv() => {
                let Some(Ordered { order, done }) = ordered else { return };
                let group = Arc::clone(&group);
                tokio::spawn(async move {
                    // Whoever asked may have gone.
                    let _ = done.send(group.carry_out(order).await);
                });
            }
            () = group.something_to_tend() => group.tend().await,
        }
    }
}

/// While there is no room for the log, has another coordinator lead and does not stand for election; ends with the log.
pub async fn mind_the_disk(group: &Group, mut room: watch::Receiver<Room>) {
    loop {
        let short = *room.borrow_and_update() != Room::Enough;
        group.host.raft.runtime_config().elect(!short);
        if short && group.leading().is_ok_and(|now| now.voters.len() > 1) {
            match group.hand_over(None).await {
                Ok(()) => tracing::warn!("the disk is full: another coordinator leads"),
                Err(error) => tracing::warn!(error = chain(&error), "the disk is full, and no other coordinator can lead"),
            }
        }
        let again = async {
            if short {
                tokio::time::sleep(HAND_OVER_RETRY).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            changed = room.changed() => if changed.is_err() { return },
            () = again => {}
        }
    }
}

impl Group {
    async fn carry_out(&self, order: Order) -> Result<(), ClusterError> {
        match order {
            Order::Add { node, link } => self.add(node, link).await,
            Order::Remove { node } => self.remove(node).await,
            Order::HandOver { to } => self.hand_over(to).await,
        }
    }

    async fn add(&self, node: NodeId, link: String) -> Result<(), ClusterError> {
        let refused = |why: String| ClusterError::Refused { operation: "add", node, why };
        let unreachable = |source| ClusterError::Unreachable { node, link: link.clone(), source };
        let _alone = self.changing.lock().await;
        let now = self.leading()?;
        let dial = self.dial.clone().ok_or(ClusterError::Alone)?;
        let own = &self.host.member.link;
        if own.parse::<SocketAddr>().is_ok_and(|own| own.ip().is_unspecified()) {
            let why = format!("nobody can reach the leader itself at `{own}`: set `advertise` in its configuration and restart it");
            return Err(refused(why));
        }
        let member = Member { link: link.clone(), ..Member::default() };
        let host = &self.host;
        let dial_max = Duration::from_secs(5);
        let (from, directory, moved) = (host.node, host.member.directory, Moved::default());
        let versions = host.versions.clone();
        let route = Route { from, directory, to: node, member, moved, versions, dial_max };
        let (_connection, found) = open(dial, route).await.map_err(|source| unreachable(Box::new(source)))?;
        if let Some(why) = found.program.objection(host.versions.farm()) {
            return Err(refused(why));
        }
        let directories = host.machine.state().directories.clone();
        if let Some(why) = objection(&now, &directories, node, &found, &host.common) {
            return Err(refused(why));
        }
        // The address that worked from here counts, whatever the other side calls itself.
        let member = Member { link, ..found.member };
        let change = match now.members.get(&node) {
            Some(known) if *known == member => return Ok(()),
            Some(known) if !known.directory.may_be(member.directory) => return Err(refused(used(node, known.directory))),
            Some(_) => {
                self.moved.note(node, member.link.clone());
                ChangeMembers::SetNodes([(node.0, member)].into())
            }
            None => ChangeMembers::AddNodes([(node.0, member)].into()),
        };
        self.change("add", node, change, true).await
    }

    async fn remove(&self, node: NodeId) -> Result<(), ClusterError> {
        let refused = |why: &str| ClusterError::Refused { operation: "remove", node, why: why.to_owned() };
        let _alone = self.changing.lock().await;
        let now = self.leading()?;
        if !now.members.contains_key(&node) {
            // Who asks again, for the answer got lost, has what was wanted.
            let was_member = self.host.machine.state().directories.contains_key(&node);
            return if was_member { Ok(()) } else { Err(refused("it is no member; `kiln cluster status` lists these")) };
        }
        if !now.voters.contains(&node) {
            return self.change("remove", node, ChangeMembers::RemoveNodes([node.0].into()), false).await;
        }
        let left: Vec<NodeId> = now.voters.iter().copied().filter(|voter| *voter != node).collect();
        if left.is_empty() {
            return Err(refused("it is the last voter: the farm's state would be lost with it"));
        }
        let answer = left.iter().filter(|voter| **voter == self.host.node || self.answers(&now, **voter)).count();
        if answer <= left.len() / 2 {
            return Err(refused("too few of those that are left answer: they could not go on. Bring one back first"));
        }
        self.change("remove", node, ChangeMembers::RemoveVoters([node.0].into()), false).await
    }

    async fn hand_over(&self, to: Option<NodeId>) -> Result<(), ClusterError> {
        let _alone = self.changing.lock().await;
        let now = self.leading()?;
        let me = self.host.node;
        let others = now.voters.iter().copied().filter(|voter| *voter != me);
        let best = || others.filter(|voter| self.is_in_step(&now, *voter)).max_by_key(|voter| now.matched.get(voter).copied());
        let refused = |node, why: &str| ClusterError::Refused { operation: "transfer to", node, why: why.to_owned() };
        let to = match to {
            Some(to) if to == me => return Ok(()),
            Some(to) if !now.voters.contains(&to) => return Err(refused(to, "it is no voter")),
            Some(to) if !self.answers(&now, to) => return Err(refused(to, "it does not answer")),
            Some(to) if !self.is_in_step(&now, to) => return Err(refused(to, "it lags behind: wait until it is in step")),
            Some(to) => to,
            None => best().ok_or_else(|| refused(me, "no other voter is in step"))?,
        };
        let unknown = |why: &str| ClusterError::Unknown { operation: "transfer to", node: to, why: why.to_owned() };
        let mut progress = self.progress.clone();
        let term = now.term;
        // The heir need not wait until this node's time has run out: nobody may hear of the old state from here on.
        self.handed_over.send_replace(term);
        progress.wait_for(|seen| seen.leads_until.is_none() || seen.term > term).await.map_err(|_| ClusterError::Stopped)?;
        self.host.raft.trigger().transfer_leader(to.0).await.map_err(|_| ClusterError::Stopped)?;
        let taken = progress.wait_for(|seen| seen.term > term && seen.leader.is_some());
        let taken = tokio::time::timeout(self.patience(), taken).await.map(|taken| taken.map(drop));
        match taken {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(ClusterError::Stopped),
            Err(_) => {
                // Raft takes no proposals from the moment of the hand-over on: only another election ends that.
                self.host.raft.trigger().elect(false).await.map_err(|_| ClusterError::Stopped)?;
                Err(unknown("the other coordinator did not take over in time"))
            }
        }
    }

    /// Waits until there may be something to do for a leader, and a moment longer.
    async fn something_to_tend(&self) {
        let me = self.host.node;
        let is_due = |now: &Progress| {
            let has_moved = now.members.get(&me).is_some_and(|known| *known != self.host.member);
            let can_rise = self.host.versions.farm() < self.host.versions.own().newest;
            now.leader == Some(me) && (now.is_changing || has_moved || can_rise || now.members.len() > now.voters.len())
        };
        if self.progress.clone().wait_for(is_due).await.is_err() {
            // Raft has ended, and with it this node is about to.
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(PROMOTE_EVERY).await;
    }

    /// What a leader does by itself: ends a change that an earlier leader began, notes where it listens, makes a voter of a learner
    /// that is in step, and raises the farm's version once every member can read the next one.
    async fn tend(&self) {
        let Ok(_alone) = self.changing.try_lock() else { return };
        let Ok(now) = self.leading() else { return };
        let me = self.host.node;
        let moved = now.members.get(&me).filter(|known| **known != self.host.member);
        let learner = now.members.keys().find(|node| !now.voters.contains(node) && self.is_in_step(&now, **node)).copied();
        let (operation, node, change) = match (now.is_changing, moved, learner) {
            (true, _, _) => ("end a change begun before", me, ChangeMembers::AddVoterIds([].into())),
            (false, Some(_), _) => ("move", me, ChangeMembers::SetNodes([(me.0, self.host.member.clone())].into())),
            (false, None, Some(learner)) => ("promote", learner, ChangeMembers::AddVoterIds([learner.0].into())),
            (false, None, None) => return self.raise(&now).await,
        };
        match self.change(operation, node, change, true).await {
            Ok(()) => tracing::info!(%node, operation, "changed the group"),
            Err(error) => tracing::warn!(%node, operation, %error, "change the group"),
        }
    }

    /// Raises a farm without another member to what this coordinator speaks.
    ///
    /// # Errors
    /// [`ClusterError::Stopped`] if raft takes no entries.
    pub async fn raise_alone(&self) -> Result<(), ClusterError> {
        let versions = &self.host.versions;
        let is_alone = self.host.machine.state().members.membership().nodes().count() == 1;
        while is_alone && versions.farm() < versions.own().newest {
            self.host.raft.client_write(Change::Raise(versions.farm().next())).await.map_err(|_| ClusterError::Stopped)?;
        }
        Ok(())
    }

    /// Raises the farm to the next version if every member answers, and said so when it was last greeted that it speaks that.
    async fn raise(&self, now: &Progress) {
        let versions = &self.host.versions;
        let to = versions.farm().next();
        let speaks = |node: NodeId| match node == self.host.node {
            true => versions.speaks(None, to),
            false => self.answers(now, node) && versions.speaks(Some(node), to),
        };
        if !now.members.keys().all(|node| speaks(*node)) {
            return;
        }
        match tokio::time::timeout(CHANGE_MAX, self.host.raft.client_write(Change::Raise(to))).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(version = to.0, %error, "raise the farm's version"),
            Err(_) => tracing::warn!(version = to.0, "raise the farm's version: too few coordinators answer"),
        }
    }

    /// Changes the members; what is removed stays as a learner if `retain` says so.
    async fn change(
        &self,
        operation: &'static str,
        node: NodeId,
        change: ChangeMembers<u64, Member>,
        retain: bool,
    ) -> Result<(), ClusterError> {
        let unknown = |why: String| ClusterError::Unknown { operation, node, why };
        let changed = tokio::time::timeout(CHANGE_MAX, self.host.raft.change_membership(change, retain)).await;
        match changed.map_err(|_| unknown("too few coordinators answer".to_owned()))? {
            Ok(_) => Ok(()),
            Err(err) => match err.into_api_error() {
                Some(ClientWriteError::<TypeConfig>::ForwardToLeader(_)) => Err(ClusterError::NotLeader),
                Some(ClientWriteError::ChangeMembershipError(err)) => Err(ClusterError::Refused { operation, node, why: err.to_string() }),
                Some(err @ (ClientWriteError::LogEntryDiscarded(_) | ClientWriteError::PreconditionFailed(_))) => {
                    Err(unknown(err.to_string()))
                }
                None => Err(ClusterError::Stopped),
            },
        }
    }

    fn leading(&self) -> Result<Progress, ClusterError> {
        let now = self.progress.borrow().clone();
        if now.leader == Some(self.host.node) && now.failed.is_none() { Ok(now) } else { Err(ClusterError::NotLeader) }
    }

    fn answers(&self, now: &Progress, node: NodeId) -> bool {
        now.heard.get(&node).is_some_and(|at| at.elapsed() < self.patience())
    }

    fn is_in_step(&self, now: &Progress, node: NodeId) -> bool {
        let matched = now.matched.get(&node).copied().unwrap_or(0);
        self.answers(now, node) && now.last_log.saturating_sub(matched) <= IN_STEP_ENTRIES
    }

    /// How long a coordinator may say nothing and still count as one that answers.
    fn patience(&self) -> Duration {
        Duration::from_millis(2 * self.pace.election_ms[1])
    }
}

/// Returns why a coordinator that says so of itself cannot be a member.
fn objection(
    now: &Progress,
    directories: &BTreeMap<NodeId, DirectoryId>,
    node: NodeId,
    found: &Introduction,
    common: &super::network::Common,
) -> Option<String> {
    let directory = found.member.directory;
    // A leader that was deposed while it added this one has sent it entries of this very group.
    let is_ours = || is_of_this_group(&found.directories, directories);
    match directories.get(&node).copied() {
        Some(known) if !known.may_be(directory) => {
            return Some(used(node, known));
        }
        Some(_) if !now.members.contains_key(&node) => {
            return Some(format!("number {node} was removed: a number is never used again, wipe its directory and choose a new one"));
        }
        Some(_) => {}
        None if found.has_group && !is_ours() => {
            return Some("it belongs to another group already: wipe its directory and set `join` in its configuration".to_owned());
        }
        None => {}
    }
    let differs = common.iter().find(|(name, ours)| found.common.get(*name) != Some(*ours));
    differs.map(|(name, ours)| {
        let theirs = found.common.get(name).map_or("none", String::as_str);
        format!("its {name} is `{theirs}`, that of the farm `{ours}`: all coordinators of a farm need the same")
    })
}

fn used(node: NodeId, known: DirectoryId) -> String {
    format!("number {node} was used by another directory ({known}): a number is never used again, choose a new one")
}

/// Returns whether a log can be of this group: it names directories, and all of them are on record here. A group that was restored from
/// the same backup has one at least that is not: that of whoever restored it, who votes there.
fn is_of_this_group(named: &BTreeMap<NodeId, DirectoryId>, on_record: &BTreeMap<NodeId, DirectoryId>) -> bool {
    let is_on_record = |(node, directory): (&NodeId, &DirectoryId)| on_record.get(node).is_some_and(|known| known.may_be(*directory));
    named.iter().all(is_on_record) && named.values().any(|directory| *directory != DirectoryId(0))
}

/// Entries that a coordinator may lag behind and count as in step: less than a fast log takes in while one round trip is under way.
const IN_STEP_ENTRIES: u64 = 1000;
/// How often a leader looks whether a learner is in step.
const PROMOTE_EVERY: Duration = Duration::from_millis(100);
/// How often a leader without room for its log looks for somebody else to lead.
const HAND_OVER_RETRY: Duration = Duration::from_secs(1);
/// Longest wait for a quorum to take a change of the group.
const CHANGE_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_of_a_group_that_has_all_the_directories_it_names_on_record() {
        let map = |of: &[(u64, u64)]| of.iter().map(|(node, directory)| (NodeId(*node), DirectoryId(*directory))).collect();
        // The second was a member of a release that said no directory.
        let on_record = map(&[(1, 11), (2, 0), (3, 13)]);
        for (named, expected) in [
            (&[(1, 11), (3, 13)][..], true),
            (&[(1, 11), (2, 12)], true),
            (&[], false),
            (&[(2, 0)], false),
            (&[(1, 11), (3, 99)], false),
            (&[(1, 11), (4, 14)], false),
        ] {
            assert_eq!(is_of_this_group(&map(named), &on_record), expected, "{named:?}");
        }
    }
}
