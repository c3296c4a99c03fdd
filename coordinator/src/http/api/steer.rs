//! What is changed: builds and jobs by whoever's they are, workers by administrators. The leader alone gets here.

use axum::Extension;
use axum::extract::State;
use kiln_api::Done;
use kiln_core::Sight;
use kiln_link::Role;
use kiln_wire::client::{Refusal, RefusalKind, Response};
use kiln_wire::{BuildId, DrvPath, Order, Priority, Steering, Subject, WorkerId};
use serde::Deserialize;
use utoipa::ToSchema;

use super::ask::{self, Answer, Body, Named};
use super::{Api, Refused};
use crate::access::Caller;
use crate::{drain, shares, views};

type Steered = Result<Answer<Done>, Refused>;

/// How urgent something is from here on.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Bump {
    /// Points.
    #[schema(value_type = i8, minimum = -100, maximum = 100)]
    priority: serde_json::Number,
}

/// Stops wanting a build.
#[utoipa::path(post, path = "/builds/{build}/cancel", tag = "builds", params(ask::OfBuild), responses((status = 200, body = Done)))]
pub(super) async fn cancel_build(State(api): State<Api>, Extension(caller): Extension<Caller>, Named(build): Named<BuildId>) -> Steered {
    let role = seen(&api, &caller, &Subject::Build(build)).await?;
    views::cancel(api.parts(), &role, build).await.map_err(|refusal| nameless(refusal, &Subject::Build(build)))?;
    Ok(Answer(Done { build: None }))
}

/// Tries again what failed of a build; one that has ended is submitted once more, under a new number.
#[utoipa::path(post, path = "/builds/{build}/restart", tag = "builds", params(ask::OfBuild), responses((status = 200, body = Done)))]
pub(super) async fn restart_build(State(api): State<Api>, Extension(caller): Extension<Caller>, Named(build): Named<BuildId>) -> Steered {
    steer(&api, &caller, Subject::Build(build), Order::Restart).await
}

/// Moves a build before or behind the others of its project.
#[utoipa::path(post, path = "/builds/{build}/bump", tag = "builds", params(ask::OfBuild), request_body = Bump, responses((status = 200, body = Done)))]
pub(super) async fn bump_build(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(build): Named<BuildId>,
    Body(bump): Body<Bump>,
) -> Steered {
    steer(&api, &caller, Subject::Build(build), bump.order()?).await
}

/// Lets a job fail that is not built, and with it what needs it.
#[utoipa::path(post, path = "/jobs/{derivation}/cancel", tag = "jobs", params(ask::OfJob), responses((status = 200, body = Done)))]
pub(super) async fn cancel_job(State(api): State<Api>, Extension(caller): Extension<Caller>, Named(job): Named<DrvPath>) -> Steered {
    steer(&api, &caller, Subject::Job(job), Order::Cancel).await
}

/// Tries a job that failed again, with all that it needs.
#[utoipa::path(post, path = "/jobs/{derivation}/restart", tag = "jobs", params(ask::OfJob), responses((status = 200, body = Done)))]
pub(super) async fn restart_job(State(api): State<Api>, Extension(caller): Extension<Caller>, Named(job): Named<DrvPath>) -> Steered {
    steer(&api, &caller, Subject::Job(job), Order::Restart).await
}

/// Moves a job, with all that it needs, before or behind others.
#[utoipa::path(post, path = "/jobs/{derivation}/bump", tag = "jobs", params(ask::OfJob), request_body = Bump, responses((status = 200, body = Done)))]
pub(super) async fn bump_job(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(job): Named<DrvPath>,
    Body(bump): Body<Bump>,
) -> Steered {
    steer(&api, &caller, Subject::Job(job), bump.order()?).await
}

/// Lets a worker take nothing new: it finishes what it has.
#[utoipa::path(post, path = "/workers/{worker}/drain", tag = "workers", params(ask::OfWorker), responses((status = 200, body = Done)))]
pub(super) async fn drain(State(api): State<Api>, Extension(caller): Extension<Caller>, Named(worker): Named<WorkerId>) -> Steered {
    drain::drain(api.parts(), &role(&caller)?, worker, true).await?;
    Ok(Answer(Done { build: None }))
}

/// Lets a worker take jobs again that was drained, rests or is quarantined.
#[utoipa::path(post, path = "/workers/{worker}/undrain", tag = "workers", params(ask::OfWorker), responses((status = 200, body = Done)))]
pub(super) async fn undrain(State(api): State<Api>, Extension(caller): Extension<Caller>, Named(worker): Named<WorkerId>) -> Steered {
    drain::drain(api.parts(), &role(&caller)?, worker, false).await?;
    Ok(Answer(Done { build: None }))
}

impl Bump {
    fn order(&self) -> Result<Order, Refused> {
        // `5.0` is a whole number in JSON too.
        let points = self.priority.as_f64().filter(|points| points.trunc() == *points);
        let points = points.filter(|points| (f64::from(Priority::MIN.points())..=f64::from(Priority::MAX.points())).contains(points));
        let order = points.map(|points| Order::Bump(Priority::from(points as i8)));
        order.ok_or_else(|| Refused::invalid("`priority` is a whole number from -100 to 100"))
    }
}

async fn steer(api: &Api, caller: &Caller, subject: Subject, order: Order) -> Steered {
    let role = seen(api, caller, &subject).await?;
    let steered = shares::steer(api.parts(), &role, Steering { subject: subject.clone(), order }).await;
    match steered.map_err(|refusal| nameless(refusal, &subject))? {
        Response::Submitted(build) => Ok(Answer(Done { build: Some(build.0) })),
        _done => Ok(Answer(Done { build: None })),
    }
}

/// Tells nobody who else wants something: a certificate's holder is told, who is of the farm's own people.
fn nameless(refusal: Refusal, subject: &Subject) -> Refused {
    match refusal.kind {
        RefusalKind::Forbidden => Refused::forbidden(format!("steer {subject}: others want it too; ask an administrator")),
        RefusalKind::Invalid | RefusalKind::Missing | RefusalKind::StaleLease | RefusalKind::NotFound | RefusalKind::Unavailable => {
            refusal.into()
        }
    }
}

/// Returns as whom something is steered, if it is there for whoever asks: of what is another tenant's nobody is told that it is there.
async fn seen(api: &Api, caller: &Caller, subject: &Subject) -> Result<Role, Refused> {
    let is_seen = match subject {
        Subject::Build(build) => caller.sight == Sight::All || api.build(*build, &caller.sight).await?.is_some(),
        Subject::Job(job) => api.parts().farm(|farm| farm.sees_job(job, &caller.sight)) == Some(true),
    };
    if !is_seen {
        return Err(Refused::absent(format_args!("live {subject}")));
    }
    role(caller)
}

fn role(caller: &Caller) -> Result<Role, Refused> {
    caller.role.clone().ok_or_else(|| Refused::forbidden("the name of this token's tenant is none that a certificate may have"))
}
