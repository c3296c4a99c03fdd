//! What openraft says to other coordinators. A farm of one has none: every call to a peer fails as unreachable.
//!
//! The place for QUIC: a `Peer` will hold the address and the connections (append, heartbeat and vote, snapshot), and `Peers` how
//! to open them.

use std::future::Future;
use std::io;

use openraft::base::OptionalSend;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::{BasicNode, RaftNetworkFactory, RaftNetworkV2};

use super::state_machine::{SnapshotFile, StoredSnapshot};
use super::types::{TypeConfig, Vote};

/// Makes connections to other coordinators.
#[derive(Debug)]
pub struct Peers;

/// A connection to one of them.
#[derive(Debug)]
pub struct Peer {
    node: u64,
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, node: u64, _: &BasicNode) -> Peer {
        Peer { node }
    }
}

impl Peer {
    fn unreachable(&self) -> Unreachable<TypeConfig> {
        let what = format!("reach coordinator {}: this coordinator runs alone and has no peers", self.node);
        Unreachable::new(&io::Error::new(io::ErrorKind::NotConnected, what))
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        _: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(self.unreachable().into())
    }

    async fn vote(&mut self, _: VoteRequest<TypeConfig>, _: RPCOption) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(self.unreachable().into())
    }

    async fn pre_vote(&mut self, _: VoteRequest<TypeConfig>, _: RPCOption) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(self.unreachable().into())
    }

    async fn full_snapshot(
        &mut self,
        _: Vote,
        _: StoredSnapshot,
        _: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        Err(self.unreachable().into())
    }
}
