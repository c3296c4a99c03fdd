//! Who asks for builds, what share each has, and who may steer what.

use std::sync::Arc;

use kiln_core::{Answer, Asker, BuildRecord, Command, FAIRNESS, Farm, TRACING};
use kiln_link::{MemberName, Role};
use kiln_wire::client::{Refusal, Response, Submission};
use kiln_wire::limits::STEERED_BY_BYTES_MAX;
use kiln_wire::{Account, BuildId, Order, ShareRequest, Steering, Subject, TenantName, Traceparent, Urgency};

use crate::brought_back::draw_request;
use crate::driver::{Chain, propose};
use crate::parts::Parts;
use crate::{refuse, submit};

/// Says who asks for a build, as the farm keeps it; none as long as the farm is at a version that does not ask.
///
/// # Errors
/// A [`Refusal`] if who asks may not have it so urgent.
pub(crate) fn asker(parts: &Parts, peer: &Role, urgency: Urgency, trace: Option<Traceparent>) -> Result<Option<Asker>, Refusal> {
    let version = parts.consensus.version();
    if version < FAIRNESS {
        return if urgency.is_plain() { Ok(None) } else { Err(too_old("submit with a project or a priority", parts)) };
    }
    let Urgency { project, priority, security } = urgency;
    let tenant = tenant(peer);
    let may = || is_admin(peer) || tenant.as_ref().is_some_and(|tenant| parts.farm(|farm| farm.may_use_security(tenant)));
    if security && !may() {
        let text = format!(
            "submit: builds of `{peer}` may not be of the security class; an administrator allows it with `kiln share set TENANT --may-use-security`"
        );
        return Err(refuse::forbidden(text));
    }
    // What a farm does not know yet is told in a trace of its own.
    let trace = trace.filter(|_| version >= TRACING);
    Ok(Some(Asker { account: Account { tenant, project }, priority, security, trace }))
}

/// Returns whose builds a peer's are.
fn tenant(peer: &Role) -> Option<TenantName> {
    let name: &MemberName = match peer {
        Role::Client(name) | Role::Admin(name) => name,
        Role::Coordinator(_) | Role::Worker(_) => return None,
    };
    TenantName::parse(&name.to_string()).ok()
}

fn is_admin(peer: &Role) -> bool {
    matches!(peer, Role::Admin(_))
}

fn too_old(what: &str, parts: &Parts) -> Refusal {
    let version = parts.consensus.version();
    refuse::invalid(format!("{what}: the farm is at version {version}; upgrade its coordinators, it can from version {FAIRNESS} on"))
}

/// Lists shares, or sets one if an administrator says so.
pub(crate) async fn answer(parts: &Arc<Parts>, peer: &Role, request: ShareRequest) -> Result<Response, Refusal> {
    let now = parts.clock.now();
    let (key, share) = match request {
        ShareRequest::List => return Ok(Response::Shares(parts.farm(|farm| farm.share_views(now)))),
        ShareRequest::Set { key, share } => (key, share),
    };
    if !is_admin(peer) {
        return Err(refuse::forbidden(format!(
            "set the share of `{key}`: a certificate of `{peer}` does not allow it; ask an administrator"
        )));
    }
    if parts.consensus.version() < FAIRNESS {
        return Err(too_old("set a share", parts));
    }
    apply(parts, Command::SetShare { key, share, now }).await?;
    Ok(Response::Done)
}

/// Moves, restarts or cancels a build or a job, if it is the peer's.
pub(crate) async fn steer(parts: &Arc<Parts>, peer: &Role, steering: Steering) -> Result<Response, Refusal> {
    let Steering { subject, order } = steering;
    if parts.consensus.version() < FAIRNESS {
        return Err(too_old("bump, restart or cancel", parts));
    }
    if let (Subject::Build(build), Order::Restart) = (&subject, order)
        && parts.farm(|farm| farm.tenants_of(&subject)).is_none()
    {
        return anew(parts, peer, *build).await;
    }
    check_owner(parts, peer, &subject)?;
    let mut by = peer.to_string();
    by.truncate(STEERED_BY_BYTES_MAX);
    let now = parts.clock.now();
    apply(parts, Command::Steer { subject, order, by, now }).await?;
    Ok(Response::Done)
}

/// Checks that a build or a job is the peer's, or nobody's, or that the peer may do with those of others as it likes.
///
/// # Errors
/// A [`Refusal`] if it is another's, or there is none.
pub(crate) fn check_owner(parts: &Parts, peer: &Role, subject: &Subject) -> Result<(), Refusal> {
    let Some(owners) = parts.farm(|farm| farm.tenants_of(subject)) else {
        return Err(refuse::not_found(format!("there is no live {subject}; `kiln status` and `kiln jobs` list those that are")));
    };
    let own = tenant(peer);
    match owners.into_iter().flatten().find(|owner| Some(owner) != own.as_ref()) {
        Some(other) if !is_admin(peer) => Err(others(subject, &other, peer)),
        Some(_) | None => Ok(()),
    }
}

fn others(subject: &Subject, other: &TenantName, peer: &Role) -> Refusal {
    refuse::forbidden(format!(
        "{subject} is wanted by `{other}`: a certificate of `{peer}` does not allow to steer it; ask an administrator"
    ))
}

/// Submits once more what an ended build was.
async fn anew(parts: &Arc<Parts>, peer: &Role, build: BuildId) -> Result<Response, Refusal> {
    // Whose it is is written into the record when that goes to the archive.
    let with_owner = |farm: &Farm| {
        let account = farm.build_glance(build).map(|glance| glance.account);
        Some(BuildRecord { account, ..farm.record(build)?.clone() })
    };
    let record = match parts.farm(with_owner) {
        Some(record) => Some(record),
        None => parts.archive.get(build).await.map_err(|error| refuse::unavailable("read archived build", &error))?,
    };
    let Some(record) = record else {
        return Err(refuse::not_found(format!("there is no build {build}; `kiln status` lists those that are live")));
    };
    let owner = record.account.as_ref().and_then(|account| account.tenant.as_ref());
    if let Some(other) = owner.filter(|owner| Some(*owner) != tenant(peer).as_ref() && !is_admin(peer)) {
        return Err(others(&Subject::Build(build), other, peer));
    }
    let asker = asker(parts, peer, Urgency::default(), None)?;
    let submission = Submission {
        request: draw_request(),
        name: record.name,
        roots: record.roots,
        keep_going: true,
        urgency: Urgency::default(),
        trace: None,
        evaluation: record.evaluation,
    };
    submit::anew(parts, submission, asker).await.map(Response::Submitted)
}

async fn apply(parts: &Arc<Parts>, command: Command) -> Result<(), Refusal> {
    let applied = propose(parts.clone(), vec![command]).await.map_err(|error| refuse::unavailable("steer", &error))?;
    let refused = applied.answers.into_iter().find_map(|answer| match answer {
        Answer::Refused(refused) => Some(refuse::invalid(Chain(&refused).to_string())),
        Answer::Submitted { .. } => None,
    });
    refused.map_or(Ok(()), Err)
}
