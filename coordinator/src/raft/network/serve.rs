//! What other coordinators ask of this one.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use kiln_link::{Connection, LinkError, Receiver, Role, Sender};
use kiln_wire::NodeId;
use kiln_wire::frame::FrameError;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest};
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::messages::{
    Append, Appended, Ballot, BallotReply, Call, Common, Greeted, Greeting, HandOver, HandOverReply, Introduction, SnapshotHead,
    SnapshotReply,
};
use super::{chain, parts, snapshot};
use crate::raft::disk;
use crate::raft::member::{DirectoryId, Member};
use crate::raft::node::Raft;
use crate::raft::record::VoteRecord;
use crate::raft::snapshot::{self as file, SnapshotDir};
use crate::raft::state_machine::{SnapshotFile, StateMachine, StoredSnapshot};
use crate::raft::types::TypeConfig;
use crate::raft::version::Versions;

/// What answers other coordinators.
#[derive(Debug)]
pub struct Host {
    /// This coordinator.
    pub node: NodeId,
    /// Where it listens, and its directory.
    pub member: Member,
    /// What it has in common with the others.
    pub common: Common,
    /// What it speaks, and what its farm is at.
    pub versions: Versions,
    /// Told why this coordinator cannot go on: it was sent what it cannot read.
    pub unreadable: watch::Sender<Option<String>>,
    /// Told when a leader spoke.
    pub heard: watch::Sender<Option<Instant>>,
    /// Its raft.
    pub raft: Raft,
    /// Its farm, and who belongs to the group.
    pub machine: StateMachine,
    /// Where its snapshots lie.
    pub snapshots: SnapshotDir,
    /// Held while a snapshot comes in: there is one place for it.
    pub receiving: Mutex<()>,
    /// From when on it votes. The process before this one may have answered a leader just before it ended, and that leader counts on
    /// it for the longest election wait.
    pub votes_from: Instant,
}

/// Answers a coordinator until its connection ends.
pub async fn serve(host: Arc<Host>, connection: Connection) {
    let peer = connection.peer().role.clone();
    let refused = match greet(&host, &connection).await {
        Ok(refused) => refused,
        Err(err) => return tracing::debug!(%peer, error = chain(&err), "a coordinator did not greet"),
    };
    if let Some(why) = refused {
        tracing::warn!(%peer, why, "refused a coordinator");
        // The other end has read why, or goes away by itself.
        connection.closed().await;
        return;
    }
    while let Ok(Some((sender, receiver))) = connection.accept().await {
        let (host, peer) = (Arc::clone(&host), peer.clone());
        tokio::spawn(async move {
            if let Err(err) = answer(&host, sender, receiver).await {
                tracing::debug!(%peer, error = chain(&err), "a coordinator's call ended early");
            }
        });
    }
}

/// Reads the greeting and answers it; returns why the peer is refused, if it is.
async fn greet(host: &Host, connection: &Connection) -> Result<Option<String>, LinkError> {
    let Some((mut sender, mut receiver)) = connection.accept().await? else { return Ok(None) };
    let greeting = receiver.recv::<Greeting>().await?.ok_or(LinkError::Truncated)?;
    let refused = host.objection(&greeting, &connection.peer().role);
    let answer = match &refused {
        Some(why) => Greeted::Refused(why.clone()),
        None => Greeted::Welcome(host.introduction()),
    };
    sender.send(&answer).await?;
    Ok(refused)
}

impl Host {
    fn objection(&self, greeting: &Greeting, role: &Role) -> Option<String> {
        let Greeting { version: _, from, directory, to, want, program } = greeting;
        let farm = self.versions.farm();
        // Whether it is too new it finds by itself: this coordinator may not have applied yet what the farm was raised by.
        if program.is_too_old_for(farm) {
            return program.objection(farm);
        }
        if *role != Role::Coordinator(*from) {
            return Some(format!("a certificate of {role} does not make a coordinator {from}"));
        }
        if *to != self.node {
            return Some(format!("this is coordinator {}, not {to}", self.node));
        }
        if want.is_some_and(|want| !want.may_be(self.member.directory)) {
            return Some(format!(
                "coordinator {to} has another directory than the one on record: it was wiped. Remove it and add it under a new number"
            ));
        }
        let state = self.machine.state();
        let known = state.directories.get(from).copied();
        if known.is_some_and(|known| !known.may_be(*directory)) {
            return Some(format!("number {from} belongs to another directory: a number is never used again"));
        }
        // One whose addition is not applied here yet is unknown, and must be heard: its vote may count already.
        if known.is_some() && state.members.membership().get_node(&from.0).is_none() {
            return Some(format!("coordinator {from} was removed"));
        }
        None
    }

    /// Returns whether it may vote for another than the leader that its last process may have answered.
    fn may_vote(&self, ballot: &Ballot) -> bool {
        ballot.handed_over || Instant::now() >= self.votes_from
    }

    /// Returns whose log this one's may be: everybody of whom an entry says that it belongs to the group, whether it is committed or not.
    /// Itself only if it votes there: one that is to be added does not, one that began a group or restored it does.
    fn directories(&self) -> BTreeMap<NodeId, DirectoryId> {
        let metrics = self.raft.metrics();
        let now = metrics.borrow_watched().membership_config.membership().clone();
        let mut known = self.machine.state().directories.clone();
        known.extend(now.nodes().map(|(node, member)| (NodeId(*node), member.directory)));
        if !now.voter_ids().any(|voter| voter == self.node.0) {
            known.remove(&self.node);
        }
        known
    }

    fn introduction(&self) -> Introduction {
        Introduction {
            version: self.versions.own().newest,
            node: self.node,
            member: self.member.clone(),
            has_group: self.raft.voter_ids().next().is_some(),
            directories: self.directories(),
            common: self.common.clone(),
            program: self.versions.own().clone(),
        }
    }
}

async fn answer(host: &Arc<Host>, mut sender: Sender, mut receiver: Receiver) -> Result<(), LinkError> {
    let Some(call) = receiver.recv::<Call>().await? else { return Ok(()) };
    match call {
        Call::Append => return append(host, sender, receiver).await,
        Call::Vote(ballot) if host.may_vote(&ballot) => {
            let Ok(reply) = host.raft.vote(ballot.into()).await else { return Err(LinkError::NotOpen) };
            sender.send(&BallotReply::from(reply)).await?;
        }
        Call::Vote(ballot) | Call::PreVote(ballot) => {
            let may_vote = host.may_vote(&ballot);
            let Ok(reply) = host.raft.pre_vote(Ballot::into(ballot)).await else { return Err(LinkError::NotOpen) };
            let reply = BallotReply::from(reply);
            sender.send(&BallotReply { granted: reply.granted && may_vote, ..reply }).await?;
        }
        Call::HandOver(HandOver { from, to, last }) => {
            let request = TransferLeaderRequest::new(from.into(), to.0, last.map(Into::into));
            let Ok(reply) = host.raft.handle_transfer_leader(request).await else { return Err(LinkError::NotOpen) };
            sender.send(&HandOverReply { refused: reply.err().map(|err| err.to_string()) }).await?;
        }
        Call::Snapshot(head) => {
            let reply = install(host, head, &mut receiver).await;
            sender.send(&reply).await?;
        }
    }
    sender.finish().await
}

/// Passes appends on to raft as they come, and answers in their order.
async fn append(host: &Arc<Host>, mut sender: Sender, receiver: Receiver) -> Result<(), LinkError> {
    let mut answers = Box::pin(host.raft.stream_append(requests(Arc::clone(host), receiver)));
    while let Some(answer) = answers.next().await {
        let Ok(result) = answer else { return Err(LinkError::NotOpen) };
        let appended = Appended::from(result);
        // One whose term is over is heard, but does not lead.
        if !matches!(appended, Appended::Higher(_)) {
            host.heard.send_replace(Some(Instant::now()));
        }
        sender.send(&appended).await?;
    }
    sender.finish().await
}

/// The requests of a stream. It ends with the first thing that is none.
fn requests(host: Arc<Host>, receiver: Receiver) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static {
    futures::stream::unfold((host, receiver), |(host, mut receiver)| async move {
        match parts::recv::<Append>(&mut receiver).await {
            Ok(Some(append)) => match AppendEntriesRequest::try_from(append) {
                Ok(request) => Some((request, (host, receiver))),
                Err(why) => {
                    tracing::warn!(why, "an append that cannot be");
                    None
                }
            },
            Err(LinkError::Frame(err @ FrameError::Decode(_))) => {
                let own = host.versions.own();
                host.unreadable.send_replace(Some(format!("the leader sent entries that cannot be read by {own}: {}", chain(&err))));
                None
            }
            // A sender that is dropped ends so, as a connection that breaks does.
            Ok(None) | Err(_) => None,
        }
    })
}

/// Takes a snapshot in and has raft install it.
async fn install(host: &Arc<Host>, head: SnapshotHead, receiver: &mut Receiver) -> SnapshotReply {
    let _alone = host.receiving.lock().await;
    if let Err(err) = snapshot::receive(&host.snapshots, head, receiver).await {
        tracing::warn!(error = chain(&err), "receive snapshot");
        return SnapshotReply::Refused(chain(&err));
    }
    let path = host.snapshots.received();
    let read = path.clone();
    let meta = match disk::blocking(move || file::read(&read)).await {
        Ok(Ok(snapshot)) => match host.versions.own().objection(snapshot.version) {
            Some(why) => return SnapshotReply::Refused(why),
            None => snapshot.meta(),
        },
        Ok(Err(err)) => return SnapshotReply::Refused(chain(&err)),
        Err(err) => return SnapshotReply::Refused(err.to_string()),
    };
    let snapshot = StoredSnapshot { meta, snapshot: SnapshotFile { path } };
    match host.raft.install_full_snapshot(head.vote.into(), snapshot).await {
        Ok(response) => SnapshotReply::Taken(VoteRecord::from(&response.vote)),
        Err(err) => SnapshotReply::Refused(err.to_string()),
    }
}
