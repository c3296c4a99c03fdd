//! Resolution: the paths of a job's inputs are put into its derivation before a worker gets it. `Resolve`.
//!
//! The leader's task reads the derivation and the store; here it is checked that it took the inputs' outputs for what is committed.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use kiln_wire::client::EventKind;
use kiln_wire::limits::FAILURE_MESSAGE_BYTES_MAX;
use kiln_wire::{DrvPath, FailureClass, OutputName, StorePath, Timestamp};

use super::finish::declared_outputs;
use super::{boxed, refuse};
use crate::command::{Resolution, ResolvedInput};
use crate::effect::{Effect, Refused};
use crate::farm::{Effects, Farm, cut};
use crate::job::{Job, JobKey, Resolving, State};

impl Farm {
    /// Returns the resolve effect of a job that waits for nothing else.
    pub(crate) fn resolution_owed(&self, key: JobKey) -> Option<Effect> {
        let job = self.job(key);
        let owed = job.is_unresolved() && matches!(job.state, State::Waiting) && self.index.unbuilt(key) == 0 && self.is_wanted(key);
        owed.then(|| Effect::Resolve { derivation: (*job.derivation).clone() })
    }

    /// Takes what a derivation comes to. Checked against the farm as it is now, not as the leader's task saw it. Whatever comes of it, nothing
    /// stays staged for it: the task stages anew.
    pub(super) fn resolve(&mut self, derivation: &DrvPath, inputs: Vec<ResolvedInput>, to: Resolution, now: Timestamp, fx: &mut Effects) {
        let staged = match &to {
            Resolution::Grow { request, .. } => Some(*request),
            Resolution::Build { .. } | Resolution::Exists { .. } | Resolution::Impossible { .. } => None,
        };
        self.take_resolution(derivation, inputs, to, now, fx);
        staged.and_then(|request| self.facts.stages.remove(&request));
    }

    fn take_resolution(&mut self, derivation: &DrvPath, inputs: Vec<ResolvedInput>, to: Resolution, now: Timestamp, fx: &mut Effects) {
        let Some((key, job)) = self.find(derivation) else {
            return refuse(Refused::NoSuchJob(derivation.clone()), fx);
        };
        if !job.is_unresolved() || !matches!(job.state, State::Waiting) || self.index.unbuilt(key) > 0 {
            return refuse(Refused::NotUnresolved(derivation.clone()), fx);
        }
        let wrong = || Refused::WrongResolution(derivation.clone());
        let Some(inputs) = self.committed_inputs(job, inputs) else {
            return refuse(wrong(), fx);
        };
        match to {
            Resolution::Impossible { message } => {
                self.fail_for_good(key, FailureClass::BuildFailure, cut(&message, FAILURE_MESSAGE_BYTES_MAX), now, fx);
            }
            Resolution::Build { derivation, outputs } => {
                if !may_make(job, &outputs) {
                    return refuse(wrong(), fx);
                }
                self.set_resolved(key, derivation, inputs, outputs);
                if self.is_wanted(key) {
                    self.notify(key, now, EventKind::Ready, fx);
                }
            }
            Resolution::Exists { derivation, outputs } => {
                let Some(outputs) = declared_outputs(job, outputs) else {
                    return refuse(wrong(), fx);
                };
                let paths = outputs.iter().map(|output| (output.name.clone(), output.info.path.clone())).collect();
                self.set_resolved(key, derivation, inputs, paths);
                self.complete(key, outputs, 0, now, fx);
            }
            Resolution::Grow { request, needs } => self.grow(key, request, &needs, now, fx),
        }
    }

    fn set_resolved(&mut self, key: JobKey, derivation: DrvPath, inputs: Box<[Input]>, outputs: BTreeMap<OutputName, StorePath>) {
        self.change(key, |job| {
            job.resolving = Some(Box::new(Resolving::Done { derivation, inputs }));
            for spec in &mut job.outputs {
                spec.path = outputs.get(&spec.name).cloned().or(spec.path.take());
            }
        });
    }

    /// Returns the inputs by key, if each is an input of the job whose committed output lies there, and none is left out.
    fn committed_inputs(&self, job: &Job, inputs: Vec<ResolvedInput>) -> Option<Box<[Input]>> {
        let known = inputs.into_iter().map(|ResolvedInput { derivation, output, path }| {
            let key = self.key_of(&derivation).filter(|key| job.inputs.binary_search(key).is_ok())?;
            let committed = self.job(key).built_outputs()?.iter().any(|built| built.name == output && built.info.path == path);
            committed.then_some((key, output, path))
        });
        let known: Box<[Input]> = boxed(known.collect::<Option<Vec<_>>>()?);
        let named: BTreeSet<JobKey> = known.iter().map(|(key, ..)| *key).collect();
        job.inputs.iter().all(|input| named.contains(input)).then_some(known)
    }
}

/// An input, the wanted output of it, and where that is.
type Input = (JobKey, OutputName, StorePath);

/// Says whether the paths are of outputs of the job, and where these were known before they are the same.
fn may_make(job: &Job, outputs: &BTreeMap<OutputName, StorePath>) -> bool {
    let of = |name: &OutputName| job.outputs.iter().find(|spec| spec.name == *name);
    outputs.iter().all(|(name, path)| of(name).is_some_and(|spec| spec.path.as_ref().is_none_or(|known| known == path)))
}
