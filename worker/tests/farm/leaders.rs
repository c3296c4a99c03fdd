//! A farm of several coordinators, one of which leads.

use kiln_link::{Listener, Sender};
use kiln_wire::client::Response;
use kiln_wire::worker::ToWorker;
use kiln_wire::{Leader, NodeId, NotLeader, WhoLeads};

use super::{Farm, State, accept, identity};

impl Farm {
    /// Adds a coordinator that shares everything with the first; returns its address.
    pub fn add_coordinator(&self, node: u64) -> String {
        let identity = identity(&self.authority, &format!("coordinator/{node}"));
        let listener = Listener::bind("127.0.0.1:0".parse().expect("address"), &identity, None).expect("bind");
        let address = listener.local_addr().to_string();
        tokio::spawn(accept(listener, NodeId(node), self.state.clone()));
        address
    }

    /// Lets a coordinator lead. The one before says nothing and closes nothing, as one that was cut off.
    pub fn elect(&self, node: u64) {
        self.state.leader.send_modify(|leader| *leader = Leader { term: leader.term + 1, node: NodeId(node) });
    }
}

impl State {
    pub(super) fn leader(&self) -> Leader {
        *self.leader.borrow()
    }
}

/// Tells who leads, with every change.
pub(super) async fn tell(state: &State, node: NodeId, sender: &mut Sender) -> Option<()> {
    let mut leader = state.leader.subscribe();
    loop {
        let leads = *leader.borrow_and_update();
        let says = WhoLeads { is_self: leads.node == node, leader: Some(leads), coordinators: Vec::new() };
        sender.send(&Response::Leader(says)).await.ok()?;
        leader.changed().await.ok()?;
    }
}

/// Answers a session that only the leader can have.
pub(super) async fn refuse(sender: &mut Sender) -> Option<()> {
    sender.send(&ToWorker::NotLeader(NotLeader::default())).await.ok()?;
    sender.finish().await.ok()
}
