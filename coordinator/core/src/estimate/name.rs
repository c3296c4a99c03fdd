//! What a package is called: the name and the version of a derivation, by Nix's rule.

use kiln_wire::DrvPath;
use serde::{Deserialize, Serialize};

/// A package on a system: what is fetched under a name, or what is built. A hash that says what is meant: two packages that share it would
/// share their estimates, which happens to none of a million and breaks nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct PackageKey(u64);

/// A derivation, by a hash of its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct DerivationKey(u64);

/// Splits a derivation's name into package and version: the version begins after the first dash that no letter follows.
/// Source: Nix manual, `builtins.parseDrvName`.
pub fn split_name(name: &str) -> (&str, Option<&str>) {
    let bytes = name.as_bytes();
    let dash = (1..bytes.len()).find(|at| bytes[at - 1] == b'-' && !bytes[*at].is_ascii_alphabetic());
    match dash {
        Some(start) => (&name[..start - 1], Some(&name[start..])),
        None => (name, None),
    }
}

/// What something may be learned of: a package, a version of it, or a derivation. A job is found by each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Topic(u64);

impl PackageKey {
    /// Returns the key of a package; what is fetched under its name is another thing than what is built of it.
    pub fn of(pname: &str, system: &str, is_fetch: bool) -> Self {
        Self(fnv(&[pname, "\0", system, if is_fetch { "\0f" } else { "\0b" }]))
    }
}

impl DerivationKey {
    pub fn of(derivation: &DrvPath) -> Self {
        Self(fnv(&[derivation.as_str()]))
    }
}

impl Topic {
    /// Returns the topic of one version of a package.
    pub fn of_version(pname: &str, system: &str, is_fetch: bool, version: &str) -> Self {
        Self(fnv(&[pname, "\0", system, if is_fetch { "\0f" } else { "\0b" }, "\0", version]))
    }
}

impl From<PackageKey> for Topic {
    fn from(key: PackageKey) -> Self {
        Self(key.0)
    }
}

impl From<DerivationKey> for Topic {
    fn from(key: DerivationKey) -> Self {
        Self(key.0)
    }
}

/// FNV-1a with 64 bits. Source: Fowler, Noll, Vo.
fn fnv(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_as_nix_splits_them() {
        let table = [
            ("hello-2.12.1", "hello", Some("2.12.1")),
            ("nix-cli-2.28", "nix-cli", Some("2.28")),
            ("source", "source", None),
            ("gcc-wrapper", "gcc-wrapper", None),
            ("python3.8-numpy-1.19-doc", "python3.8-numpy", Some("1.19-doc")),
            ("a-", "a-", None),
            ("a--1", "a", Some("-1")),
            ("", "", None),
            ("-1", "", Some("1")),
        ];
        for (name, pname, version) in table {
            assert_eq!(split_name(name), (pname, version), "{name}");
        }
    }

    #[test]
    fn what_is_fetched_is_not_what_is_built() {
        let keys = [("hello", "x", false), ("hello", "x", true), ("hello", "y", false), ("hell", "ox", false)];
        let keys = keys.map(|(pname, system, is_fetch)| PackageKey::of(pname, system, is_fetch));
        assert!((0..keys.len()).all(|at| !keys[at + 1..].contains(&keys[at])));
    }
}
