//! What must hold of jobs that run in two places, and of what is remembered of failures.

use alloc::string::ToString;
use alloc::vec::Vec;

use kiln_wire::FailureClass;

use super::{Violation, ensure};
use crate::farm::Farm;
use crate::job::{Attempt, AttemptEnd, Job, Running, State};

/// The second lease of a job is another worker's, began later, and has nothing that the first one decides.
pub(super) fn two_leases_are_one_and_its_copy(farm: &Farm) -> Result<(), Violation> {
    const INVARIANT: &str = "a job has two live leases only if the younger, on another worker, is a copy of the elder";
    farm.facts.jobs.values().try_for_each(|job| {
        let leases: Vec<&Running> = job.leases().collect();
        let holds = match leases[..] {
            [] | [_] => true,
            [first, copy] => {
                let is_plain = copy.copy.is_none() && copy.owed.is_none() && copy.revoke_at.is_none() && !copy.light;
                is_plain && copy.attempt != first.attempt && copy.worker != first.worker && first.owed.is_none() && !job.check
            }
            _ => false,
        };
        ensure(holds, INVARIANT, || job.derivation.to_string())
    })
}

/// What an attempt failed of is never lost: it counts against its worker, and decides what becomes of the job once no attempt is left.
pub(super) fn failures_are_remembered(farm: &Farm) -> Result<(), Violation> {
    const INVARIANT: &str = "what ended attempts failed of is counted, and decides once none is left that could make it good";
    farm.facts.jobs.values().try_for_each(|job| {
        let failures = job.tries.ended.iter().filter_map(|attempt| Some((attempt, class_of(attempt)?)));
        let holds = failures.clone().all(|(attempt, class)| is_counted(job, attempt, class));
        let count = failures.filter(|(_, class)| *class == FailureClass::Infrastructure).count();
        let counted = usize::try_from(job.tries.infrastructure_count).is_ok_and(|counted| counted >= count);
        ensure(holds && counted, INVARIANT, || job.derivation.to_string())
    })
}

fn class_of(attempt: &Attempt) -> Option<FailureClass> {
    match &attempt.end {
        AttemptEnd::Failed { class, .. } | AttemptEnd::Lost { class, .. } => Some(*class),
        AttemptEnd::Built | AttemptEnd::Differs | AttemptEnd::Preempted | AttemptEnd::Outrun | AttemptEnd::Same => None,
    }
}

fn is_counted(job: &Job, attempt: &Attempt, class: FailureClass) -> bool {
    match class {
        FailureClass::Infrastructure => job.tries.failed_on.contains(&attempt.worker),
        FailureClass::BuildFailure | FailureClass::LimitExceeded => match &job.state {
            State::Waiting => false,
            State::Running(running) => running.owed.as_ref().is_some_and(|owed| owed.class == class || is_final(owed.class)),
            State::Built { .. } | State::Failed { .. } | State::DependencyFailed { .. } => true,
        },
        FailureClass::OutOfMemory => match &job.state {
            State::Waiting => job.tries.memory_mib.is_some(),
            State::Running(running) => job.tries.memory_mib.is_some() || running.owed.is_some(),
            State::Built { .. } | State::Failed { .. } | State::DependencyFailed { .. } => true,
        },
        FailureClass::Cancelled => true,
    }
}

fn is_final(class: FailureClass) -> bool {
    matches!(class, FailureClass::BuildFailure | FailureClass::LimitExceeded)
}
