//! What openraft says to other coordinators, over QUIC.
//!
//! Three lanes lead to each peer, each a connection of its own: appends, pipelined on one stream; signs of life, votes and
//! hand-overs, each on a stream of its own; snapshots. So neither a bulk append nor a snapshot delays a sign of life.
//! `dial` is where names and sockets are; `messages` what is said; `serve` answers what others say.

mod append;
mod dial;
mod lane;
mod messages;
mod parts;
mod serve;
mod snapshot;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use kiln_wire::NodeId;
use openraft::base::OptionalSend;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{RaftNetworkFactory, RaftNetworkV2};
use tokio::sync::watch;
use tokio::time::Instant;

use self::append::Answers;
pub use self::dial::Dial;
use self::lane::Lane;
pub use self::lane::{LaneError, Moved, Route, open};
use self::messages::{Ballot, BallotReply, Call, HandOver, HandOverReply};
pub use self::messages::{Common, Introduction};
pub use self::serve::{Host, serve};
use super::follow::Progress;
use super::member::{DirectoryId, Member};
use super::record::{Position, VoteRecord};
use super::state_machine::{SnapshotFile, StoredSnapshot};
use super::types::{TypeConfig, Vote};
use super::version::Versions;

/// How long things may take. All follow from how fast a dead leader must be noticed.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two signs of life of the leader, in milliseconds.
    pub heartbeat_ms: u64,
    /// Shortest and longest wait of a follower that hears nothing, in milliseconds.
    pub election_ms: [u64; 2],
}

impl Pace {
    /// From the first packet to a greeted connection. A lost packet is sent again within a tenth of it.
    fn dial_max(self) -> Duration {
        Duration::from_millis(self.election_ms[1].max(1000))
    }

    /// Until an append is durable at the follower. Longer than its disk takes; what hangs is found out by signs of life before.
    fn append_max(self) -> Duration {
        Duration::from_millis((10 * self.heartbeat_ms).max(1000))
    }
}

/// Makes connections to other coordinators; without a dialer there are none to make.
#[derive(Clone, Debug)]
pub struct Peers(Arc<Roads>);

/// Who makes connections, and how.
#[derive(Debug)]
pub struct Caller {
    /// This coordinator.
    pub me: NodeId,
    /// Its directory.
    pub directory: DirectoryId,
    /// What it dials with; without it there are no others.
    pub dial: Option<Dial>,
    /// How fast things go.
    pub pace: Pace,
    /// Where coordinators are that have moved.
    pub moved: Moved,
    /// See [`Host::votes_from`]: until then this node is no candidate either.
    pub votes_from: Instant,
    /// What it speaks, and what its farm is at.
    pub versions: Versions,
}

#[derive(Debug)]
struct Roads {
    caller: Caller,
    /// The lanes that are kept from one leader to the next, so that neither an election nor its winner's first entry waits for a
    /// handshake.
    kept: Mutex<BTreeMap<u64, (Member, Lanes)>>,
}

impl Peers {
    /// Makes the factory of a coordinator.
    pub fn new(caller: Caller) -> Self {
        Self(Arc::new(Roads { caller, kept: Mutex::default() }))
    }

    /// Keeps connections open to every other member, until raft ends.
    pub async fn keep_open(self, mut progress: watch::Receiver<Progress>) {
        let me = self.0.caller.me;
        loop {
            let has_others = |now: &Progress| now.members.len() > 1 && now.members.contains_key(&me);
            let Ok(members) = progress.wait_for(has_others).await.map(|now| now.members.clone()) else { return };
            for (node, member) in members.iter().filter(|(node, _)| **node != me) {
                let Some(lanes) = self.0.lanes(node.0, member) else { return };
                tokio::spawn(async move {
                    // Whoever needs them is told why there are none.
                    let _ = tokio::join!(lanes.control.connection(), lanes.append.connection());
                });
            }
            self.0.kept().retain(|node, _| members.contains_key(&NodeId(*node)));
            tokio::time::sleep(OPEN_EVERY).await;
        }
    }

    fn peer(&self, node: u64, member: &Member) -> Peer {
        let (pace, votes_from) = (self.0.caller.pace, self.0.caller.votes_from);
        Peer { node, lanes: self.0.lanes(node, member), is_heartbeat: false, pace, votes_from }
    }
}

impl Roads {
    /// Returns the lanes to a member, the kept ones if it is where it was.
    fn lanes(&self, node: u64, member: &Member) -> Option<Lanes> {
        let dial = self.caller.dial.as_ref()?;
        let fresh = || Arc::new(Lane::new(dial.clone(), self.route(node, member)));
        let mut kept = self.kept();
        let (control, append) = match kept.get(&node) {
            Some((known, lanes)) if known == member => (Arc::clone(&lanes.control), Arc::clone(&lanes.append)),
            Some(_) => {
                // Raft goes on with the lanes that it has.
                self.caller.moved.note(NodeId(node), member.link.clone());
                (fresh(), fresh())
            }
            None => (fresh(), fresh()),
        };
        let lanes = Lanes { control, append, snapshot: fresh() };
        kept.insert(node, (member.clone(), lanes.clone()));
        Some(lanes)
    }

    fn route(&self, node: u64, member: &Member) -> Route {
        let (from, directory, to) = (self.caller.me, self.caller.directory, NodeId(node));
        let (moved, versions) = (self.caller.moved.clone(), self.caller.versions.clone());
        Route { from, directory, to, member: member.clone(), moved, versions, dial_max: self.caller.pace.dial_max() }
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<u64, (Member, Lanes)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, node: u64, member: &Member) -> Peer {
        self.peer(node, member)
    }

    async fn new_heartbeat_client(&mut self, node: u64, member: &Member) -> Peer {
        Peer { is_heartbeat: true, ..self.peer(node, member) }
    }
}

/// What raft uses to talk to one peer. It makes one for appends, one for signs of life, one for each vote and each snapshot.
#[derive(Debug)]
pub struct Peer {
    node: u64,
    lanes: Option<Lanes>,
    is_heartbeat: bool,
    pace: Pace,
    votes_from: Instant,
}

#[derive(Clone, Debug)]
struct Lanes {
    control: Arc<Lane>,
    append: Arc<Lane>,
    /// Of one snapshot; opened only if there is one to send.
    snapshot: Arc<Lane>,
}

impl Peer {
    fn lanes(&self) -> Result<&Lanes, Unreachable<TypeConfig>> {
        let alone = || Unreachable::from_string(format!("reach coordinator {}: this coordinator runs alone and has no peers", self.node));
        self.lanes.as_ref().ok_or_else(alone)
    }

    async fn ballot(&self, call: &Call, handed_over: bool) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        if !handed_over && Instant::now() < self.votes_from {
            return Err(Unreachable::from_string("this process has just started: whom the last one voted for may lead still").into());
        }
        let reply: BallotReply = self.lanes()?.control.ask(call).await.map_err(|err| unreachable(&err))?;
        Ok(reply.into())
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        Ok(append::once(&self.lanes()?.control, request).await?.into())
    }

    fn stream_append<'s, S>(&'s mut self, mut input: S, _: RPCOption) -> BoxFuture<'s, Result<Answers<'s>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        async move {
            let lanes = self.lanes()?;
            if !self.is_heartbeat {
                return append::stream(Arc::clone(&lanes.append), input, self.pace.append_max()).await;
            }
            let Some(request) = input.next().await else { return Ok(futures::stream::empty().boxed()) };
            let answer = append::once(&lanes.control, request).await?;
            Ok(futures::stream::iter([Ok(answer)]).boxed())
        }
        .boxed()
    }

    async fn vote(&mut self, request: VoteRequest<TypeConfig>, _: RPCOption) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let ballot = Ballot::from(request);
        self.ballot(&Call::Vote(ballot), ballot.handed_over).await
    }

    async fn pre_vote(&mut self, request: VoteRequest<TypeConfig>, _: RPCOption) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let ballot = Ballot::from(request);
        self.ballot(&Call::PreVote(ballot), ballot.handed_over).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: StoredSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let lane = &self.lanes()?.snapshot;
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = snapshot::send(lane, VoteRecord::from(&vote), &snapshot.snapshot.path) => match sent {
                Ok(vote) => Ok(SnapshotResponse::new(vote.into())),
                Err(err) => Err(NetworkError::from_string(chain(&err)).into()),
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let call = Call::HandOver(HandOver {
            from: VoteRecord::from(request.from_leader()),
            to: NodeId(*request.to_node_id()),
            last: request.last_log_id().map(Position::from),
        });
        let reply: HandOverReply = self.lanes()?.control.ask(&call).await.map_err(|err| unreachable(&err))?;
        match reply.refused {
            None => Ok(Ok(())),
            Some(why) => Err(NetworkError::from_string(why).into()),
        }
    }

    /// A peer that is back must be in step soon, and one that is away costs a packet for each try.
    fn backoff(&self) -> Option<Backoff> {
        let step = self.pace.heartbeat_ms;
        Some(Backoff::new((0..).map(move |tries: u32| Duration::from_millis((step << tries.min(10)).min(BACKOFF_MS_MAX)))))
    }
}

/// Raft waits a little before it tries such a peer again.
fn unreachable(err: &LaneError) -> RPCError<TypeConfig> {
    Unreachable::from_string(chain(err)).into()
}

/// An error with everything that caused it, on one line.
pub fn chain(err: &dyn std::error::Error) -> String {
    std::iter::successors(Some(err), |err| err.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Longest pause before a silent peer is tried again.
const BACKOFF_MS_MAX: u64 = 1000;
/// How often lanes that have closed are opened again.
const OPEN_EVERY: Duration = Duration::from_millis(500);
