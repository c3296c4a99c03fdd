//! Keys of objects: the layout of the store, which is that of a Nix binary cache.
//!
//! `nix-cache-info` · `<hash part>.narinfo` · `nar/<SHA-256 of the blob in Nix's base 32>.nar.zst` · `drv/<base name>` · `farm` ·
//! `listings/<SHA-256 of the NAR in Nix's base 32>.ls` · `logs/<base name>/<attempt>.log.zst` · `builds/<number>.build` · `realisations/<id>.doi` ·
//! `build-trace-v2/<derivation>/<output>.doi` · `debuginfo/<build id>` · `uploaded/<SHA-256 of a file in Nix's base 32>` ·
//! `notes/<kind>/<SHA-256 of the name in Nix's base 32>.note`. Every key is
//! made of checked parts, so that none leaves its directory. A key that follows from the content is written without a condition:
//! whoever writes it writes the same.

use kiln_nix::hash::{Algorithm, Hasher, nix32, parse_nix32};
use kiln_nix::narinfo::blob_key;
use kiln_nix::realisation::DerivedOutput;
use kiln_wire::{AttemptId, BuildId, DrvPath, Sha256Hash};
use object_store::path::Path;

/// Ending of a narinfo's key.
pub(crate) const NARINFO_SUFFIX: &str = ".narinfo";
/// Ending of a log's key.
const LOG_SUFFIX: &str = ".log.zst";
/// Ending of a NAR's key.
const NAR_SUFFIX: &str = ".nar.zst";
/// Characters of a SHA-256 in Nix's base 32.
const SHA256_CHARS: usize = 52;
/// Characters of a store path's hash part.
const HASH_PART_CHARS: usize = 32;
const NIX32_CHARS: &[u8] = b"0123456789abcdfghijklmnpqrsvwxyz";

pub(crate) fn cache_info() -> Path {
    Path::from("nix-cache-info")
}

pub(crate) fn farm() -> Path {
    Path::from("farm")
}

pub(crate) fn narinfo(hash_part: &str) -> Path {
    Path::from(format!("{hash_part}{NARINFO_SUFFIX}"))
}

/// Returns the hash part of the path that a key is the narinfo of.
pub(crate) fn hash_part_of(key: &Path) -> Option<&str> {
    key.as_ref().strip_suffix(NARINFO_SUFFIX).filter(|part| is_hash_part(part))
}

/// Returns the key of the blob with this SHA-256.
pub(crate) fn nar(blob_sha256: &Sha256Hash) -> Path {
    Path::from(blob_key(blob_sha256))
}

/// Returns the key of what the NAR with this SHA-256 holds.
pub(crate) fn listing(nar_hash: &Sha256Hash) -> Path {
    Path::from("listings").join(format!("{}.ls", nix32(&nar_hash.0)))
}

/// Returns the hash of the NAR that an object of this file name lists.
pub(crate) fn listed_nar(file_name: &str) -> Option<Sha256Hash> {
    let hash = file_name.strip_suffix(".ls").filter(|hash| is_nix32(hash, SHA256_CHARS))?;
    Some(Sha256Hash(parse_nix32(hash).ok()?.try_into().ok()?))
}

/// Returns the key of a NAR that is asked for by its file name, if that is one.
pub(crate) fn nar_file(file_name: &str) -> Option<Path> {
    let hash = file_name.strip_suffix(NAR_SUFFIX)?;
    is_nix32(hash, SHA256_CHARS).then(|| Path::from(format!("nar/{file_name}")))
}

pub(crate) fn realisation(of: &DerivedOutput) -> Path {
    Path::from(of.file_name())
}

/// Returns the SHA-256 that names a blob's object.
pub(crate) fn nar_hash_of(file_name: &str) -> Option<Sha256Hash> {
    let hash = file_name.strip_suffix(NAR_SUFFIX).filter(|hash| is_nix32(hash, SHA256_CHARS))?;
    Some(Sha256Hash(parse_nix32(hash).ok()?.try_into().ok()?))
}

/// Returns the directory of what the farm notes down about its store itself.
pub(crate) fn note_dir(kind: &str) -> Path {
    Path::from("notes").join(kind)
}

/// Returns the key of a note. Its name is made safe by hashing: people choose it.
pub(crate) fn note(kind: &str, name: &str) -> Path {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(name.as_bytes());
    note_dir(kind).join(format!("{}.note", hasher.finish().to_nix32()))
}

/// Returns which build's record has this file name.
pub(crate) fn build_number(file_name: &str) -> Option<BuildId> {
    file_name.strip_suffix(".build")?.parse().ok().map(BuildId)
}

pub(crate) fn derivation(path: &DrvPath) -> Path {
    derivation_dir().join(path.as_str())
}

pub(crate) fn derivation_dir() -> Path {
    Path::from("drv")
}

pub(crate) fn logs_dir() -> Path {
    Path::from("logs")
}

pub(crate) fn log_dir(derivation: &DrvPath) -> Path {
    logs_dir().join(derivation.as_str())
}

pub(crate) fn log(derivation: &DrvPath, attempt: AttemptId) -> Path {
    log_dir(derivation).join(format!("{attempt}{LOG_SUFFIX}"))
}

/// Returns whose log has this file name.
pub(crate) fn log_attempt(file_name: &str) -> Option<AttemptId> {
    file_name.strip_suffix(LOG_SUFFIX)?.parse().ok().map(AttemptId)
}

pub(crate) fn build_dir() -> Path {
    Path::from("builds")
}

/// Returns the key of the file that says where the debugging information of a build id is.
pub(crate) fn debuginfo(build_id: &str) -> Path {
    Path::from("debuginfo").join(build_id)
}

/// Returns the key of what a file became that a client uploaded, by the hash of that file, if it is one.
pub(crate) fn uploaded(file_hash: &str) -> Option<Path> {
    is_sha256(file_hash).then(|| uploaded_file(file_hash))
}

/// As [`uploaded`], of what is known to be such a hash.
pub(crate) fn uploaded_file(file_hash: &str) -> Path {
    Path::from("uploaded").join(file_hash)
}

pub(crate) fn is_sha256(text: &str) -> bool {
    is_nix32(text, SHA256_CHARS)
}

pub(crate) fn build(build: BuildId) -> Path {
    build_dir().join(format!("{build}.build"))
}

pub(crate) fn is_hash_part(text: &str) -> bool {
    is_nix32(text, HASH_PART_CHARS)
}

fn is_nix32(text: &str, chars: usize) -> bool {
    text.len() == chars && text.bytes().all(|byte| NIX32_CHARS.contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_the_store_itself_gives_are_keys() {
        let hash = Sha256Hash([7; 32]);
        let url = blob_key(&hash);
        assert_eq!(nar_file(url.strip_prefix("nar/").expect("below nar")), Some(nar(&hash)));
        let long = format!("{}.nar.zst", "0".repeat(53));
        for text in ["", ".nar.zst", "../x.nar.zst", "x", &long, &url] {
            assert_eq!(nar_file(text), None, "{text}");
        }
        assert_eq!(url.strip_prefix("nar/").and_then(nar_hash_of), Some(hash));
        assert!(note("pins", "../x").prefix_matches(&note_dir("pins")) && note("pins", "../x").parts().count() == 3);
        assert!(is_hash_part("0hm2f1psjpcwg8fijsmr4wwxrx59s092"));
        for text in ["", "..", "0hm2f1psjpcwg8fijsmr4wwxrx59s09e", "0hm2f1psjpcwg8fijsmr4wwxrx59s0922", "0hm2f1psjpcwg8fijsmr4wwxrx5/../x"]
        {
            assert!(!is_hash_part(text), "{text}");
        }
    }
}
