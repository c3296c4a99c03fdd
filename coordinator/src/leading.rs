//! Who leads, for whoever looks for the leader: at once, and with every change; and for whoever asks the wrong coordinator.

use kiln_link::{LinkError, Receiver, Sender};
use kiln_wire::client::{Request, Response};
use kiln_wire::{Leader, LeaderAt, NotLeader, WhoLeads};

use crate::parts::Parts;

/// Tells who leads until the asker has heard enough.
pub(crate) async fn tell(parts: &Parts, sender: &mut Sender, receiver: &mut Receiver) -> Result<(), LinkError> {
    let mut leadership = parts.consensus.leadership();
    loop {
        let is_self = leadership.borrow_and_update().is_self;
        let leader = parts.consensus.leader().map(|(leader, _)| leader);
        let members = parts.consensus.members();
        // One that waits to be taken in knows those whom it waits for.
        let coordinators = if members.is_empty() { parts.join.clone() } else { members.into_iter().map(|of| of.member.link).collect() };
        sender.send(&Response::Leader(WhoLeads { is_self, leader, coordinators })).await?;
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() {
                return Ok(());
            },
            // Whatever comes, the asker has nothing more to say: it has finished, or it is gone.
            _ = receiver.recv::<Request>() => return Ok(()),
        }
    }
}

/// Returns the leadership of this coordinator, if it leads at this moment.
pub(crate) fn own(parts: &Parts) -> Option<Leader> {
    parts.consensus.leads()
}

/// Waits until this coordinator does not lead under `leader` any more.
pub(crate) async fn lost(parts: &Parts, leader: Leader) {
    let mut leadership = parts.consensus.leadership();
    // An error says that consensus has stopped, which is the same.
    let _ = leadership.wait_for(|known| !known.is_self || known.leader != leader).await;
}

/// Returns whether another leadership than `leader` is known of, or consensus has stopped. One that is uncertain for a moment has not ended.
pub(crate) fn has_ended(parts: &Parts, leader: Leader) -> bool {
    let leadership = parts.consensus.leadership();
    leadership.has_changed().is_err() || leadership.borrow().leader != leader
}

/// Returns what whoever asks this coordinator is told while it does not lead.
pub(crate) fn elsewhere(parts: &Parts) -> NotLeader {
    let other = parts.consensus.leader().filter(|(leader, _)| leader.node != parts.consensus.node());
    NotLeader { leader: other.map(|(leader, member)| LeaderAt { leader, link: member.link }) }
}
