//! The farm as a whole: at a glance, its coordinators, its shares, its plan, what it learned, and facts about paths.

use axum::Extension;
use axum::extract::State;
use kiln_api::{Cluster, FarmSummary, Package, Packages, PathInfo, Plan, Share, Shares, Viewer};
use kiln_core::Sight;
use kiln_nix::NarInfo;
use kiln_wire::limits::PACKAGE_NAME_BYTES_MAX;
use serde::Deserialize;
use utoipa::IntoParams;

use super::ask::{Answer, Hash, Named, Params};
use super::{Api, Refused};
use crate::access::{Caller, Standing};
use crate::cluster;

/// Who asks, and what they may do.
#[utoipa::path(get, path = "/viewer", tag = "farm", responses((status = 200, body = Viewer)))]
pub(super) async fn viewer(Extension(caller): Extension<Caller>) -> Answer<Viewer> {
    Answer(view(caller))
}

/// Returns who somebody is, for themselves.
pub(super) fn view(caller: Caller) -> Viewer {
    Viewer {
        scope: caller.standing.word().to_owned(),
        tenant: match (&caller.sight, caller.standing) {
            (_, Standing::Nobody) | (Sight::All, _) => None,
            (Sight::Of(tenant), _) => Some(tenant.to_string()),
        },
        may_steer: caller.standing >= Standing::Submitter,
        may_administer: caller.standing >= Standing::Admin,
        token: caller.token,
    }
}

/// The farm at a glance.
#[utoipa::path(get, path = "/farm", tag = "farm", responses((status = 200, body = FarmSummary)))]
pub(super) async fn farm(State(api): State<Api>) -> Answer<FarmSummary> {
    Answer(api.farm())
}

/// The coordinators, as the one that answers sees them.
#[utoipa::path(get, path = "/cluster", tag = "farm", responses((status = 200, body = Cluster)))]
pub(super) async fn cluster(State(api): State<Api>) -> Answer<Cluster> {
    Answer(Cluster::of(&cluster::view(api.parts())))
}

/// Who has which share of the farm; a tenant's token shows the tenant's.
#[utoipa::path(get, path = "/shares", tag = "farm", responses((status = 200, body = Shares)))]
pub(super) async fn shares(State(api): State<Api>, Extension(caller): Extension<Caller>) -> Answer<Shares> {
    let now = api.parts().clock.now();
    let views = api.parts().farm(|farm| farm.share_views(now));
    let seen = views.iter().filter(|view| match &caller.sight {
        Sight::All => true,
        Sight::Of(tenant) => view.tenant.as_ref() == Some(tenant),
    });
    Answer(Shares { shares: seen.map(Share::of).collect() })
}

/// Why ready jobs wait: all are counted, some are named.
#[utoipa::path(get, path = "/plan", tag = "farm", responses((status = 200, body = Plan)))]
pub(super) async fn plan(State(api): State<Api>, Extension(caller): Extension<Caller>) -> Answer<Plan> {
    Answer(api.plan(&caller.sight))
}

/// Of which package.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct OfPackage {
    /// The package's name, without its version.
    #[param(min_length = 1, max_length = 211)]
    pname: String,
}

/// What builds of a package are expected to take.
#[utoipa::path(get, path = "/durations", tag = "farm", params(OfPackage), responses((status = 200, body = Packages)))]
pub(super) async fn durations(State(api): State<Api>, Params(of): Params<OfPackage>) -> Result<Answer<Packages>, Refused> {
    if of.pname.is_empty() || of.pname.chars().count() > PACKAGE_NAME_BYTES_MAX {
        return Err(Refused::invalid(format!("`pname` has from 1 to {PACKAGE_NAME_BYTES_MAX} characters")));
    }
    let views = api.parts().farm(|farm| farm.packages(Some(&of.pname)));
    Ok(Answer(Packages { packages: views.iter().map(Package::of).collect() }))
}

/// Facts about a path that the farm has.
#[utoipa::path(
    get,
    path = "/paths/{hash}",
    tag = "paths",
    params(("hash" = String, Path, description = "The hash part of the path's name.", pattern = "^[0-9a-df-np-sv-z]{32}$")),
    responses((status = 200, body = PathInfo))
)]
pub(super) async fn path(State(api): State<Api>, Named(Hash(hash)): Named<Hash>) -> Result<Answer<PathInfo>, Refused> {
    let parts = api.parts();
    let failed = |error: kiln_store::StoreError| Refused::failed("look up a path", &error);
    let text = parts.store.narinfo(&hash, &parts.keys).await.map_err(failed)?;
    let named = text.and_then(|text| NarInfo::parse(&parts.store_dir, &text).ok()).map(|narinfo| narinfo.path);
    let info = match named {
        Some(path) => parts.path_info(&path).await.map_err(failed)?,
        None => None,
    };
    let info = info.ok_or_else(|| Refused::absent(format_args!("path `{hash}` in this farm's store")))?;
    Ok(Answer(PathInfo::of(&info, &parts.store_dir)))
}
