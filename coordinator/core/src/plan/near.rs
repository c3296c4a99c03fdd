//! Near the inputs: a job goes where its inputs are, if fetching them elsewhere takes longer than a moment.
//!
//! What is known of who has what is a record of who made it or fetched it lately ([`crate::job::Held`]). It may be wrong either way: the
//! worker fetches what it lacks. Only workers of the same speed are compared, and only those with room: a job never waits for its inputs'
//! neighbour while another worker is free. Source: delay scheduling, Zaharia et al. 2010, with a delay of nothing; ADR 0037.

use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;

use kiln_wire::WorkerId;
use kiln_wire::limits::HOLDERS_MAX;

use super::{Planner, has_room};
use crate::farm::Farm;
use crate::fleet::Free;
use crate::job::{Held, JobKey, Needs};
use crate::pool::Seat;

impl Planner<'_> {
    /// Returns a worker with room that is as fast as `best` and saves enough of fetching, with what it has free.
    pub(super) fn nearer(
        &self,
        able: &[usize],
        key: JobKey,
        needs: &Needs,
        failed_on: &BTreeSet<WorkerId>,
        best: &Seat,
    ) -> Option<(Arc<Seat>, Free)> {
        let inputs = self.space.farm.held_inputs(key);
        let bytes_at = |id: &WorkerId| inputs.iter().filter(|held| held.by.contains(id)).map(|held| held.bytes).sum::<u64>();
        let holders: BTreeSet<&WorkerId> = inputs.iter().flat_map(|held| &held.by).collect();
        let kept = self.reservation.as_ref().map(|reservation| &reservation.seat.id);
        let may = |id: &&WorkerId| kept != Some(*id) && !failed_on.contains(*id);
        let (id, bytes) = holders.into_iter().filter(may).map(|id| (id, bytes_at(id))).max_by_key(|(_, bytes)| *bytes)?;
        let saved_ms = transfer_ms(bytes.saturating_sub(bytes_at(&best.id)), best.fetch_mib_per_second);
        if saved_ms < SAVED_MS_MIN {
            return None;
        }
        let (seat, free) = self.space.named(id)?;
        let good = seat.speed_per_mille == best.speed_per_mille && self.space.holds(able, &seat) && has_room(&seat, free, needs);
        good.then_some((seat, free))
    }
}

impl Farm {
    /// Returns the records of a job's inputs that not all workers count as having.
    fn held_inputs(&self, key: JobKey) -> Vec<&Held> {
        let inputs = self.job(key).inputs.iter().take(INPUTS_MAX);
        inputs.filter_map(|input| self.job(*input).held.as_deref()).filter(|held| held.by.len() < HOLDERS_MAX).collect()
    }
}

/// Returns the milliseconds that so many bytes take; a worker that does not say how fast it is fetches 100 MiB in a second.
fn transfer_ms(bytes: u64, mib_per_second: u32) -> u64 {
    let mib_per_second = if mib_per_second == 0 { MIB_PER_SECOND } else { mib_per_second };
    (bytes >> 10).saturating_mul(1_000) / (u64::from(mib_per_second) << 10)
}

/// What one gigabit a second comes to, about.
const MIB_PER_SECOND: u32 = 100;

/// Saving less than this many milliseconds is not worth a thought.
const SAVED_MS_MIN: u64 = 20;

/// Inputs of one job that are looked at: a bound on what it costs. Real jobs have 2,000 at most, most of them 10.
const INPUTS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_takes_its_bytes_over_the_link() {
        let table = [(0, 0, 0), (100 << 20, 0, 1_000), (1 << 30, 1_024, 1_000), (1 << 30, 1, 1_024_000)];
        for (bytes, mib_per_second, expect) in table {
            assert_eq!(transfer_ms(bytes, mib_per_second), expect, "{bytes} bytes at {mib_per_second} MiB/s");
        }
    }
}
