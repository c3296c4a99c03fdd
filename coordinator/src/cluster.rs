//! The coordinators themselves, for whoever looks at them or changes who they are.

use kiln_link::Role;
use kiln_wire::client::{Refusal, RefusalKind, Response};
use kiln_wire::{ClusterRequest, ClusterView, MemberView};

use crate::driver::Chain;
use crate::parts::Parts;
use crate::raft::{ClusterError, Standing};
use crate::{leading, refuse};

/// Answers a request about the coordinators.
pub(crate) async fn answer(parts: &Parts, peer: &Role, request: ClusterRequest) -> Response {
    let is_admin = matches!(peer, Role::Admin(_));
    let consensus = &parts.consensus;
    let changed = match request {
        ClusterRequest::Status => return Response::Cluster(view(parts)),
        ClusterRequest::Add { .. } | ClusterRequest::Remove { .. } | ClusterRequest::Transfer { .. } if !is_admin => {
            return Response::Refused(refuse::forbidden(format!(
                "a certificate of `{peer}` does not allow to change the coordinators; `kiln ca issue --role admin/NAME` makes one that does"
            )));
        }
        ClusterRequest::Add { node, link } => {
            if let Err(error) = &parts.may_have_peers {
                return Response::Refused(refuse::invalid(format!("add coordinator {node}: {error}")));
            }
            consensus.add(node, link).await
        }
        ClusterRequest::Remove { node } => consensus.remove(node).await,
        ClusterRequest::Transfer { to } => consensus.hand_over(to).await,
    };
    match changed {
        Ok(()) => Response::Done,
        Err(ClusterError::NotLeader) => Response::NotLeader(leading::elsewhere(parts)),
        Err(error) => Response::Refused(refusal(&error)),
    }
}

fn refusal(error: &ClusterError) -> Refusal {
    let kind = match error {
        ClusterError::Unknown { operation, .. } if *operation != "transfer to" => RefusalKind::Unavailable,
        ClusterError::Stopped | ClusterError::NotLeader => RefusalKind::Unavailable,
        // To ask again might move leadership twice.
        ClusterError::Unknown { .. } => RefusalKind::Invalid,
        ClusterError::Alone | ClusterError::Unreachable { .. } | ClusterError::Refused { .. } => RefusalKind::Invalid,
    };
    Refusal { kind, message: Chain(error).to_string(), paths: Vec::new() }
}

/// Returns the group as this coordinator sees it.
pub(crate) fn view(parts: &Parts) -> ClusterView {
    let consensus = &parts.consensus;
    let metrics = consensus.metrics();
    ClusterView {
        node: consensus.node(),
        leader: consensus.leader().map(|(leader, _)| leader),
        is_self: leading::own(parts).is_some(),
        last: metrics.last_log_index,
        applied: metrics.applied_index,
        snapshot: metrics.snapshot_index,
        trouble: consensus.trouble(),
        program: consensus.program().clone(),
        version: consensus.version(),
        members: consensus.members().into_iter().map(member).collect(),
    }
}

fn member(standing: Standing) -> MemberView {
    let Standing { node, member, votes, matched, silent_ms } = standing;
    MemberView { node, link: member.link, http: member.http, votes, matched, silent_ms }
}
