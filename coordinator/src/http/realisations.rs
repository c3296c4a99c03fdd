//! What derived outputs became, in both of Nix' layouts.

use axum::extract::{Path, State as Shared};
use axum::http::HeaderMap;
use axum::response::Response;
use kiln_nix::realisation::DerivedOutput;
use kiln_wire::{DrvPath, OutputName};

use super::State;
use super::cache::failed;
use super::kept::{Keep, absent, answer};

/// Ending of a realisation's file.
const SUFFIX: &str = ".doi";

/// `realisations/sha256:<hash>!<output>.doi`, for Nix to 2.34.
pub(super) async fn by_hash(Shared(state): Shared<State>, Path(file): Path<String>, headers: HeaderMap) -> Response {
    let of = file.strip_suffix(SUFFIX).and_then(|id| DerivedOutput::parse_by_hash(id).ok());
    realisation(&state, of, &headers).await
}

/// `build-trace-v2/<derivation>/<output>.doi`, for later ones.
pub(super) async fn by_path(
    Shared(state): Shared<State>,
    Path((derivation, file)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let output = file.strip_suffix(SUFFIX).and_then(|output| OutputName::parse(output).ok());
    let of = DrvPath::parse(&derivation).ok().zip(output).map(|(derivation, output)| DerivedOutput::ByPath { derivation, output });
    realisation(&state, of, &headers).await
}

/// Names that are none are those of nothing.
async fn realisation(state: &State, of: Option<DerivedOutput>, headers: &HeaderMap) -> Response {
    let Some(of) = of else { return absent() };
    match state.store.realisation(&of, &state.keys).await {
        Ok(Some(found)) => answer(headers, Keep::Minutes, "application/json", found.to_json()),
        Ok(None) => absent(),
        Err(error) => failed(&of.file_name(), &error),
    }
}
