//! 5, 21: what runs on a worker, what is being stopped among it, fits what the worker has. An attempt whose builder has exited only
//! uploads, and does not count.

use super::{Invariant, Look};
use crate::fact::Fact;

pub(super) struct WorkersAreNotOvercommitted;

impl Invariant for WorkersAreNotOvercommitted {
    fn name(&self) -> &'static str {
        "what runs on a worker fits its slots, cores and memory"
    }

    fn see(&mut self, fact: &Fact<'_>, _look: &Look<'_>) -> Result<(), String> {
        let Fact::Starts { worker, assignment, running, offer } = fact else { return Ok(()) };
        let granted =
            running.values().filter(|running| !running.exited).map(|running| running.assignment.resources).chain([assignment.resources]);
        let (mut cores, mut memory_mib, mut count, mut light) = (0, 0, 0, 0);
        for resources in granted {
            (cores, memory_mib, count) = (cores + resources.cores, memory_mib + resources.memory_mib, count + 1);
            light += u32::from(resources.cores == 0);
        }
        // Attempts without cores have slots of their own.
        let slots = count - light.min(offer.light_slots);
        let fits = cores <= offer.capacity.cores && memory_mib <= offer.capacity.memory_mib && slots <= offer.slots;
        if fits { Ok(()) } else { Err(format!("worker {worker} runs {count} attempts with {cores} cores and {memory_mib} MiB")) }
    }
}
