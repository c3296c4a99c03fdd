//! The figures of `/metrics`, gathered when they are asked for. No look at the farm takes longer for more jobs: what is looked at are classes
//! of ready jobs, workers, and what runs on them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use kiln_wire::client::{BuildState, WorkerView};
use kiln_wire::worker::Lacking;
use kiln_wire::{Ailing, Standing};

use crate::http::api::reads::away;
use crate::http::{Fleet, Raft, Snapshot, Traffic, Upstream};
use crate::parts::Parts;
use crate::process::{Disk, Process};
use crate::{leading, views};

/// Returns the figures as they are now.
pub(crate) fn snapshot(parts: &Parts) -> Snapshot {
    let meter = &parts.meter;
    let (jobs, builds, running, (queue, beyond)) = parts.farm(|farm| {
        let active = farm.builds().filter_map(|build| farm.build_glance(build)).filter(|build| build.state == BuildState::Active).count();
        let running: BTreeMap<String, u64> =
            farm.running_by_system().into_iter().map(|(system, count)| (system.to_owned(), count)).collect();
        (farm.counts(), active, running, farm.queue(&farm.reasons(&away(parts, farm)), DELAYED_LOOKED_MAX))
    });
    let jobs_unplaceable = queue.iter().filter(|(of, _)| of.is_unplaceable).map(|(_, count)| count).sum();
    Snapshot {
        jobs,
        queue: meter.kinds.name(queue, beyond),
        jobs_unplaceable,
        running,
        builds_active: u64::try_from(builds).unwrap_or(u64::MAX),
        counted: parts.consensus.tally().read(),
        fleet: fleet(&views::workers(parts)),
        plans: of(&meter.plans),
        plan_us: of(&meter.plan_us),
        log_bytes: parts.logs.appended_bytes(),
        backed_up_at_ms: of(&meter.backed_up_at_ms),
        raft: raft(parts),
        traffic: traffic(parts),
        upstream: Upstream {
            found: of(&meter.upstream.found),
            absent: of(&meter.upstream.absent),
            taken: of(&meter.upstream.taken),
            taken_bytes: of(&meter.upstream.taken_bytes),
            failed: of(&meter.upstream.failed),
        },
        webhooks: [
            ("delivered", &meter.hooks.delivered),
            ("failed", &meter.hooks.failed),
            ("given_up", &meter.hooks.given_up),
            ("lost", &meter.hooks.lost),
        ]
        .map(|(result, count)| (result, count.load(Ordering::Relaxed)))
        .into(),
        trace_spans_lost: parts.traces.lost(),
        disk: Disk::of(&parts.dir),
        process: Process::own(),
        // Counted where requests are answered.
        answers: Default::default(),
    }
}

fn fleet(workers: &[WorkerView]) -> Fleet {
    let connected = || workers.iter().filter(|worker| worker.connected);
    let mut fleet = Fleet {
        connected: u64::try_from(connected().count()).unwrap_or(u64::MAX),
        registered: count(workers),
        leases: workers.iter().map(|worker| count(&worker.running)).sum(),
        slots: connected().map(|worker| u64::from(worker.offer.slots)).sum(),
        slots_used: connected().map(|worker| count(&worker.running)).sum(),
        ..Fleet::default()
    };
    for worker in workers {
        for why in worker.ailing.iter().flat_map(ailments) {
            *fleet.ailing.entry(why).or_default() += 1;
        }
        if let Some(strain) = &worker.strain {
            *fleet.strained.entry(lacking(strain.lacks)).or_default() += 1;
        }
    }
    fleet
}

fn ailments(ailing: &Ailing) -> impl Iterator<Item = &'static str> {
    let standing = match ailing.standing {
        Standing::Working => None,
        Standing::Resting { .. } => Some("resting"),
        Standing::Probation { .. } => Some("probation"),
        Standing::Quarantined { .. } => Some("quarantined"),
    };
    standing.into_iter().chain(ailing.drained.then_some("drained"))
}

fn lacking(what: Lacking) -> &'static str {
    match what {
        Lacking::Disk => "disk",
        Lacking::Memory => "memory",
        Lacking::Cpu => "cpu",
        Lacking::Io => "io",
    }
}

fn raft(parts: &Parts) -> Raft {
    let consensus = &parts.consensus;
    let (raft, members, own) = (consensus.metrics(), consensus.members(), consensus.node());
    let others = || members.iter().filter(|member| member.node != own);
    let is_leader = leading::own(parts).is_some();
    let leaders = parts.meter.leaders();
    let voters = members.iter().filter(|member| member.votes);
    Raft {
        log_index: raft.applied_index.0,
        log_bytes: raft.log_bytes,
        log_segments: raft.log_segments,
        term: raft.term,
        is_leader,
        // One that has spoken lately: who follows remembers a dead one for as long as nobody else is elected.
        has_leader: consensus.is_led(),
        leader_changes: leaders.changes,
        leader_changed_at_ms: leaders.changed_at.0,
        is_voter: voters.clone().any(|member| member.node == own),
        disk_full: consensus.trouble().is_some(),
        members: count(&members),
        voters: u64::try_from(voters.count()).unwrap_or(u64::MAX),
        member_lags: others().filter_map(|of| Some((of.node.0, raft.last_log_index.0.saturating_sub(of.matched?.0)))).collect(),
        member_silences_ms: others().filter_map(|of| Some((of.node.0, of.silent_ms?))).collect(),
        member_votes: others().map(|of| (of.node.0, of.votes)).collect(),
        proposals: raft.proposals_in_flight,
        commits: raft.commit,
        syncs: raft.sync,
    }
}

fn traffic(parts: &Parts) -> Traffic {
    let (stored, moved) = (parts.store.traffic(), &parts.meter.moved);
    Traffic {
        from_workers_bytes: stored.made_bytes,
        from_others_bytes: stored.received_bytes,
        to_workers_bytes: of(&moved.to_workers),
        to_others_bytes: stored.served_bytes,
        spared_bytes: of(&moved.spared),
    }
}

fn of(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn count<T>(items: &[T]) -> u64 {
    u64::try_from(items.len()).unwrap_or(u64::MAX)
}

/// Jobs that wait a while after a failure of which is looked at what they need; the others are counted together.
const DELAYED_LOOKED_MAX: usize = 4_096;
