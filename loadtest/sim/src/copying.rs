//! Copying: jobs that run get a second attempt at any moment, late or not. What must not be, the farm refuses.

use kiln_core::{Command, Placement};
use kiln_wire::Timestamp;

use crate::node::Then;
use crate::world::World;

/// Of a thousand turns of a leader, so many come with a second attempt.
const COPIES: u64 = 150;

impl World {
    /// A leader gives a running job a second attempt now and then.
    pub(crate) fn copy_some(&mut self, node: usize, now: Timestamp) {
        if !self.options.copies || self.healed || !self.dice.chance(COPIES) {
            return;
        }
        let farm = &self.nodes[node].memory.farm;
        let running: Vec<_> = farm.jobs().filter_map(|job| farm.live_lease(&job.derivation)).collect();
        let workers: Vec<_> = farm.registrations().map(|(worker, epoch)| (worker.clone(), epoch)).collect();
        let (Some(lease), Some((worker, epoch))) = (self.dice.choose(&running).cloned(), self.dice.choose(&workers).cloned()) else {
            return;
        };
        let placement = Placement { derivation: lease.derivation, worker, epoch, resources: None, light: false, after: None };
        self.propose(node, vec![Command::Copy { of: lease.attempt, placement, now }], Then::Nobody);
    }
}
