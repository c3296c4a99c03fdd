//! Store paths.

use kiln_wire::StoreDir;
use serde::Serialize;
use utoipa::ToSchema;

use crate::full;

/// Facts about a path, with the names that `nix path-info --json` uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PathInfo {
    /// The full path.
    pub path: String,
    /// SHA-256 of its archive (NAR), as `sha256-` and base 64.
    pub nar_hash: String,
    /// Bytes of its archive.
    pub nar_size: u64,
    /// What it refers to.
    pub references: Vec<String>,
    /// What it was built of, if known.
    #[schema(required)]
    pub deriver: Option<String>,
    /// How its path follows from its content, if it does.
    #[schema(required)]
    pub ca: Option<String>,
    /// Bytes of what is downloaded for it.
    pub download_size: u64,
}

impl PathInfo {
    /// Returns facts about a path as `--json` prints them.
    pub fn of(info: &kiln_wire::PathInfo, store_dir: &StoreDir) -> Self {
        Self {
            path: store_dir.join(&info.path),
            nar_hash: kiln_nix::hash::Hash::from(info.nar_hash).to_sri(),
            nar_size: info.nar_size_bytes,
            references: info.references.iter().map(|path| store_dir.join(path)).collect(),
            deriver: info.deriver.as_ref().map(|path| full(path, store_dir)),
            ca: info.content_address.clone(),
            download_size: info.blob.size_bytes,
        }
    }
}
