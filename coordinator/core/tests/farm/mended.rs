//! Mistakes that simulation found, each as the shortest story that shows it.

use std::collections::BTreeSet;

use kiln_core::{Command, Effect, Farm, Limits, Placement, WaitReason, plan, plan_without};
use kiln_wire::limits::{JOBS_PER_ENTRY_MAX, JOBS_PER_SUBMISSION_MAX};
use kiln_wire::{AttemptId, Epoch, FailureClass, JobSpec, Lease, LogIndex, RequestId, Timestamp, WorkerId};

use crate::facts::{drv, failed, offer, spec, worker};

const NOW: Timestamp = Timestamp(10);

/// A farm whose worker `w1` was registered at entry 1 and got the job `a` at entry 4.
fn leased() -> Farm {
    let mut farm = Farm::new();
    let register = Command::Register { worker: worker("w1"), offer: offer(1), attempts: vec![], since: None, judge: false, now: NOW };
    farm.apply(LogIndex(1), register);
    let request = RequestId(1);
    farm.apply(LogIndex(2), Command::Stage { request, jobs: vec![spec("a", &[])], now: NOW });
    farm.apply(LogIndex(3), Command::Submit { request, name: String::new(), roots: vec![], keep_going: false, asker: None, now: NOW });
    let placements =
        vec![Placement { derivation: drv("a"), worker: worker("w1"), epoch: Epoch(1), resources: None, light: false, after: None }];
    let effects = farm.apply(LogIndex(4), Command::Assign { placements, now: NOW });
    assert!(matches!(effects[0], Effect::Dispatch { .. }));
    farm
}

#[test]
fn an_assignment_that_never_arrived_is_charged_to_nobody() {
    // Of the process that was registered at entry 1 the lease is; a process that began later has lost what its predecessor ran.
    for (since, waits) in [(Some(Epoch(1)), false), (Some(Epoch(5)), true), (None, true)] {
        let mut farm = leased();
        farm.apply(
            LogIndex(5),
            Command::Register { worker: worker("w1"), offer: offer(1), attempts: vec![], since, judge: false, now: NOW },
        );
        let (plan, _) = plan(&farm, NOW, &Limits::STANDARD);
        assert_eq!(plan.placements.is_empty(), waits, "since {since:?}");
        farm.check_invariants().expect("the farm is sound");
    }
}

#[test]
fn a_submission_that_is_made_again_is_not_twice_as_large() {
    let (request, mut farm) = (RequestId(1), Farm::new());
    let jobs: Vec<JobSpec> = (0..JOBS_PER_ENTRY_MAX).map(|number| spec(&format!("j{number}"), &[])).collect();
    let tries = JOBS_PER_SUBMISSION_MAX / JOBS_PER_ENTRY_MAX + 2;
    for index in 0..tries {
        let index = LogIndex(u64::try_from(index).expect("small") + 1);
        assert_eq!(farm.apply(index, Command::Stage { request, jobs: jobs.clone(), now: NOW }), []);
    }
}

#[test]
fn no_job_waits_for_a_worker_that_takes_nothing_while_another_has_room() {
    let mut farm = leased();
    let lease = Lease { derivation: drv("a"), attempt: AttemptId(4), worker: worker("w1"), epoch: Epoch(1) };
    let outcome = failed(FailureClass::Infrastructure, "no input", 0);
    farm.apply(LogIndex(5), Command::Finish { lease, outcome, learn: false, judge: false, now: NOW });
    farm.apply(
        LogIndex(6),
        Command::Register { worker: worker("w2"), offer: offer(1), attempts: vec![], since: None, judge: false, now: NOW },
    );
    let later = Timestamp(1_000_000);
    for (away, placed) in [(vec![], Some("w2")), (vec!["w2"], Some("w1")), (vec!["w1"], Some("w2")), (vec!["w1", "w2"], None)] {
        let absent: BTreeSet<WorkerId> = away.iter().map(|name| worker(name)).collect();
        let (plan, report) = plan_without(&farm, later, &Limits::STANDARD, &absent);
        assert_eq!(plan.placements.first().map(|placement| placement.worker.as_str()), placed, "{away:?}");
        let reasons: Vec<&WaitReason> = report.waiting.iter().map(|waiting| &waiting.reason).collect();
        assert_eq!(reasons, if placed.is_some() { vec![] } else { vec![&WaitReason::Away] }, "{away:?}");
    }
}
