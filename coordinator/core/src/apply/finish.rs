//! Attempts end with a report: `Finish`. Only the holder of the live lease may report, and a success commits all outputs at once.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use kiln_wire::client::EventKind;
use kiln_wire::{BuiltOutput, Failure, FailureClass, Lease, Outcome, Timestamp, Usage};

use super::{boxed, refuse};
use crate::effect::{Copied, Effect, Refused};
use crate::farm::{Effects, Farm};
use crate::job::{Attempt, AttemptEnd, Job, JobKey, State};

impl Farm {
    pub(super) fn finish(&mut self, lease: &Lease, outcome: Outcome, now: Timestamp, fx: &mut Effects) {
        // Whatever becomes of the report: the worker may forget it.
        fx.push(Effect::Acknowledge { worker: lease.worker.clone(), derivation: lease.derivation.clone(), attempt: lease.attempt });
        let Some((key, job)) = self.find(&lease.derivation) else {
            return refuse(Refused::StaleLease(lease.clone()), fx);
        };
        if !job.holds(lease) {
            return self.finish_late(key, lease, outcome, fx);
        }
        match outcome {
            Outcome::Built { outputs, usage } => match declared_outputs(job, outputs) {
                Some(outputs) => self.commit(key, lease, outputs, usage, now, fx),
                None => {
                    refuse(Refused::WrongOutputs { derivation: lease.derivation.clone() }, fx);
                    let message = String::from("the builder did not make exactly the outputs that the derivation declares");
                    let failure = Failure { class: FailureClass::BuildFailure, message };
                    self.end_failed_attempt(key, lease, failure, usage, now, fx);
                }
            },
            Outcome::Failed { failure, usage } => self.end_failed_attempt(key, lease, failure, usage, now, fx),
        }
    }

    /// A report whose lease is over closes only its own attempt.
    fn finish_late(&mut self, key: JobKey, lease: &Lease, outcome: Outcome, fx: &mut Effects) {
        let job = self.job(key);
        let known = job.tries.ended.iter().rposition(|ended| is_of(ended, lease));
        let Some(position) = known else {
            return refuse(Refused::StaleLease(lease.clone()), fx);
        };
        match job.tries.ended[position].end {
            // The same report again.
            AttemptEnd::Built | AttemptEnd::Failed { .. } | AttemptEnd::Differs | AttemptEnd::Same => {}
            AttemptEnd::Lost { .. } | AttemptEnd::Preempted | AttemptEnd::Outrun if differs(job, &outcome) => {
                if job.tries.ended[position].end == AttemptEnd::Outrun {
                    fx.push(Effect::Copied { derivation: lease.derivation.clone(), copied: Copied::Differs(lease.attempt) });
                }
                self.change(key, |job| job.tries.ended[position].end = AttemptEnd::Differs);
                refuse(Refused::NonDeterministic { derivation: lease.derivation.clone(), attempt: lease.attempt }, fx);
            }
            AttemptEnd::Outrun if is_same(job, &outcome) => {
                self.change(key, |job| job.tries.ended[position].end = AttemptEnd::Same);
                fx.push(Effect::Copied { derivation: lease.derivation.clone(), copied: Copied::Same(lease.attempt) });
            }
            AttemptEnd::Lost { .. } | AttemptEnd::Preempted | AttemptEnd::Outrun => refuse(Refused::StaleLease(lease.clone()), fx),
        }
    }

    /// Commits the whole output set and releases the dependents that waited for nothing else, in one step.
    fn commit(&mut self, key: JobKey, lease: &Lease, outputs: Box<[BuiltOutput]>, usage: Usage, now: Timestamp, fx: &mut Effects) {
        self.outrun(key, lease.attempt, now, fx);
        self.close_attempt(key, lease.attempt, AttemptEnd::Built, Some(usage), now);
        self.complete(key, outputs, usage.wall_ms, now, fx);
    }

    /// Gives a job that does not run its outputs, which took `wall_ms` to make, and releases its dependents.
    pub(super) fn complete(&mut self, key: JobKey, outputs: Box<[BuiltOutput]>, wall_ms: u64, now: Timestamp, fx: &mut Effects) {
        let nar_bytes = outputs.iter().fold(0u64, |sum, output| sum.saturating_add(output.info.nar_size_bytes));
        self.change(key, |job| job.state = State::Built { outputs, published: false });
        fx.extend(self.publish_owed(key));
        self.notify(key, now, EventKind::Built { wall_ms, nar_bytes }, fx);
        let dependents: Vec<JobKey> = self.index.dependents(key).collect();
        for dependent in dependents {
            let last = self.index.input_built(&self.facts, dependent);
            if last && self.job(dependent).is_unresolved() {
                fx.extend(self.resolution_owed(dependent));
            } else if last && matches!(self.job(dependent).state, State::Waiting) && self.is_wanted(dependent) {
                self.notify(dependent, now, EventKind::Ready, fx);
            }
        }
        let builds = self.watchers(key);
        self.settle(Some(key), builds, now, fx);
    }
}

fn is_of(ended: &Attempt, lease: &Lease) -> bool {
    ended.attempt == lease.attempt && ended.worker == lease.worker && ended.epoch == lease.epoch
}

/// Returns the reported outputs sorted by name, if they are exactly those of the derivation: names, and paths where these are known.
pub(super) fn declared_outputs(job: &Job, reported: Vec<BuiltOutput>) -> Option<Box<[BuiltOutput]>> {
    let count = reported.len();
    let by_name: BTreeMap<_, _> = reported.into_iter().map(|output| (output.name.clone(), output)).collect();
    let same_names = count == job.outputs.len() && by_name.keys().eq(job.outputs.iter().map(|spec| &spec.name));
    let same_paths =
        by_name.values().zip(job.outputs.iter()).all(|(output, spec)| spec.path.as_ref().is_none_or(|path| *path == output.info.path));
    (same_names && same_paths).then(|| boxed(by_name.into_values()))
}

/// Returns whether a late success made just what is committed.
fn is_same(job: &Job, outcome: &Outcome) -> bool {
    let (Some(committed), Outcome::Built { outputs, .. }) = (job.built_outputs(), outcome) else {
        return false;
    };
    committed.len() == outputs.len()
        && committed.iter().all(|known| outputs.iter().any(|output| output.name == known.name))
        && !differs(job, outcome)
}

/// Returns whether a late success made other content than what is committed.
fn differs(job: &Job, outcome: &Outcome) -> bool {
    let (Some(committed), Outcome::Built { outputs, .. }) = (job.built_outputs(), outcome) else {
        return false;
    };
    outputs.iter().any(|output| {
        committed
            .iter()
            .any(|known| known.name == output.name && (known.info.nar_hash != output.info.nar_hash || known.info.path != output.info.path))
    })
}
