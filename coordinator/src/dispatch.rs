//! Dispatch: makes an assignment of a committed lease and sends it to its worker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::FutureExt;
use kiln_core::Command;
use kiln_wire::worker::{Assignment, ToWorker};
use kiln_wire::{DrvPath, Failure, FailureClass, JobLimits, Leader, Lease, Outcome, OutputName, PathInfo, Resources, StorePath, Usage};

use crate::closure::{ClosureError, closure};
use crate::derivations::{DerivationError, output_paths, outputs_known};
use crate::driver::{Chain, propose_patiently};
use crate::parts::Parts;
use crate::pauses::Pauses;

/// An assignment that cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DispatchError {
    #[error("read derivation")]
    Derivation(#[from] DerivationError),
    #[error("find the input closure")]
    Closure(#[from] ClosureError),
}

impl DispatchError {
    /// Whether only the store is away: nothing is wrong with the job or its worker.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Derivation(DerivationError::Store { source, .. }) | Self::Closure(ClosureError::Store(source)) => source.is_passing(),
            Self::Derivation(_) | Self::Closure(_) => false,
        }
    }
}

/// A lease whose job is to be sent to its worker.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) leader: Leader,
    pub(crate) lease: Lease,
    pub(crate) resources: Resources,
    pub(crate) limits: JobLimits,
}

/// Sends jobs to their workers. What is at hand is sent at once, worker by worker, so that what one worker gets leaves together; what must be
/// read from the store first holds up nobody.
pub(crate) async fn dispatch_all(parts: Arc<Parts>, mut due: Vec<Due>) {
    due.sort_by(|one, other| one.lease.worker.cmp(&other.lease.worker));
    let mut due = due.into_iter().peekable();
    while due.peek().is_some() {
        let together: Vec<Due> = due.by_ref().take(TOGETHER_MAX).collect();
        parts.derivations.prepare(&parts, together.iter().map(|due| built_as(&parts, &due.lease.derivation))).await;
        for Due { leader, lease, resources, limits } in together {
            match assignment(&parts, leader, &lease, resources, limits).now_or_never() {
                Some(Ok(assignment)) => send(&parts, leader, lease, assignment),
                Some(Err(_)) | None => drop(tokio::spawn(dispatch(parts.clone(), leader, lease, resources, limits))),
            }
        }
        tokio::task::yield_now().await;
    }
}

fn send(parts: &Parts, leader: Leader, lease: Lease, assignment: Assignment) {
    parts.granted.note(&lease, assignment.inputs.iter().map(|info| &info.path));
    parts.sessions.dispatch(&lease.worker, assignment);
    if !is_live(parts, &lease) {
        // The lease ended while the assignment was made: the worker must not run it on.
        let worker = lease.worker.clone();
        parts.granted.forget(&worker, &lease.derivation, lease.attempt);
        parts.sessions.send(&worker, ToWorker::Revoke { leader, lease });
    }
}

/// Sends the job to its worker. What cannot be assembled ends the attempt as an infrastructure failure, so that the slot is free
/// again; a store that is away is waited for, for no other worker would get more of it.
async fn dispatch(parts: Arc<Parts>, leader: Leader, lease: Lease, resources: Resources, limits: JobLimits) {
    let mut pauses = Pauses::default();
    let made = loop {
        match assignment(&parts, leader, &lease, resources, limits).await {
            Err(error) if error.is_passing() && is_live(&parts, &lease) => pauses.after(&error).await,
            made => break made,
        }
    };
    match made {
        Ok(assignment) => send(&parts, leader, lease, assignment),
        Err(error) => {
            tracing::warn!(job = %lease.derivation, attempt = lease.attempt.0, worker = %lease.worker, term = leader.term, error = %Chain(&error), "dispatch");
            let failure = Failure { class: FailureClass::Infrastructure, message: format!("dispatch: {}", Chain(&error)) };
            let now = parts.clock.now();
            let finish =
                Command::Finish { lease, outcome: Outcome::Failed { failure, usage: Usage::default() }, learn: false, judge: false, now };
            if let Err(error) = propose_patiently(parts, finish).await {
                tracing::warn!(error = %Chain(&error), "report a dispatch that failed");
            }
        }
    }
}

/// Returns whether the lease is the live one of its job.
pub(crate) fn is_live(parts: &Parts, lease: &Lease) -> bool {
    parts.farm(|farm| farm.is_live(lease))
}

async fn assignment(
    parts: &Parts,
    leader: Leader,
    lease: &Lease,
    resources: Resources,
    limits: JobLimits,
) -> Result<Assignment, DispatchError> {
    let (inputs, input_outputs) = input_closure(parts, &lease.derivation).await?;
    let resolved = parts.farm(|farm| farm.resolved(&lease.derivation).cloned());
    let derivation = parts.derivations.bytes(parts, resolved.as_ref().unwrap_or(&lease.derivation)).await?.to_vec();
    Ok(Assignment {
        leader,
        lease: lease.clone(),
        store_dir: parts.store_dir.clone(),
        derivation,
        inputs,
        input_outputs,
        resources,
        limits,
        resolved,
        trace: parts.traces.attempt(parts, lease),
    })
}

pub(crate) type InputOutputs = BTreeMap<DrvPath, BTreeMap<OutputName, StorePath>>;

/// Returns the derivation that is built for a job: its own, or the resolved one in its place.
pub(crate) fn built_as(parts: &Parts, derivation: &DrvPath) -> DrvPath {
    parts.farm(|farm| farm.resolved(derivation).cloned()).unwrap_or_else(|| derivation.clone())
}

/// Returns the closure of the inputs of what is built for a derivation, and where the outputs of its input derivations are.
pub(crate) async fn input_closure(parts: &Parts, derivation: &DrvPath) -> Result<(Vec<PathInfo>, InputOutputs), DispatchError> {
    let parsed = parts.derivations.get(parts, &built_as(parts, derivation)).await?;
    let mut input_outputs = InputOutputs::new();
    let mut paths: Vec<StorePath> = parsed.sources.iter().cloned().collect();
    for (input, wanted) in &parsed.inputs {
        let all = outputs_known(parts.derivations.outline(parts, input).await?.as_ref());
        paths.extend(all.iter().filter(|(name, _)| wanted.outputs.contains(*name)).map(|(_, path)| path.clone()));
        input_outputs.insert(input.clone(), all);
    }
    Ok((closure(parts, paths).await?, input_outputs))
}

/// Returns the paths that an output of a derivation may refer to: the closure of its inputs, and its own outputs, of which `stated` are those
/// that nobody could know before; none where the recipe wants the output's references forgotten.
pub(crate) async fn reference_candidates(
    parts: &Parts,
    derivation: &DrvPath,
    output: &OutputName,
    stated: &BTreeSet<StorePath>,
) -> Result<BTreeSet<StorePath>, DispatchError> {
    let parsed = parts.derivations.get(parts, &built_as(parts, derivation)).await?;
    // Attributes that cannot be read are the worker's to refuse.
    if parsed.attributes().and_then(|attributes| attributes.discards_references(output.as_str())).unwrap_or(false) {
        return Ok(BTreeSet::new());
    }
    let (inputs, _) = input_closure(parts, derivation).await?;
    let own = output_paths(parsed.as_ref());
    Ok(inputs.into_iter().map(|info| info.path).chain(own.into_values()).chain(stated.iter().cloned()).collect())
}

/// Jobs whose derivations are read together, and that are sent before others get their turn: each takes some microseconds.
const TOGETHER_MAX: usize = 64;
