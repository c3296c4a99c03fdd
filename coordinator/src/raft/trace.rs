//! Log lines about what committed entries did to attempts, from every coordinator and at the level `debug`: whoever holds the lines of
//! several coordinators beside each other sees whether all applied the same, and whether anything was committed twice.
//!
//! An entry that a restart applies again is told again, with the same index.

use kiln_core::Effect;
use kiln_wire::client::{Event, EventKind};
use kiln_wire::{AttemptId, DrvPath, Lease, LogIndex, WorkerId};

/// Tells what the entry at `index`, of the leader of `term`, did.
pub fn tell(index: LogIndex, term: u64, effects: &[Effect]) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let mut reported = None;
    for effect in effects {
        if let Some((attempt, job, worker)) = commit(&mut reported, effect) {
            tracing::debug!(index = index.0, term, attempt = attempt.0, %job, %worker, "committed");
        }
        match effect {
            Effect::Dispatch { lease, .. } => {
                let Lease { derivation, attempt, worker, .. } = lease;
                tracing::debug!(index = index.0, term, attempt = attempt.0, job = %derivation, %worker, "leased");
            }
            Effect::Revoke(lease) => {
                let Lease { derivation, attempt, worker, .. } = lease;
                tracing::debug!(index = index.0, term, attempt = attempt.0, job = %derivation, %worker, "revoked");
            }
            Effect::Notify { event, .. } => ended(index, term, reported, event),
            Effect::Acknowledge { .. }
            | Effect::Publish { .. }
            | Effect::Resolve { .. }
            | Effect::Welcome { .. }
            | Effect::Judged { .. }
            | Effect::Copied { .. }
            | Effect::Archive(_)
            | Effect::Answer(_) => {}
        }
    }
}

/// Tells how an attempt failed; which one is known if its worker reported it.
fn ended(index: LogIndex, term: u64, reported: Reported<'_>, event: &Event) {
    let (index, job) = (index.0, &event.derivation);
    let of = reported.filter(|(_, derivation, _)| *derivation == job);
    let (attempt, worker) = (of.map(|(attempt, ..)| attempt.0), of.map(|(.., worker)| tracing::field::display(worker)));
    match &event.kind {
        EventKind::Retried { class, message } => tracing::debug!(index, term, attempt, %job, worker, %class, failure = message, "retried"),
        EventKind::Failed { class, message } => tracing::debug!(index, term, attempt, %job, worker, %class, failure = message, "failed"),
        EventKind::Ready
        | EventKind::Started { .. }
        | EventKind::Built { .. }
        | EventKind::DependencyFailed { .. }
        | EventKind::Cancelled => {}
    }
}

/// The attempt whose report is being applied, until it is known to be committed.
type Reported<'a> = Option<(AttemptId, &'a DrvPath, &'a WorkerId)>;

/// Returns what an effect shows to be committed. A report's acknowledgement comes first and names the attempt. Behind a commit either the
/// outputs are to be published, unless they wait for those of an input, or the builds that want it are told, unless none does, or both.
fn commit<'a>(reported: &mut Reported<'a>, effect: &'a Effect) -> Reported<'a> {
    let committed = match effect {
        Effect::Acknowledge { attempt, derivation, worker } => {
            *reported = Some((*attempt, derivation, worker));
            return None;
        }
        Effect::Publish { derivation, .. } => derivation,
        Effect::Notify { event, .. } if matches!(event.kind, EventKind::Built { .. }) => &event.derivation,
        _ => return None,
    };
    reported.take_if(|(_, derivation, _)| *derivation == committed)
}

#[cfg(test)]
mod tests {
    use kiln_wire::Timestamp;

    use super::*;

    #[test]
    fn a_commit_is_told_once_whether_its_outputs_can_be_published_at_once_or_not() {
        let path = |name: &str| DrvPath::parse(&format!("0hm2f1psjpcwg8fijsmr4wwxrx59s092-{name}.drv")).expect("a path");
        let reports =
            || Effect::Acknowledge { worker: WorkerId::parse("w1").expect("a name"), derivation: path("top"), attempt: AttemptId(7) };
        let publish = |name: &str| Effect::Publish { derivation: path(name), outputs: Vec::new() };
        let tells = || Effect::Notify {
            builds: Vec::new(),
            event: Event { at: Timestamp(0), derivation: path("top"), kind: EventKind::Built { wall_ms: 1, nar_bytes: 1 } },
        };
        for (effects, expected) in [
            (vec![reports(), publish("top"), tells()], vec![7]),
            (vec![reports(), tells()], vec![7]),
            (vec![reports(), publish("top")], vec![7]),
            (vec![reports()], vec![]),
            (vec![publish("top")], vec![]),
            (vec![reports(), publish("low")], vec![]),
        ] {
            let mut reported = None;
            let told: Vec<u64> = effects.iter().filter_map(|effect| commit(&mut reported, effect)).map(|(attempt, ..)| attempt.0).collect();
            assert_eq!(told, expected, "{effects:?}");
        }
    }
}
