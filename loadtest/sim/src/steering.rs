//! Steering: somebody bumps, restarts or cancels builds and jobs that the farm has, at any moment.

use kiln_core::Command;
use kiln_wire::{BuildId, DrvPath, Order, Priority, Subject};

use crate::node::Then;
use crate::world::World;

/// Of a thousand questions about a build, so many come with an order.
const ORDERS: u64 = 60;

impl World {
    /// Whoever looks at a build gives an order now and then.
    pub(crate) fn steer(&mut self, node: usize, build: BuildId) {
        if self.healed || !self.options.steers || !self.dice.chance(ORDERS) {
            return;
        }
        let jobs: Vec<DrvPath> = self.nodes[node].memory.farm.jobs().map(|job| job.derivation).collect();
        let priority = Priority::from([-100, 0, 100][self.dice.place(3)]);
        let order = match self.dice.place(if self.options.cancels { 3 } else { 2 }) {
            0 => Order::Bump(priority),
            1 => Order::Restart,
            _ => Order::Cancel,
        };
        // A build is cancelled by its client alone.
        let of_build = self.dice.chance(300) && order != Order::Cancel;
        let subject =
            if of_build || jobs.is_empty() { Subject::Build(build) } else { Subject::Job(jobs[self.dice.place(jobs.len())].clone()) };
        if matches!((&subject, order), (Subject::Build(_), Order::Cancel)) {
            return;
        }
        let now = self.stamp(node);
        self.propose(node, vec![Command::Steer { subject, order, by: "somebody".to_owned(), now }], Then::Nobody);
    }
}
