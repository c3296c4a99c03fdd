//! What the API is, for programs: an OpenAPI document. A test holds it against the table of routes.

use std::sync::LazyLock;

use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use utoipa::OpenApi;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, ResponseBuilder, SecurityRequirement};

use super::routes::{ROUTES, Route, Verb};
use super::{builds, events, farm, jobs, log, session, steer, workers};
use crate::access::Standing;

/// The document.
#[utoipa::path(get, path = "/openapi.json", tag = "farm", responses((status = 200, body = Object, content_type = "application/json")))]
pub(super) async fn openapi() -> Response {
    static TEXT: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(document().to_pretty_json().expect("its maps have texts for keys")));
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], TEXT.clone()).into_response()
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Kiln",
        description = "What a build farm does, and what it is told to do. Paths are full store paths, times are milliseconds since the Unix epoch."
    ),
    servers((url = "/api/v1")),
    paths(
        openapi,
        farm::viewer,
        session::begin,
        session::end,
        farm::farm,
        farm::cluster,
        farm::shares,
        farm::plan,
        farm::durations,
        farm::path,
        workers::list,
        workers::one,
        builds::list,
        builds::one,
        builds::jobs,
        jobs::list,
        jobs::one,
        jobs::attempts,
        jobs::outputs,
        jobs::explanation,
        log::log,
        events::events,
        steer::cancel_build,
        steer::restart_build,
        steer::bump_build,
        steer::cancel_job,
        steer::restart_job,
        steer::bump_job,
        steer::drain,
        steer::undrain
    ),
    components(schemas(
        kiln_api::Error,
        jobs::JobState,
        kiln_api::LogLine,
        kiln_api::LogEnd,
        kiln_api::JobEvent,
        kiln_api::BuildEvent,
        kiln_api::WorkerEvent,
        kiln_api::LeaderEvent,
        kiln_api::ManyEvent,
        kiln_api::ResyncEvent
    ))
)]
struct Described;

/// Returns the document, with what is the same of every operation.
pub(super) fn document() -> utoipa::openapi::OpenApi {
    let mut document = Described::openapi();
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    for route in ROUTES {
        let Some(item) = document.paths.paths.get_mut(route.path) else { continue };
        let operation = match route.verb {
            Verb::Get => item.get.as_mut(),
            Verb::Post => item.post.as_mut(),
        };
        if let Some(operation) = operation {
            complete(operation, route);
        }
    }
    document
}

fn complete(operation: &mut Operation, route: &Route) {
    // Names of handlers repeat between modules.
    let name = route.path.trim_matches('/').replace(['/', '.'], "-").replace(['{', '}'], "");
    operation.operation_id = Some(match route.verb {
        Verb::Get => format!("get-{name}"),
        Verb::Post => format!("post-{name}"),
    });
    let token = SecurityRequirement::new::<_, [&str; 0], &str>("token", []);
    operation.security = match route.needs {
        Standing::Nobody => None,
        // Without a token too, where the farm allows it.
        Standing::Anonymous => Some(vec![SecurityRequirement::default(), token]),
        Standing::Reader | Standing::Submitter | Standing::Admin => Some(vec![token]),
    };
    for (status, text) in REFUSALS {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Error"))).build();
        let refused = ResponseBuilder::new().description(*text).content("application/json", content).build();
        operation.responses.responses.entry((*status).to_owned()).or_insert(utoipa::openapi::RefOr::T(refused));
    }
}

/// What every operation may answer.
const REFUSALS: &[(&str, &str)] = &[
    ("400", "The request breaks a rule."),
    ("401", "No token was shown, or one that the farm does not know."),
    ("403", "The token does not allow it."),
    ("404", "There is no such thing, or it is another tenant's."),
    ("405", "The address has no such method."),
    ("408", "What was sent did not come in time."),
    ("413", "What was sent is too large."),
    ("415", "What was sent is not JSON."),
    ("416", "The range is not there."),
    ("429", "Too many ask at once: wait as long as `Retry-After` says."),
    ("503", "The farm cannot do it at the moment: wait as long as `Retry-After` says."),
];
