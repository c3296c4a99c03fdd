//! 6: what one of two attempts failed of is remembered as its worker said it, though the other goes on, and no failure is forgotten before its
//! job is given a new start.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::{Command, Farm};
use kiln_wire::limits::ATTEMPTS_KEPT_MAX;
use kiln_wire::worker::FromWorker;
use kiln_wire::{AttemptId, DrvPath, FailureClass, Lease, Outcome};

use super::{Invariant, Look};
use crate::fact::Fact;

#[derive(Default)]
pub(super) struct FailuresAreRemembered {
    /// Of what workers said that an attempt failed.
    said: BTreeMap<Lease, FailureClass>,
}

impl Invariant for FailuresAreRemembered {
    fn name(&self) -> &'static str {
        "what one of two attempts failed of is remembered as its worker said it"
    }

    fn see(&mut self, fact: &Fact<'_>, _look: &Look<'_>) -> Result<(), String> {
        match fact {
            Fact::Says { message: FromWorker::Finished { lease, outcome: Outcome::Failed { failure, .. } }, .. } => {
                self.said.insert(lease.clone(), failure.class);
                Ok(())
            }
            Fact::Applied { command, before, farm, .. } => {
                self.counted(command, before, farm)?;
                kept(command, before, farm)
            }
            _ => Ok(()),
        }
    }
}

impl FailuresAreRemembered {
    fn counted(&self, command: &Command, before: &Farm, farm: &Farm) -> Result<(), String> {
        let Command::Finish { lease, outcome: Outcome::Failed { .. }, .. } = command else { return Ok(()) };
        let Some(said) = self.said.get(lease).filter(|_| before.is_live(lease) && before.live_leases(&lease.derivation).len() > 1) else {
            return Ok(());
        };
        let failures = failures(farm, &lease.derivation);
        match failures.iter().find(|(attempt, _)| *attempt == lease.attempt) {
            Some((_, class)) if class == said => Ok(()),
            // Nobody wants the job any more, and it has left.
            None if farm.job_view(&lease.derivation).is_none() => Ok(()),
            other => Err(format!("attempt {} at `{}` failed as {said}, and is kept as {other:?}", lease.attempt, lease.derivation)),
        }
    }
}

/// Failures that are known stay known, unless the job gets a new start or there are too many.
fn kept(command: &Command, before: &Farm, farm: &Farm) -> Result<(), String> {
    let derivation = match command {
        Command::Finish { lease, .. } => &lease.derivation,
        Command::Copy { placement, .. } => &placement.derivation,
        _ => return Ok(()),
    };
    let Some(now) = farm.job_view(derivation).filter(|job| job.attempts.len() < ATTEMPTS_KEPT_MAX) else { return Ok(()) };
    let known: BTreeSet<AttemptId> =
        now.attempts.iter().filter(|attempt| attempt.failure.is_some()).map(|attempt| attempt.attempt).collect();
    match failures(before, derivation).into_iter().find(|(attempt, _)| !known.contains(attempt)) {
        Some((attempt, class)) => Err(format!("that attempt {attempt} at `{derivation}` failed as {class} is forgotten")),
        None => Ok(()),
    }
}

fn failures(farm: &Farm, derivation: &DrvPath) -> Vec<(AttemptId, FailureClass)> {
    let attempts = farm.job_view(derivation).map(|job| job.attempts).unwrap_or_default();
    attempts.into_iter().filter_map(|attempt| Some((attempt.attempt, attempt.failure?.0))).collect()
}
