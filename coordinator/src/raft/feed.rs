//! Hands proposals to raft: what waits goes in together, in the order in which it was proposed.
//!
//! Together, because raft asks its log to write, and tells its followers, once for each time it is handed something: one by one, that costs more
//! than all that the farm does with a command. Source: ADR 0044.

use futures::StreamExt;
use futures::stream::BoxStream;
use kiln_core::Command;
use kiln_wire::{Leader, LogIndex, NodeId};
use openraft::errors::{ClientWriteError, Fatal};
use openraft::raft::WriteResult;
use tokio::sync::{mpsc, oneshot};

use super::api::{Applied, ConsensusError};
use super::node::Raft;
use super::record::from_leader_id;
use super::types::{Change, TypeConfig};

/// Commands on their way to the log.
pub struct Proposed {
    /// Under whose leadership they were decided; under another they must not be written.
    pub leader: Leader,
    /// The commands, of which each becomes an entry. At least one.
    pub commands: Vec<Command>,
    /// Told what became of them.
    pub settled: oneshot::Sender<Result<Applied, ConsensusError>>,
}

/// Proposals that were handed over together, and how many entries each has.
struct Together {
    leader: Leader,
    results: BoxStream<'static, Result<WriteResult<TypeConfig>, Fatal<TypeConfig>>>,
    waiting: Vec<(usize, oneshot::Sender<Result<Applied, ConsensusError>>)>,
}

/// Hands proposals to raft until no handle is left or raft stops.
pub async fn feed(raft: &Raft, inbox: mpsc::UnboundedReceiver<Proposed>) {
    let (written, fates) = mpsc::unbounded_channel();
    tokio::select! {
        () = write_all(raft, inbox, &written) => {}
        () = settle_all(fates) => {}
    }
}

async fn write_all(raft: &Raft, mut inbox: mpsc::UnboundedReceiver<Proposed>, written: &mpsc::UnboundedSender<Together>) {
    let mut proposals = Vec::new();
    while inbox.recv_many(&mut proposals, TOGETHER_MAX).await > 0 {
        let leading = raft.as_leader().map(|leading| from_leader_id(leading.leader_id()));
        let (mut changes, mut waiting) = (Vec::new(), Vec::new());
        for Proposed { leader, commands, settled } in proposals.drain(..) {
            if leading.as_ref().ok() != Some(&leader) {
                let known = leading.as_ref().err().and_then(|other| other.leader_id).map(NodeId);
                // Who proposed may not wait for it.
                let _ = settled.send(Err(ConsensusError::NotLeader { leader: known }));
                continue;
            }
            waiting.push((commands.len(), settled));
            changes.extend(commands.into_iter().map(Change::Command));
        }
        let Ok(leader) = leading else { continue };
        if changes.is_empty() {
            continue;
        }
        let Ok(results) = raft.client_write_many(changes).await else { return };
        if written.send(Together { leader, results, waiting }).is_err() {
            return;
        }
    }
}

/// Tells proposers what became of their commands, in the order of the log, until raft stops.
async fn settle_all(mut fates: mpsc::UnboundedReceiver<Together>) {
    while let Some(Together { leader, mut results, waiting }) = fates.recv().await {
        for (count, settled) in waiting {
            let mut outcome = Ok(Applied { index: LogIndex(0), answers: Vec::new() });
            for _ in 0..count {
                let Some(Ok(result)) = results.next().await else { return };
                outcome = outcome.and_then(|applied| add(applied, result, leader));
            }
            let _ = settled.send(outcome);
        }
    }
}

fn add(mut applied: Applied, result: WriteResult<TypeConfig>, leader: Leader) -> Result<Applied, ConsensusError> {
    let mut response = result.map_err(refused)?;
    // Raft does not hold several entries against a leadership before it writes them. Should another have begun between the look above and
    // the write, who proposed takes them as it takes all of which it does not know whether they were written: what it decided is held against
    // the farm when it is applied, in any case.
    if from_leader_id(&response.log_id.leader_id) != leader {
        return Err(ConsensusError::Unknown);
    }
    applied.index = LogIndex(response.log_id.index);
    applied.answers.append(&mut response.response);
    Ok(applied)
}

fn refused(err: ClientWriteError<TypeConfig>) -> ConsensusError {
    match err {
        ClientWriteError::ForwardToLeader(to) => ConsensusError::NotLeader { leader: to.leader_id.map(NodeId) },
        ClientWriteError::LogEntryDiscarded(_) => ConsensusError::Unknown,
        // Asked for by changes of membership and by guarded writes only, neither of which is proposed here.
        ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_) => ConsensusError::Unknown,
    }
}

/// Proposals that are handed over together at most. Raft tells of its followers between two times.
const TOGETHER_MAX: usize = 1024;
