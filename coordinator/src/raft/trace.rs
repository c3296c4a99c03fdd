//! Log lines about what committed entries did to attempts, from every coordinator and at the level `debug`: whoever holds the lines of
//! several coordinators beside each other sees whether all applied the same, and whether anything was committed twice.
//!
//! An entry that a restart applies again is told again, with the same index.

use kiln_core::Effect;
use kiln_wire::client::EventKind;
use kiln_wire::{AttemptId, LogIndex};

/// Tells what the entry at `index` did.
pub fn tell(index: LogIndex, effects: &[Effect]) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    // A report's acknowledgement comes before what followed from it, and names the attempt.
    let mut reported = AttemptId(0);
    for effect in effects {
        match effect {
            Effect::Acknowledge { attempt, .. } => reported = *attempt,
            Effect::Dispatch { lease, .. } => {
                tracing::debug!(index = index.0, attempt = lease.attempt.0, derivation = %lease.derivation, worker = %lease.worker, "leased");
            }
            Effect::Publish { derivation, .. } => {
                tracing::debug!(index = index.0, attempt = reported.0, %derivation, "committed");
            }
            Effect::Revoke(lease) => {
                tracing::debug!(index = index.0, attempt = lease.attempt.0, derivation = %lease.derivation, worker = %lease.worker, "revoked");
            }
            Effect::Notify { event, .. } => match &event.kind {
                EventKind::Retried { class, message } => {
                    tracing::debug!(index = index.0, derivation = %event.derivation, %class, message, "retried");
                }
                EventKind::Failed { class, message } => {
                    tracing::debug!(index = index.0, derivation = %event.derivation, %class, message, "failed");
                }
                EventKind::Ready
                | EventKind::Started { .. }
                | EventKind::Built { .. }
                | EventKind::DependencyFailed { .. }
                | EventKind::Cancelled => {}
            },
            Effect::Welcome { .. } | Effect::Archive(_) | Effect::Answer(_) => {}
        }
    }
}
