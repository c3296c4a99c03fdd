//! The store's own narinfos: written from a path's facts, and read back as strictly as if a stranger had written them.

use kiln_nix::narinfo::{self, NarInfo, NarInfoError, blob_key};
use kiln_nix::sign::SecretKey;
use kiln_wire::{PathInfo, StoreDir};

use crate::store::chain;

/// Writes the narinfo of a path and signs it.
pub(crate) fn write(store_dir: &StoreDir, info: &PathInfo, key: &SecretKey) -> Result<String, NarInfoError> {
    narinfo::write(store_dir, info, &[narinfo::sign(store_dir, info, key)])
}

/// Reads a narinfo of this store.
///
/// # Errors
/// Says in words what is wrong with it.
pub(crate) fn read(store_dir: &StoreDir, bytes: &[u8]) -> Result<PathInfo, String> {
    let narinfo = NarInfo::parse(store_dir, bytes).map_err(|err| chain(&err))?;
    let info = narinfo.path_info().map_err(|err| chain(&err))?;
    if narinfo.compression != "zstd" {
        return Err(format!("its Compression is `{}`, the store writes `zstd`", narinfo.compression));
    }
    let url = blob_key(&info.blob.sha256);
    // The second is where early farms have it: see `Store::find_blob`.
    if narinfo.url != url && narinfo.url != blob_key(&info.nar_hash) {
        return Err(format!("its URL is `{}`, that of its FileHash is `{url}`", narinfo.url));
    }
    Ok(info)
}
