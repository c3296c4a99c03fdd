//! Second attempts: what holds of each command and of each plan, and how a leader looks again when time alone makes a job late.

use kiln_core::{Command, Effect, Farm, Lead, Limits, Steady, plan};
use kiln_wire::limits::COPY_SLOTS_PERCENT_MAX;
use kiln_wire::{Epoch, JobSpec, Leader, Lease, LogIndex, Measured, NodeId, RequestId, Timestamp};

use crate::facts::{drv, offer, spec, worker};

const LIMITS: Limits = Limits { copies: true, ..Limits::STANDARD };

/// Returns every live lease.
pub fn live(farm: &Farm) -> Vec<Lease> {
    farm.jobs().flat_map(|job| farm.live_leases(&job.derivation)).collect()
}

/// Returns a lease that has ended though its worker neither said so, nor registered, nor was lost, nor is told to stop.
pub fn untold(farm: &Farm, before: Vec<Lease>, command: &Command, effects: &[Effect]) -> Option<Lease> {
    let by_itself = |held: &Lease| match command {
        Command::Finish { lease, .. } => lease == held,
        Command::Register { worker, .. } | Command::Lose { worker, .. } => *worker == held.worker,
        _ => false,
    };
    let is_told = |held: &Lease| effects.iter().any(|effect| matches!(effect, Effect::Revoke(lease) if lease == held));
    before.into_iter().find(|held| !farm.is_live(held) && !by_itself(held) && !is_told(held))
}

/// A farm refuses nothing of a plan that was made for it, and what is ready is placed first.
pub fn check_copies(farm: &Farm, index: u64, now: Timestamp, seed: u64) {
    let mut farm = farm.clone();
    let (plan, _) = plan(&farm, now, &LIMITS);
    let assign = Command::Assign { placements: plan.placements, now };
    let copies = plan.copies.into_iter().map(|(of, placement)| Command::Copy { of, placement, now });
    for (at, command) in (index..).zip(core::iter::once(assign).chain(copies)) {
        let effects = farm.apply(LogIndex(at), command);
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Answer(_))), "seed {seed}: the farm refuses its own plan");
    }
}

/// A farm whose jobs are known to take a minute, with a job on each of some workers and as many idle ones.
fn farm(jobs: u32) -> Farm {
    let (mut farm, mut index, now) = (Farm::new(), 0, Timestamp(0));
    let mut apply = |command| {
        index += 1;
        farm.apply(LogIndex(index), command);
    };
    for number in 0..2 * jobs {
        let worker = worker(&format!("w{number:03}"));
        apply(Command::Register { worker, offer: offer(1), attempts: Vec::new(), since: None, judge: false, now });
    }
    let measured = Measured { pname: "job".into(), system: "x86_64-linux".into(), wall_ms: 60_000, ..Measured::default() };
    apply(Command::ImportDurations { durations: vec![measured], now });
    let jobs: Vec<JobSpec> = (0..jobs).map(|number| spec(&format!("job-{number}"), &[])).collect();
    apply(Command::Stage { request: RequestId(1), jobs, now });
    apply(Command::Submit { request: RequestId(1), name: String::new(), roots: Vec::new(), keep_going: true, asker: None, now });
    for placement in plan(&farm, now, &LIMITS).0.placements {
        index += 1;
        farm.apply(LogIndex(index), Command::Assign { placements: vec![placement], now });
    }
    farm
}

#[test]
fn no_more_slots_hold_second_attempts_than_may() {
    for (jobs, expect) in [(1, 1), (10, 1), (13, 1), (25, 2), (100, 8)] {
        let farm = farm(jobs);
        let (plan, _) = plan(&farm, Timestamp(400_000), &LIMITS);
        assert_eq!(plan.copies.len(), expect, "{jobs} late jobs, {} slots, {COPY_SLOTS_PERCENT_MAX} %", 2 * jobs);
        let mut workers: Vec<&str> = plan.copies.iter().map(|(_, placement)| placement.worker.as_str()).collect();
        workers.dedup();
        assert_eq!(workers.len(), expect, "each on a worker of its own");
        let none = kiln_core::plan(&farm, Timestamp(400_000), &Limits::STANDARD).0.copies;
        assert_eq!(none, [], "a farm at an earlier version knows no second attempts");
    }
}

#[test]
fn a_leader_wakes_when_a_job_is_late_and_proposes_a_second_attempt() {
    let farm = farm(1);
    let here = Leader { term: 1, node: NodeId(1) };
    let mut lead = Lead::default();
    lead.follow(Some(here));
    lead.bounded(LIMITS);
    lead.enforce(&farm, [], Timestamp(1_000));
    let propose = |lead: &mut Lead, now| lead.plan(&farm, Timestamp(now), Steady(now)).map(|(commands, _)| commands).unwrap_or_default();
    assert_eq!(propose(&mut lead, 1_000), []);
    let wait_ms = lead.wake_after_ms(&farm, None, Timestamp(1_000), Steady(1_000)).expect("it looks again");
    assert!((110_000..180_000).contains(&wait_ms), "at about twice the minute: {wait_ms}");
    let late = 1_000 + wait_ms;
    lead.enforce(&farm, [], Timestamp(late));
    let commands = propose(&mut lead, late);
    let [Command::Copy { of, placement, .. }] = &commands[..] else { panic!("{commands:?}") };
    let lease = farm.live_lease(&drv("job-0")).expect("it runs");
    assert_eq!((*of, placement.worker == lease.worker), (lease.attempt, false));
    assert_ne!(placement.epoch, Epoch(0));
}
