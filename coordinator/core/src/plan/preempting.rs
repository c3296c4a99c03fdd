//! Room for the security class where there is none: which young leases end early.
//!
//! For each such job that fits nowhere, on one worker, the youngest leases that together leave it room, and no more than are needed. It is
//! placed there by the next plan, in which it comes first. Does not end anything: `Preempt` checks again. Source: ADR 0039.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::cmp::Reverse;

use kiln_wire::{Lease, Timestamp, WorkerId};

use super::has_room;
use super::space::Space;
use crate::fleet::{self, Free};
use crate::job::{JobKey, Needs, Running};
use crate::pool::Seat;

/// Returns the leases that end, so that each of some jobs has room that has none.
pub(super) fn preemptions<'n>(space: &Space<'_>, now: Timestamp, urgent: impl Iterator<Item = (&'n Needs, JobKey)>) -> Vec<Lease> {
    let mut urgent = urgent.peekable();
    if urgent.peek().is_none() {
        return Vec::new();
    }
    let mut young = young(space, now);
    let mut ending = Vec::new();
    for (needs, key) in urgent {
        let failed_on = &space.farm.job(key).tries.failed_on;
        let Some(victims) = victims(space, &young, needs, failed_on) else { continue };
        young.retain(|(_, key)| !victims.contains(key));
        ending.extend(victims.into_iter().filter_map(|key| space.farm.job(key).lease()));
    }
    ending
}

/// A lease that may end: the youngest first, ties by the job's key.
type Young = (Reverse<Timestamp>, JobKey);

/// Returns the leases that may end.
fn young(space: &Space<'_>, now: Timestamp) -> Vec<Young> {
    let farm = space.farm;
    let running = farm.index.loads.values().flat_map(|load| &load.jobs).filter_map(|key| Some((*key, farm.job(*key).running()?)));
    let may = running.filter(|(key, running)| !running.light && farm.may_be_preempted(*key, running, now));
    let mut young: Vec<Young> = may.map(|(key, running)| (Reverse(running.started_at), key)).collect();
    young.sort_unstable();
    young
}

/// Returns leases of one worker that leave room for a job: those that began last, and none that is not needed.
fn victims(space: &Space<'_>, young: &[Young], needs: &Needs, failed_on: &BTreeSet<WorkerId>) -> Option<Vec<JobKey>> {
    let mut taken: BTreeMap<&WorkerId, (Free, Vec<JobKey>)> = BTreeMap::new();
    for (_, key) in young {
        let Some(running) = space.farm.job(*key).running() else { continue };
        if failed_on.contains(&running.worker) {
            continue;
        }
        let Some((seat, free)) =
            space.named(&running.worker).filter(|(seat, _)| fleet::suits(&seat.shape.systems, &seat.shape.features, needs))
        else {
            continue;
        };
        let (left, victims) = taken.entry(&running.worker).or_insert((free, Vec::new()));
        *left = with(*left, running);
        victims.push(*key);
        if has_room(&seat, *left, needs) {
            return Some(needed(space, &seat, free, victims, needs));
        }
    }
    None
}

/// Leaves out those, the oldest first, without which there is room as well.
fn needed(space: &Space<'_>, seat: &Seat, free: Free, victims: &[JobKey], needs: &Needs) -> Vec<JobKey> {
    let mut kept: Vec<JobKey> = victims.to_vec();
    for key in victims.iter().rev() {
        let others: Vec<JobKey> = kept.iter().copied().filter(|other| other != key).collect();
        let left = others.iter().filter_map(|other| space.farm.job(*other).running()).fold(free, with);
        if has_room(seat, left, needs) {
            kept = others;
        }
    }
    kept
}

fn with(free: Free, running: &Running) -> Free {
    Free {
        cores: free.cores.saturating_add(running.granted.cores),
        slots: free.slots.saturating_add(1),
        memory_mib: free.memory_mib.saturating_add(running.granted.memory_mib),
        light: free.light,
    }
}
