//! Jobs.

use axum::Extension;
use axum::extract::State;
use kiln_api::{Attempt, Explanation, JobDetail, JobOutput, Jobs};
use kiln_core::{JobsWanted, Sight};
use kiln_wire::DrvPath;
use kiln_wire::limits::{API_JOBS_PER_PAGE_MAX, API_SEARCH_BYTES_MAX};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::ask::{self, Answer, Named, Params};
use super::{Api, Refused};
use crate::access::Caller;

/// Which jobs.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct JobsPage {
    /// Those alone that are in this state.
    state: Option<JobState>,
    /// Those alone that have this in the name of their derivation, or of an attribute that they are; letters count the same in both cases.
    #[param(max_length = 211)]
    pub(super) search: Option<String>,
    /// What `next` said on the page before.
    #[param(pattern = "^[0-9]{1,19}$")]
    cursor: Option<String>,
    /// Jobs on the page.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
}

/// A job's state.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum JobState {
    /// Waits for inputs.
    Blocked,
    /// Could run now.
    Ready,
    /// A worker has it.
    Running,
    /// Built.
    Built,
    /// Failed.
    Failed,
    /// Not built because an input failed.
    DependencyFailed,
    /// No live build wants it started.
    Cancelled,
}

impl JobsPage {
    /// Returns where the page begins, and how many jobs it has.
    pub(super) fn place(&self) -> Result<(Option<u64>, usize), Refused> {
        ask::search(&[("search", &self.search, API_SEARCH_BYTES_MAX)])?;
        Ok((ask::cursor(self.cursor.as_deref())?, ask::limit(self.limit, JOBS_USUAL, API_JOBS_PER_PAGE_MAX)?))
    }

    /// Returns the state that is wanted, in the word that jobs have for it.
    pub(super) fn state(&self) -> Option<&'static str> {
        self.state.map(|state| match state {
            JobState::Blocked => "blocked",
            JobState::Ready => "ready",
            JobState::Running => "running",
            JobState::Built => "built",
            JobState::Failed => "failed",
            JobState::DependencyFailed => "dependency-failed",
            JobState::Cancelled => "cancelled",
        })
    }
}

/// Jobs of all live builds: oldest submission first and inputs before what needs them.
#[utoipa::path(get, path = "/jobs", tag = "jobs", params(JobsPage), responses((status = 200, body = Jobs)))]
pub(super) async fn list(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Params(asked): Params<JobsPage>,
) -> Result<Answer<Jobs>, Refused> {
    let (cursor, limit) = asked.place()?;
    let wanted = JobsWanted { build: None, state: asked.state(), search: asked.search.as_deref(), sight: &caller.sight };
    api.jobs(wanted, cursor, limit).await.map(Answer)
}

/// A job of a live build: its state and why, its attempts, its outputs and inputs.
#[utoipa::path(
    get,
    path = "/jobs/{derivation}",
    tag = "jobs",
    params(ask::OfJob),
    responses((status = 200, body = JobDetail))
)]
pub(super) async fn one(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(derivation): Named<DrvPath>,
) -> Result<Answer<JobDetail>, Refused> {
    found(&api, &derivation, &caller.sight).map(Answer)
}

/// The attempts at a job of a live build, oldest first.
#[utoipa::path(
    get,
    path = "/jobs/{derivation}/attempts",
    tag = "jobs",
    params(ask::OfJob),
    responses((status = 200, body = Vec<Attempt>))
)]
pub(super) async fn attempts(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(derivation): Named<DrvPath>,
) -> Result<Answer<Vec<Attempt>>, Refused> {
    found(&api, &derivation, &caller.sight).map(|found| Answer(found.job.attempts))
}

/// The outputs of a job of a live build.
#[utoipa::path(
    get,
    path = "/jobs/{derivation}/outputs",
    tag = "jobs",
    params(ask::OfJob),
    responses((status = 200, body = Vec<JobOutput>))
)]
pub(super) async fn outputs(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(derivation): Named<DrvPath>,
) -> Result<Answer<Vec<JobOutput>>, Refused> {
    found(&api, &derivation, &caller.sight).map(|found| Answer(found.outputs))
}

/// Why a job is where it is: what it waits for, what each worker is to it, who waits for it.
#[utoipa::path(
    get,
    path = "/jobs/{derivation}/explanation",
    tag = "jobs",
    params(ask::OfJob),
    responses((status = 200, body = Explanation))
)]
pub(super) async fn explanation(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Named(derivation): Named<DrvPath>,
) -> Result<Answer<Explanation>, Refused> {
    let explained = api.explanation(&derivation, &caller.sight).await?;
    let explained = explained.ok_or_else(|| Refused::absent(format_args!("job `{derivation}` of a live build")))?;
    Ok(Answer(Explanation::of(&explained, &api.parts().store_dir)))
}

fn found(api: &Api, derivation: &DrvPath, sight: &Sight) -> Result<JobDetail, Refused> {
    api.job(derivation, sight).ok_or_else(|| Refused::absent(format_args!("job `{derivation}` of a live build")))
}

/// Jobs on a page for who does not say.
const JOBS_USUAL: usize = 100;
