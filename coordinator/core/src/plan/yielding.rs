//! Second attempts give way: where a class has no room, one of them ends for each job that could have its place. What is ready is never held up
//! by what runs already elsewhere. Does not end anything: `Preempt` checks again. Source: ADR 0041.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use kiln_wire::Lease;

use super::has_room;
use super::lane::Lane;
use super::space::Space;
use crate::fleet;
use crate::job::Job;
use crate::pool::Seat;

/// Adds the second attempts that end so that ready jobs have their places, those among `ending` aside.
pub(super) fn yielding(space: &Space<'_>, lanes: &[Lane], ending: &mut Vec<Lease>) {
    let farm = space.farm;
    let mut ended: BTreeSet<Lease> = ending.iter().cloned().collect();
    for lane in lanes.iter().filter(|lane| lane.closed.is_some() && lane.left > 0) {
        let mut left = lane.left;
        for key in &farm.index.copies {
            let job: &Job = farm.job(*key);
            let Some(copy) = job.running().and_then(|running| running.copy.as_deref()) else { continue };
            let suits = |seat: &Seat| fleet::suits(&seat.shape.systems, &seat.shape.features, &lane.needs);
            let Some((seat, free)) = space.named(&copy.worker).filter(|(seat, _)| left > 0 && suits(seat)) else { continue };
            // What only uploads holds nothing that anybody could have.
            if !copy.relieved && has_room(&seat, free.give(copy.granted), &lane.needs) && ended.insert(job.lease_of(copy)) {
                ending.push(job.lease_of(copy));
                left -= 1;
            }
        }
    }
}
