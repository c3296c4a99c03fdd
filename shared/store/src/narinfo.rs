//! The store's own narinfos: written from a path's facts, and read back as strictly as if a stranger had written them.

use bytes::Bytes;
use kiln_nix::narinfo::{self, NarInfo, NarInfoError, blob_key};
use kiln_nix::{Keyring, Signature};
use kiln_wire::{PathInfo, StoreDir};

use crate::store::chain;

/// Writes the narinfo of a path, signed with every key that signs, and with what others signed it with.
pub(crate) fn write(store_dir: &StoreDir, info: &PathInfo, keys: &Keyring, others: &[Signature]) -> Result<String, NarInfoError> {
    let mut signatures = keys.sign(narinfo::fingerprint(store_dir, info).as_bytes());
    for signature in others {
        if keys.known().all(|key| key.name() != signature.key_name()) && !signatures.contains(signature) {
            signatures.push(signature.clone());
        }
    }
    narinfo::write(store_dir, info, &signatures)
}

/// Returns a stored narinfo with the signatures that it lacks: the keys may have changed since it was written. One that nobody of ours
/// signed, and what is none, stays as it lies.
pub(crate) fn with_signatures(store_dir: &StoreDir, text: Bytes, keys: &Keyring) -> Bytes {
    let Ok(info) = NarInfo::parse(store_dir, &text) else { return text };
    let lacking = keys.lacking(store_dir, &info);
    if lacking.is_empty() {
        return text;
    }
    let mut text = text.to_vec();
    lacking.iter().for_each(|signature| text.extend(format!("Sig: {signature}\n").into_bytes()));
    text.into()
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
