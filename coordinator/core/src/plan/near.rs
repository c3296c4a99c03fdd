//! Near the inputs: a job goes where its inputs are, if fetching them elsewhere takes longer than a moment; and of the jobs that are nearly
//! as urgent, the one goes that lacks least where there is room.
//!
//! What is known of who has what is a record of who made it or fetched it lately ([`crate::job::Held`]). It may be wrong either way: the
//! worker fetches what it lacks. Only workers of the same speed are compared, and only those with room: a job never waits for its inputs'
//! neighbour while another worker is free. Source: delay scheduling, Zaharia et al. 2010, with a delay of nothing; ADR 0037, ADR 0042.

use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;

use kiln_wire::WorkerId;
use kiln_wire::limits::HOLDERS_MAX;

use super::lane::Line;
use super::{Planner, has_room};
use crate::farm::Farm;
use crate::fleet::Free;
use crate::index::ReadyEntry;
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
        let inputs: Vec<&Held> = self.space.farm.held_inputs(key).collect();
        if inputs.is_empty() {
            return None;
        }
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

    /// Returns the job that goes to a worker in the place of `first`: of those of its class that are nearly as urgent, the first one that
    /// lacks nothing there that is worth a thought, else the one that lacks least. `first`, if that saves too little.
    pub(super) fn lacking_least(&mut self, line: &mut Line<'_>, first: ReadyEntry, seat: &Seat) -> ReadyEntry {
        let farm = self.space.farm;
        let worth = |bytes: u64| transfer_ms(bytes, seat.fetch_mib_per_second) >= SAVED_MS_MIN;
        let lacks = farm.lacking_bytes(first.2, &seat.id);
        if !worth(lacks) {
            return first;
        }
        // What is nearly as urgent stands on the chain as expected: a surprise is long, and would make all alike.
        let rank_ms_min = first.0.0.saturating_sub(farm.index.path_ms(first.2) / NEARLY);
        let key_max = first.2.0.saturating_add(OVERTAKING_MAX);
        let mut least = None;
        for (at, (.., key)) in line.ahead(NEAR_MAX.min(self.looks_left), rank_ms_min).enumerate() {
            self.looks_left -= 1;
            if key.0 > key_max {
                continue;
            }
            let bytes = farm.lacking_bytes(*key, &seat.id);
            if least.is_none_or(|(fewest, _)| bytes < fewest) && !farm.job(*key).tries.failed_on.contains(&seat.id) {
                least = Some((bytes, at));
                if !worth(bytes) {
                    break;
                }
            }
        }
        match least.filter(|(bytes, _)| worth(lacks.saturating_sub(*bytes))) {
            Some((_, at)) => line.swap(first.clone(), at).unwrap_or(first),
            None => first,
        }
    }
}

impl Farm {
    /// Returns how many bytes of a job's inputs a worker lacks, as far as that is known.
    pub(super) fn lacking_bytes(&self, key: JobKey, worker: &WorkerId) -> u64 {
        self.held_inputs(key).filter(|held| !held.by.contains(worker)).map(|held| held.bytes).sum()
    }

    /// Returns the records of a job's inputs that not all workers count as having.
    fn held_inputs(&self, key: JobKey) -> impl Iterator<Item = &Held> {
        let inputs = self.job(key).inputs.iter().take(INPUTS_MAX);
        inputs.filter_map(|input| self.job(*input).held.as_deref()).filter(|held| held.by.len() < HOLDERS_MAX)
    }
}

/// Returns the milliseconds that so many bytes take; a worker that does not say how fast it is fetches 100 MiB in a second.
pub(super) fn transfer_ms(bytes: u64, mib_per_second: u32) -> u64 {
    let mib_per_second = if mib_per_second == 0 { MIB_PER_SECOND } else { mib_per_second };
    (bytes >> 10).saturating_mul(1_000) / (u64::from(mib_per_second) << 10)
}

/// What one gigabit a second comes to, about.
const MIB_PER_SECOND: u32 = 100;

/// Saving less than this many milliseconds is not worth a thought.
const SAVED_MS_MIN: u64 = 20;

/// Jobs of a class that are looked at for one that lacks less than the first one.
const NEAR_MAX: usize = 63;

/// By what part of the first one's chain they are less urgent than it at most: a tenth.
const NEARLY: u64 = 10;

/// Jobs that came after one and may go first for what they lack, all told: numbers only grow, so that none is passed over for ever.
const OVERTAKING_MAX: u32 = 100_000;

/// Jobs that one plan looks at so: what its length is bounded by, and far more than are worth a thought in most.
pub(super) const LOOKS_MAX: usize = 16_384;

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
