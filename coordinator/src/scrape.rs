//! The figures of `/metrics`, gathered when they are asked for.

use std::sync::atomic::Ordering;

use kiln_wire::client::BuildState;
use kiln_wire::{Ailing, Standing};

use crate::http::Snapshot;
use crate::meter::CLASSES;
use crate::parts::Parts;
use crate::{leading, views};

/// Returns the figures as they are now.
pub(crate) fn snapshot(parts: &Parts) -> Snapshot {
    let workers = views::workers(parts);
    let connected = workers.iter().filter(|worker| worker.connected);
    let (slots, slots_used) =
        connected.fold((0, 0), |(slots, used), worker| (slots + u64::from(worker.offer.slots), used + count(&worker.running)));
    let leases = workers.iter().map(|worker| count(&worker.running)).sum();
    let (jobs, builds_active) = parts.farm(|farm| {
        let active = farm.builds().filter_map(|build| farm.build_view(build)).filter(|view| view.state == BuildState::Active).count();
        (farm.counts(), u64::try_from(active).unwrap_or(u64::MAX))
    });
    let ailing = |is: fn(&Ailing) -> bool| {
        let found = workers.iter().filter_map(|worker| worker.ailing.as_ref()).filter(|ailing| is(ailing));
        u64::try_from(found.count()).unwrap_or(u64::MAX)
    };
    let raft = parts.consensus.metrics();
    let members = parts.consensus.members();
    let others = || members.iter().filter(|member| member.node != parts.consensus.node());
    let traffic = parts.store.traffic();
    let meter = &parts.meter;
    Snapshot {
        jobs,
        jobs_unplaceable: meter.unplaceable.load(Ordering::Relaxed),
        workers_connected: u64::try_from(workers.iter().filter(|worker| worker.connected).count()).unwrap_or(u64::MAX),
        workers_resting: ailing(|of| matches!(of.standing, Standing::Resting { .. })),
        workers_on_probation: ailing(|of| matches!(of.standing, Standing::Probation { .. })),
        workers_quarantined: ailing(|of| matches!(of.standing, Standing::Quarantined { .. })),
        workers_drained: ailing(|of| of.drained),
        leases,
        slots,
        slots_used,
        builds_active,
        attempts_built: meter.built.load(Ordering::Relaxed),
        attempts_failed: CLASSES.iter().zip(&meter.failed).map(|(class, failed)| (*class, failed.load(Ordering::Relaxed))).collect(),
        copies_begun: meter.copies.begun.load(Ordering::Relaxed),
        copies_won: meter.copies.won.load(Ordering::Relaxed),
        copies_same: meter.copies.same.load(Ordering::Relaxed),
        copies_differing: meter.copies.differing.load(Ordering::Relaxed),
        log_index: raft.applied_index.0,
        term: raft.term,
        is_leader: leading::own(parts).is_some(),
        is_voter: members.iter().any(|member| member.node == parts.consensus.node() && member.votes),
        disk_full: parts.consensus.trouble().is_some(),
        members: count(&members),
        member_lags: others().filter_map(|of| Some((of.node.0, raft.last_log_index.0.saturating_sub(of.matched?.0)))).collect(),
        member_silences_ms: others().filter_map(|of| Some((of.node.0, of.silent_ms?))).collect(),
        store_received_bytes: traffic.received_bytes,
        store_served_bytes: traffic.served_bytes,
        plans: meter.plans.load(Ordering::Relaxed),
        plan_us: meter.plan_us.load(Ordering::Relaxed),
        commits: raft.commit,
        syncs: raft.sync,
    }
}

fn count<T>(items: &[T]) -> u64 {
    u64::try_from(items.len()).unwrap_or(u64::MAX)
}
