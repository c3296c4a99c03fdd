//! Builds.

use axum::Extension;
use axum::extract::State;
use kiln_api::{BuildState, BuildSummary, Builds, Jobs};
use kiln_core::JobsWanted;
use kiln_wire::BuildId;
use kiln_wire::limits::{API_BUILDS_PER_PAGE_MAX, API_SEARCH_BYTES_MAX};
use serde::Deserialize;
use utoipa::IntoParams;

use super::ask::{self, Answer, Named, Params};
use super::jobs::JobsPage;
use super::reads::BuildsWanted;
use super::{Api, Refused};
use crate::access::Caller;

/// Which builds.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct BuildsPage {
    /// Those alone whose name has this in it; letters count the same in both cases.
    #[param(max_length = 211)]
    name: Option<String>,
    /// Those alone that are in this state.
    state: Option<BuildState>,
    /// Those alone of this tenant.
    #[param(max_length = 64)]
    tenant: Option<String>,
    /// Those alone of this project.
    #[param(max_length = 64)]
    project: Option<String>,
    /// What `next` said on the page before.
    #[param(pattern = "^[0-9]{1,19}$")]
    cursor: Option<String>,
    /// Builds on the page.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u64>,
}

/// Builds, live and ended, newest first.
#[utoipa::path(get, path = "/builds", tag = "builds", params(BuildsPage), responses((status = 200, body = Builds)))]
pub(super) async fn list(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Params(asked): Params<BuildsPage>,
) -> Result<Answer<Builds>, Refused> {
    let limit = ask::limit(asked.limit, BUILDS_USUAL, API_BUILDS_PER_PAGE_MAX)?;
    let before = ask::cursor(asked.cursor.as_deref())?;
    let BuildsPage { name, state, tenant, project, .. } = asked;
    ask::search(&[("name", &name, API_SEARCH_BYTES_MAX), ("tenant", &tenant, NAME_CHARS), ("project", &project, NAME_CHARS)])?;
    let wanted = BuildsWanted { name, state, tenant, project };
    api.builds(&wanted, &caller.sight, before, limit).await.map(Answer)
}

/// A build as it stands.
#[utoipa::path(
    get,
    path = "/builds/{build}",
    tag = "builds",
    params(ask::OfBuild),
    responses((status = 200, body = BuildSummary))
)]
pub(super) async fn one(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(build): Named<BuildId>,
) -> Result<Answer<BuildSummary>, Refused> {
    let found = api.build(build, &caller.sight).await?;
    found.map(Answer).ok_or_else(|| Refused::absent(format_args!("build {build}")))
}

/// Jobs of a build: inputs before what needs them. Of a build that has left the farm, those that failed.
#[utoipa::path(
    get,
    path = "/builds/{build}/jobs",
    tag = "builds",
    params(ask::OfBuild, JobsPage),
    responses((status = 200, body = Jobs))
)]
pub(super) async fn jobs(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(build): Named<BuildId>,
    Params(asked): Params<JobsPage>,
) -> Result<Answer<Jobs>, Refused> {
    let (cursor, limit) = asked.place()?;
    let wanted = JobsWanted { build: Some(build), state: asked.state(), search: asked.search.as_deref(), sight: &caller.sight };
    api.jobs(wanted, cursor, limit).await.map(Answer)
}

/// Builds on a page for who does not say.
const BUILDS_USUAL: usize = 50;
/// Characters of a tenant's name, or a project's.
const NAME_CHARS: usize = 64;
