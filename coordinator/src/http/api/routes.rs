//! The one table of routes: what there is, what it needs of who asks, and who answers it.

use axum::routing::{MethodRouter, get, post};

use super::{Api, builds, document, events, farm, jobs, log, session, steer, workers};
use crate::access::Standing;

/// One address with its method.
pub(super) struct Route {
    /// How it is asked.
    pub(super) verb: Verb,
    /// Below `/api/v1`.
    pub(super) path: &'static str,
    /// The least that may ask.
    pub(super) needs: Standing,
    /// Who can answer.
    pub(super) answers: Answers,
    pub(super) handler: fn() -> MethodRouter<Api>,
}

/// A method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    /// Looks.
    Get,
    /// Changes something.
    Post,
}

/// Who can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answers {
    /// Every coordinator, from its own state.
    Any,
    /// The leader knows more: it is asked first, and what is here stands if there is none.
    LeaderFirst,
    /// The leader alone.
    Leader,
}

const fn read(path: &'static str, answers: Answers, handler: fn() -> MethodRouter<Api>) -> Route {
    Route { verb: Verb::Get, path, needs: Standing::Anonymous, answers, handler }
}

const fn steered(path: &'static str, needs: Standing, handler: fn() -> MethodRouter<Api>) -> Route {
    Route { verb: Verb::Post, path, needs, answers: Answers::Leader, handler }
}

/// Everything that the API has.
pub(super) const ROUTES: &[Route] = &[
    Route { verb: Verb::Get, path: "/openapi.json", needs: Standing::Nobody, answers: Answers::Any, handler: || get(document::openapi) },
    Route { verb: Verb::Get, path: "/viewer", needs: Standing::Nobody, answers: Answers::Any, handler: || get(farm::viewer) },
    Route { verb: Verb::Post, path: "/session", needs: Standing::Nobody, answers: Answers::Any, handler: || post(session::begin) },
    Route { verb: Verb::Post, path: "/session/end", needs: Standing::Nobody, answers: Answers::Any, handler: || post(session::end) },
    read("/farm", Answers::LeaderFirst, || get(farm::farm)),
    read("/cluster", Answers::Any, || get(farm::cluster)),
    read("/shares", Answers::Any, || get(farm::shares)),
    read("/plan", Answers::LeaderFirst, || get(farm::plan)),
    read("/durations", Answers::Any, || get(farm::durations)),
    read("/paths/{hash}", Answers::Any, || get(farm::path)),
    read("/workers", Answers::LeaderFirst, || get(workers::list)),
    read("/workers/{worker}", Answers::LeaderFirst, || get(workers::one)),
    read("/builds", Answers::Any, || get(builds::list)),
    read("/builds/{build}", Answers::Any, || get(builds::one)),
    read("/builds/{build}/jobs", Answers::Any, || get(builds::jobs)),
    read("/jobs", Answers::Any, || get(jobs::list)),
    read("/jobs/{derivation}", Answers::Any, || get(jobs::one)),
    read("/jobs/{derivation}/attempts", Answers::Any, || get(jobs::attempts)),
    read("/jobs/{derivation}/outputs", Answers::Any, || get(jobs::outputs)),
    read("/jobs/{derivation}/explanation", Answers::LeaderFirst, || get(jobs::explanation)),
    read("/jobs/{derivation}/log", Answers::LeaderFirst, || get(log::log)),
    read("/events", Answers::Any, || get(events::events)),
    steered("/builds/{build}/cancel", Standing::Submitter, || post(steer::cancel_build)),
    steered("/builds/{build}/restart", Standing::Submitter, || post(steer::restart_build)),
    steered("/builds/{build}/bump", Standing::Submitter, || post(steer::bump_build)),
    steered("/jobs/{derivation}/cancel", Standing::Submitter, || post(steer::cancel_job)),
    steered("/jobs/{derivation}/restart", Standing::Submitter, || post(steer::restart_job)),
    steered("/jobs/{derivation}/bump", Standing::Submitter, || post(steer::bump_job)),
    steered("/workers/{worker}/drain", Standing::Admin, || post(steer::drain)),
    steered("/workers/{worker}/undrain", Standing::Admin, || post(steer::undrain)),
];
