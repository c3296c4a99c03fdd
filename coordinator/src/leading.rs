//! Who leads, for whoever looks for the leader: at once, and with every change; and for whoever asks the wrong coordinator.

use kiln_link::{LinkError, Receiver, Sender};
use kiln_wire::client::{Request, Response};
use kiln_wire::{Leader, LeaderAt, NotLeader, WhoLeads};
use tokio::sync::watch;

use crate::parts::Parts;
use crate::raft::Leadership;

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

/// Works until another leadership than `leader` is known of, or consensus has stopped: then nothing is returned. One that is uncertain for a
/// moment has not ended.
pub(crate) async fn while_under<T>(
    mut leadership: watch::Receiver<Leadership>,
    leader: Leader,
    work: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        biased;
        // An error says that consensus has stopped, which is the same.
        _ = leadership.wait_for(|known| known.leader != leader) => None,
        done = work => Some(done),
    }
}

/// Returns what whoever asks this coordinator is told while it does not lead.
pub(crate) fn elsewhere(parts: &Parts) -> NotLeader {
    let other = parts.consensus.leader().filter(|(leader, _)| leader.node != parts.consensus.node());
    NotLeader { leader: other.map(|(leader, member)| LeaderAt { leader, link: member.link }) }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn work_ends_with_the_leadership_that_it_was_begun_under() {
        let (mine, next) = (Leader { term: 1, ..Leader::default() }, Leader { term: 2, ..Leader::default() });
        let known = |leader, is_self| Leadership { leader, is_self };
        let (sender, leadership) = watch::channel(known(mine, true));
        assert_eq!(while_under(leadership.clone(), mine, ready(7)).await, Some(7));
        let mut working = tokio::spawn(while_under(leadership.clone(), mine, pending::<()>()));
        // A quorum has not answered lately.
        sender.send_replace(known(mine, false));
        tokio::task::yield_now().await;
        assert!(futures::poll!(&mut working).is_pending());
        sender.send_replace(known(next, false));
        assert_eq!(working.await.expect("no panic"), None);
        assert_eq!(while_under(leadership.clone(), mine, pending::<()>()).await, None, "it ended before");
        drop(sender);
        assert_eq!(while_under(leadership, next, pending::<()>()).await, None, "consensus has stopped");
    }
}
