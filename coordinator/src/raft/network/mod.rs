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
use std::sync::{Arc, Mutex, PoisonError};
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

use self::append::Answers;
pub use self::dial::Dial;
use self::lane::Lane;
pub use self::lane::{LaneError, Moved, Route, open};
use self::messages::{Ballot, BallotReply, Call, HandOver, HandOverReply};
pub use self::messages::{Common, Introduction};
pub use self::serve::{Host, serve};
use super::member::{DirectoryId, Member};
use super::record::{Position, VoteRecord};
use super::state_machine::{SnapshotFile, StoredSnapshot};
use super::types::{TypeConfig, Vote};

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
#[derive(Debug)]
pub struct Peers {
    me: NodeId,
    directory: DirectoryId,
    dial: Option<Dial>,
    pace: Pace,
    moved: Moved,
    /// The lanes of signs of life and votes, kept from one leader to the next, so that an election need not dial first.
    control: Mutex<BTreeMap<u64, (Member, Arc<Lane>)>>,
}

impl Peers {
    /// Makes the factory of `me`, whose directory is `directory`.
    pub fn new(me: NodeId, directory: DirectoryId, dial: Option<Dial>, pace: Pace, moved: Moved) -> Self {
        Self { me, directory, dial, pace, moved, control: Mutex::default() }
    }

    fn peer(&self, node: u64, member: &Member) -> Peer {
        let lanes = self.dial.as_ref().map(|dial| {
            let mut kept = self.control.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = || Arc::new(Lane::new(dial.clone(), self.route(node, member)));
            let control = match kept.get(&node) {
                Some((known, lane)) if known == member => Arc::clone(lane),
                Some(_) => {
                    self.moved.forget(NodeId(node));
                    fresh()
                }
                None => fresh(),
            };
            kept.insert(node, (member.clone(), Arc::clone(&control)));
            Lanes { control, bulk: fresh() }
        });
        Peer { node, lanes, is_heartbeat: false, pace: self.pace }
    }

    fn route(&self, node: u64, member: &Member) -> Route {
        let (from, directory, to) = (self.me, self.directory, NodeId(node));
        Route { from, directory, to, member: member.clone(), moved: self.moved.clone(), dial_max: self.pace.dial_max() }
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
}

#[derive(Debug)]
struct Lanes {
    control: Arc<Lane>,
    /// Of appends, or of one snapshot; opened only if it is used.
    bulk: Arc<Lane>,
}

impl Peer {
    fn lanes(&self) -> Result<&Lanes, Unreachable<TypeConfig>> {
        let alone = || Unreachable::from_string(format!("reach coordinator {}: this coordinator runs alone and has no peers", self.node));
        self.lanes.as_ref().ok_or_else(alone)
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
                return append::stream(Arc::clone(&lanes.bulk), input, self.pace.append_max()).await;
            }
            let Some(request) = input.next().await else { return Ok(futures::stream::empty().boxed()) };
            let answer = append::once(&lanes.control, request).await?;
            Ok(futures::stream::iter([Ok(answer)]).boxed())
        }
        .boxed()
    }

    async fn vote(&mut self, request: VoteRequest<TypeConfig>, _: RPCOption) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let call = Call::Vote(Ballot::from(request));
        let reply: BallotReply = self.lanes()?.control.ask(&call).await.map_err(|err| unreachable(&err))?;
        Ok(reply.into())
    }

    async fn pre_vote(&mut self, request: VoteRequest<TypeConfig>, _: RPCOption) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let call = Call::PreVote(Ballot::from(request));
        let reply: BallotReply = self.lanes()?.control.ask(&call).await.map_err(|err| unreachable(&err))?;
        Ok(reply.into())
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: StoredSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let lane = &self.lanes()?.bulk;
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
