//! The coordinators, as one of them sees them.

use kiln_wire::{ClusterView, MemberView};
use serde::Serialize;
use utoipa::ToSchema;

/// The coordinators, as the one that answers sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// The coordinator that answers.
    pub node: u64,
    /// Who leads; none while nobody does.
    #[schema(required)]
    pub leader: Option<u64>,
    /// Raft's term; none while nobody leads.
    #[schema(required)]
    pub term: Option<u64>,
    /// The version of formats that the farm is at.
    pub version: u16,
    /// The release of the program that answers.
    pub release: String,
    /// Its last log entry.
    pub last_index: u64,
    /// The last entry that its farm has applied.
    pub applied_index: u64,
    /// The last entry that its snapshot covers.
    pub snapshot_index: u64,
    /// What keeps it from taking part in full, in words.
    #[schema(required)]
    pub trouble: Option<String>,
    /// The members.
    pub coordinators: Vec<Coordinator>,
}

/// One coordinator, as the one that answers sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Coordinator {
    /// Its number.
    pub node: u64,
    /// `leader`, `voter` or `learner`.
    pub state: String,
    /// `host:port` where coordinators, workers and clients reach it.
    pub address: String,
    /// `host:port` of its binary cache.
    pub cache: String,
    /// Log entries that it lacks; only the leader knows.
    #[schema(required)]
    pub lag_entries: Option<u64>,
    /// Milliseconds since it last answered; only the leader knows.
    #[schema(required)]
    pub silent_ms: Option<u64>,
}

impl Cluster {
    /// Returns the coordinators as one of them sees them.
    pub fn of(view: &ClusterView) -> Self {
        Self {
            node: view.node.0,
            leader: view.leader.map(|leader| leader.node.0),
            term: view.leader.map(|leader| leader.term),
            version: view.version.0,
            release: view.program.release.clone(),
            last_index: view.last.0,
            applied_index: view.applied.0,
            snapshot_index: view.snapshot.0,
            trouble: view.trouble.clone(),
            coordinators: view.members.iter().map(|member| Coordinator::of(member, view)).collect(),
        }
    }
}

impl Coordinator {
    fn of(member: &MemberView, view: &ClusterView) -> Self {
        let leads = view.leader.is_some_and(|leader| leader.node == member.node);
        let state = match (leads, member.votes) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        Self {
            node: member.node.0,
            state: state.to_owned(),
            address: member.link.clone(),
            cache: member.http.clone(),
            lag_entries: member.matched.map(|matched| view.last.0.saturating_sub(matched.0)),
            silent_ms: member.silent_ms,
        }
    }
}
