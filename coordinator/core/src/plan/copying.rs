//! Second attempts: which jobs that run far longer than their like get one, where, and when to look again.
//!
//! Only on slots that no ready job could use. A job is a candidate once it has run for longer than hardly one in twenty of its like, and for
//! twice what is expected at least; if what waits for it ends about last of its build; and if another worker, no slower and without late jobs
//! of its own, is expected to make it anew, inputs fetched, before it would end here. Of that nothing is known but that it is late: it is taken
//! to last as long again. Sources: Zaharia et al. 2008 (LATE); ADR 0041.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Reverse;

use kiln_wire::limits::COPIED_MS_MIN;
use kiln_wire::{AttemptId, BuildId, DrvPath, Timestamp, WorkerId};

use super::lane::Lane;
use super::near::transfer_ms;
use super::{Planner, has_room};
use crate::command::Placement;
use crate::fleet;
use crate::health::Health;
use crate::job::{JobKey, Running};
use crate::late::{on_worker_ms, speed_of};

/// A job that is late.
struct Late<'a> {
    /// When what waits for it would be built, were it to last as long again.
    until: Timestamp,
    derivation: &'a Arc<DrvPath>,
    key: JobKey,
    running: &'a Running,
}

impl<'a> Planner<'a> {
    /// Returns second attempts that are worth while, each with the attempt beside which it runs, and when a job that is not late yet will be.
    pub(super) fn copies(&mut self, lanes: &[Lane]) -> (Vec<(AttemptId, Placement)>, Option<Timestamp>) {
        let farm = self.space.farm;
        if farm.index.late.first().is_none_or(|(at, _)| *at > self.now) {
            return (Vec::new(), None);
        }
        let (mut late, look_at) = self.late();
        let slow: BTreeSet<&'a WorkerId> = late.iter().map(|late| &late.running.worker).collect();
        let ends = self.ends(&late);
        late.retain(|late| self.is_critical(late, &ends));
        late.sort_unstable_by_key(|late| (Reverse(late.until), late.derivation));
        let wanted = self.wanted(lanes);
        let mut copies = Vec::new();
        for late in late {
            if !farm.takes_copies(copies.len()) {
                break;
            }
            copies.extend(self.copy(&late, &slow, &wanted).map(|placement| (late.running.attempt, placement)));
        }
        (copies, look_at)
    }

    /// Returns the jobs that are late, and when the next one of those that were looked at will be.
    fn late(&self) -> (Vec<Late<'a>>, Option<Timestamp>) {
        let (farm, now) = (self.space.farm, self.now);
        let (mut late, mut look_at) = (Vec::new(), None::<Timestamp>);
        for (_, key) in farm.index.late.range(..=(now, JobKey(u32::MAX))).take(LOOKED_AT_MAX) {
            let job = farm.job(*key);
            let Some(running) = job.running().filter(|running| farm.may_be_copied(*key, running)) else { continue };
            let Some(late_ms) = farm.facts.estimates.late_ms(job) else { continue };
            let late_ms = on_worker_ms(late_ms, speed_of(&farm.facts, &running.worker)).max(COPIED_MS_MIN);
            let at = running.started_at.after_ms(late_ms);
            if at > now {
                look_at = look_at.into_iter().chain([at]).min();
                continue;
            }
            let behind_ms = farm.index.path_ms(*key).saturating_sub(farm.index.expected(*key).wall_ms);
            let until = now.after_ms(now.since_ms(running.started_at)).after_ms(behind_ms);
            late.push(Late { until, derivation: &job.derivation, key: *key, running });
        }
        (late, look_at)
    }

    /// Returns when the builds of late jobs would be built, as far as their running jobs say.
    fn ends(&self, late: &[Late<'_>]) -> BTreeMap<BuildId, Timestamp> {
        let index = &self.space.farm.index;
        let builds = |key: JobKey| index.links.get(&key).map(|links| links.builds.as_slice()).unwrap_or_default();
        let mut ends: BTreeMap<BuildId, Timestamp> = BTreeMap::new();
        let expected = index.ends.iter().rev().take(LOOKED_AT_MAX).map(|(at, key)| (*at, *key));
        for (at, key) in expected.chain(late.iter().map(|late| (late.until, late.key))) {
            for build in builds(key) {
                let end = ends.entry(*build).or_default();
                *end = at.max(*end);
            }
        }
        ends
    }

    /// Returns whether one of its builds ends about when what waits for the job does.
    fn is_critical(&self, late: &Late<'_>, ends: &BTreeMap<BuildId, Timestamp>) -> bool {
        let left_ms = late.until.since_ms(self.now);
        let mut live = self.space.farm.live_builds_of(late.key).filter(|(_, build)| build.is_going());
        live.any(|(build, _)| ends.get(&build).is_some_and(|end| end.since_ms(self.now) / 10 * 9 <= left_ms))
    }

    /// Returns the pools on which ready jobs wait that fit there in principle.
    fn wanted(&self, lanes: &[Lane]) -> BTreeSet<usize> {
        let waits = |lane: &&Lane| lane.left + lane.failed_there + lane.outlasting > 0;
        let could_run = |lane: &&Lane| self.space.farm.unplaceable(&lane.needs).is_none();
        lanes.iter().filter(waits).filter(could_run).flat_map(|lane| self.space.able(&lane.needs)).collect()
    }

    fn copy(&mut self, late: &Late<'_>, slow: &BTreeSet<&WorkerId>, wanted: &BTreeSet<usize>) -> Option<Placement> {
        let (farm, now) = (self.space.farm, self.now);
        let (job, running) = (farm.job(late.key), late.running);
        let needs = farm.index.needs_of(late.key, job);
        let able: Vec<usize> = self.space.able(&needs).into_iter().filter(|pool| !wanted.contains(pool)).collect();
        let kept = self.reservation.as_ref().map(|reservation| reservation.seat.id.clone());
        let speed = speed_of(&farm.facts, &running.worker);
        let is_well = |id: &WorkerId| !slow.contains(id) && farm.facts.health.get(id).is_none_or(Health::is_used_whole);
        let is_other = |id: &WorkerId| *id != running.worker && kept.as_ref() != Some(id) && !job.tries.failed_on.contains(id);
        let (seat, _) = self.space.best(&able, |seat, free| {
            has_room(seat, free, &needs) && seat.speed_per_mille >= speed && is_other(&seat.id) && is_well(&seat.id)
        })?;
        let fetch_ms = transfer_ms(farm.lacking_bytes(late.key, &seat.id), seat.fetch_mib_per_second);
        let anew_ms = on_worker_ms(farm.index.expected(late.key).wall_ms, seat.speed_per_mille).saturating_add(fetch_ms);
        if anew_ms >= now.since_ms(running.started_at) {
            return None;
        }
        let granted = fleet::grant(seat.capacity, &needs);
        let after = self.space.take(&seat, granted);
        let said = granted != fleet::grant(seat.capacity, &job.needs_next(0));
        let (worker, epoch, resources) = (seat.id.clone(), seat.epoch, said.then_some(granted));
        Some(Placement { derivation: (**late.derivation).clone(), worker, epoch, resources, light: false, after })
    }
}

/// Running jobs that one plan looks at: a bound on what it costs.
const LOOKED_AT_MAX: usize = 256;
