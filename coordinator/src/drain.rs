//! Administrators take workers out of use, and give them back; what the farm does of itself is told.

use std::sync::Arc;

use kiln_core::{Answer, Command, JUDGING};
use kiln_link::Role;
use kiln_wire::client::{Refusal, Response};
use kiln_wire::{Ailing, Standing, WorkerId};

use crate::driver::{Chain, propose};
use crate::parts::Parts;
use crate::refuse;

/// Lets a worker take nothing new, or take jobs again, if an administrator says so.
pub(crate) async fn drain(parts: &Arc<Parts>, peer: &Role, worker: WorkerId, drain: bool) -> Result<Response, Refusal> {
    let what = if drain { "drain" } else { "undrain" };
    if !matches!(peer, Role::Admin(_)) {
        let text = format!(
            "{what} worker {worker}: a certificate of `{peer}` does not allow it; `kiln ca issue --role admin/NAME` makes one that does"
        );
        return Err(refuse::forbidden(text));
    }
    let version = parts.consensus.version();
    if version < JUDGING {
        return Err(refuse::invalid(format!(
            "{what} worker {worker}: the farm is at version {version}; upgrade its coordinators, it can from version {JUDGING} on"
        )));
    }
    let command = Command::Drain { worker, drain, now: parts.clock.now() };
    let applied = propose(parts.clone(), vec![command]).await.map_err(|error| refuse::unavailable("drain", &error))?;
    let refused = applied.answers.into_iter().find_map(|answer| match answer {
        Answer::Refused(refused) => Some(refuse::not_found(format!("{what}: {}; `kiln workers` lists them", Chain(&refused)))),
        Answer::Submitted { .. } => None,
    });
    refused.map_or(Ok(Response::Done), Err)
}

/// Tells operators how a worker stands.
pub(crate) fn tell(worker: &WorkerId, ailing: Option<&Ailing>) {
    let Some(ailing) = ailing else {
        tracing::info!(%worker, "worker is well");
        return;
    };
    let (last, drained) = (ailing.message.as_str(), ailing.drained);
    match ailing.standing {
        Standing::Working => tracing::info!(%worker, drained, "worker takes nothing new"),
        Standing::Resting { until } => tracing::warn!(%worker, rests = ailing.rests, ?until, last, "jobs keep failing on worker: it rests"),
        Standing::Probation { .. } => tracing::info!(%worker, "worker has rested: it gets one job at a time"),
        Standing::Quarantined { .. } => {
            tracing::warn!(%worker, last, "jobs failed on worker after every rest: it is quarantined until `kiln undrain`");
        }
    }
}
