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
        young.retain(|(_, key, worker)| !victims.contains(&(*key, *worker)));
        ending.extend(victims.into_iter().filter_map(|(key, worker)| {
            let job = space.farm.job(key);
            Some(job.lease_of(job.leased_on(worker)?))
        }));
    }
    ending
}

/// A lease that may end: the youngest first, ties by the job's key.
type Young<'a> = (Reverse<Timestamp>, JobKey, &'a WorkerId);

/// A lease, by its job and its worker.
type Victim<'a> = (JobKey, &'a WorkerId);

/// Returns the leases that may end.
fn young<'a>(space: &Space<'a>, now: Timestamp) -> Vec<Young<'a>> {
    let farm = space.farm;
    let held = farm.index.loads.iter().flat_map(|(worker, load)| load.jobs.iter().map(move |key| (*key, worker)));
    let running = held.filter_map(|(key, worker)| Some((key, worker, farm.job(key).leased_on(worker)?)));
    let may = running.filter(|(key, _, running)| !running.light && farm.may_be_preempted(*key, running, now));
    let mut young: Vec<Young<'_>> = may.map(|(key, worker, running)| (Reverse(running.started_at), key, worker)).collect();
    young.sort_unstable();
    young
}

/// Returns leases of one worker that leave room for a job: those that began last, and none that is not needed.
fn victims<'a>(space: &Space<'_>, young: &[Young<'a>], needs: &Needs, failed_on: &BTreeSet<WorkerId>) -> Option<Vec<Victim<'a>>> {
    let mut taken: BTreeMap<&WorkerId, (Free, Vec<Victim<'a>>)> = BTreeMap::new();
    for (_, key, worker) in young {
        let Some(running) = space.farm.job(*key).leased_on(worker) else { continue };
        if failed_on.contains(*worker) {
            continue;
        }
        let Some((seat, free)) = space.named(worker).filter(|(seat, _)| fleet::suits(&seat.shape.systems, &seat.shape.features, needs))
        else {
            continue;
        };
        let (left, victims) = taken.entry(worker).or_insert((free, Vec::new()));
        *left = with(*left, running);
        victims.push((*key, worker));
        if has_room(&seat, *left, needs) {
            return Some(needed(space, &seat, free, victims, needs));
        }
    }
    None
}

/// Leaves out those, the oldest first, without which there is room as well.
fn needed<'a>(space: &Space<'_>, seat: &Seat, free: Free, victims: &[Victim<'a>], needs: &Needs) -> Vec<Victim<'a>> {
    let mut kept: Vec<Victim<'a>> = victims.to_vec();
    for victim in victims.iter().rev() {
        let others: Vec<Victim<'a>> = kept.iter().copied().filter(|other| other != victim).collect();
        let left = others.iter().filter_map(|(key, worker)| space.farm.job(*key).leased_on(worker)).fold(free, with);
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
