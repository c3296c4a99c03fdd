//! Who leads, for whoever looks for the leader: at once, and with every change.

use kiln_link::{LinkError, Receiver, Sender};
use kiln_wire::WhoLeads;
use kiln_wire::client::{Request, Response};

use crate::parts::Parts;
use crate::raft::Leadership;

/// Tells who leads until the asker has heard enough.
pub(crate) async fn tell(parts: &Parts, sender: &mut Sender, receiver: &mut Receiver) -> Result<(), LinkError> {
    let mut leadership = parts.consensus.leadership();
    loop {
        let Leadership { leader, is_self } = *leadership.borrow_and_update();
        let leader = (leader.term > 0).then_some(leader);
        sender.send(&Response::Leader(WhoLeads { is_self, leader, coordinators: Vec::new() })).await?;
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() {
                return Ok(());
            },
            // Whatever comes, the asker has nothing more to say: it has finished, or it is gone.
            _ = receiver.recv::<Request>() => return Ok(()),
        }
    }
}
