//! Store paths. A farm has one store directory, so a path is kept by its base name and printed with the directory only at the edge.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;
use core::hash::{Hash, Hasher};

use crate::text::text_serde;

/// The base name of a store object: 32 characters of hash, a dash, a name. A clone is the same text, not a copy.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct StorePath {
    /// The first eight bytes of the text as a number, which orders as they do. They are of the hash, so that they tell nearly any two paths
    /// apart: maps by path find theirs without a look at the text. Compared first: it stands first.
    head: u64,
    text: Arc<str>,
}

/// The store path of a derivation: its name ends in `.drv`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DrvPath(StorePath);

/// The directory that all store paths of a farm live in, `/nix/store` for most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreDir(String);

/// A string that is not a store path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read store path `{text}`: {rule}")]
pub struct StorePathError {
    /// The refused text, cut at 300 characters.
    pub text: String,
    /// The rule it breaks.
    pub rule: &'static str,
}

impl StorePathError {
    fn new(text: &str, rule: &'static str) -> Self {
        Self { text: text.chars().take(300).collect(), rule }
    }
}

/// Characters of the hash part.
pub(crate) const HASH_CHARS: usize = 32;
/// Nix's bound on the name part.
const NAME_CHARS_MAX: usize = 211;

impl StorePath {
    /// Reads a base name such as `0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar`.
    ///
    /// # Errors
    /// [`StorePathError`] names the rule that the text breaks.
    pub fn parse(base_name: &str) -> Result<Self, StorePathError> {
        let bytes = base_name.as_bytes();
        let rule = if bytes.len() < HASH_CHARS + 2 || bytes[HASH_CHARS] != b'-' {
            "want 32 characters of hash, a dash and a name"
        } else if !bytes[..HASH_CHARS].iter().all(|b| b"0123456789abcdfghijklmnpqrsvwxyz".contains(b)) {
            "the hash has a character outside Nix's base 32"
        } else if bytes.len() > HASH_CHARS + 1 + NAME_CHARS_MAX {
            "the name is longer than 211 characters"
        } else if !bytes[HASH_CHARS + 1..].iter().all(|b| b.is_ascii_alphanumeric() || b"+-._?=".contains(b)) {
            "the name may hold letters, digits and `+-._?=` only"
        } else if is_dots(&bytes[HASH_CHARS + 1..]) {
            "the name must not be `.` or `..` or start with `.-` or `..-`"
        } else {
            return Ok(Self { head: head(bytes), text: base_name.into() });
        };
        Err(StorePathError::new(base_name, rule))
    }

    /// Returns the base name.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the 32 characters that name the object in a binary cache.
    pub fn hash_part(&self) -> &str {
        &self.text[..HASH_CHARS]
    }

    /// Returns the part after the hash and the dash.
    pub fn name(&self) -> &str {
        &self.text[HASH_CHARS + 1..]
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StorePath").field(&self.text).finish()
    }
}

impl Hash for StorePath {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

fn head(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |head, byte| (head << 8) | u64::from(*byte))
}

/// Nix refuses the names `.` and `..`, alone or followed by a dash.
fn is_dots(name: &[u8]) -> bool {
    let head = name.split(|b| *b == b'-').next().unwrap_or_default();
    head == b"." || head == b".."
}

impl DrvPath {
    /// Reads the base name of a derivation.
    ///
    /// # Errors
    /// [`StorePathError`] if it is no store path or does not end in `.drv`.
    pub fn parse(base_name: &str) -> Result<Self, StorePathError> {
        StorePath::parse(base_name).and_then(Self::from_path)
    }

    /// Takes a store path that names a derivation.
    ///
    /// # Errors
    /// [`StorePathError`] if the name does not end in `.drv`.
    pub fn from_path(path: StorePath) -> Result<Self, StorePathError> {
        match path.name().strip_suffix(".drv") {
            Some(stem) if !stem.is_empty() => Ok(Self(path)),
            Some(_) | None => Err(StorePathError::new(path.as_str(), "a derivation's name ends in `.drv`")),
        }
    }

    /// Returns the store path.
    pub fn as_path(&self) -> &StorePath {
        &self.0
    }

    /// Returns the base name.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Returns the derivation's name, without hash and `.drv`.
    pub fn name(&self) -> &str {
        let name = self.0.name();
        name.strip_suffix(".drv").unwrap_or(name)
    }
}

impl StoreDir {
    /// Reads a store directory.
    ///
    /// # Errors
    /// [`StorePathError`] if it is not an absolute, canonical path below the root.
    pub fn parse(dir: &str) -> Result<Self, StorePathError> {
        let parts = dir.strip_prefix('/').filter(|rest| !rest.is_empty() && dir.len() <= 1024);
        match parts {
            Some(rest) if rest.split('/').all(|part| !matches!(part, "" | "." | "..")) && !rest.contains('\0') => Ok(Self(dir.to_owned())),
            Some(_) | None => Err(StorePathError::new(dir, "a store directory is an absolute path without `.`, `..` or a final slash")),
        }
    }

    /// Returns the directory as text, without a final slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the full path of `path` in this directory.
    pub fn join(&self, path: &StorePath) -> String {
        alloc::format!("{}/{}", self.0, path.as_str())
    }

    /// Reads a full path that must lie directly in this directory.
    ///
    /// # Errors
    /// [`StorePathError`] if the text is elsewhere or its base name is no store path.
    pub fn strip(&self, full: &str) -> Result<StorePath, StorePathError> {
        let base_name = full.strip_prefix(self.as_str()).and_then(|rest| rest.strip_prefix('/'));
        base_name.ok_or_else(|| StorePathError::new(full, "is not in the farm's store directory")).and_then(StorePath::parse)
    }
}

impl Default for StoreDir {
    fn default() -> Self {
        Self("/nix/store".to_owned())
    }
}

macro_rules! text_conversions {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = StorePathError;

            fn try_from(text: String) -> Result<Self, StorePathError> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(path: $name) -> String {
                path.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

text_serde!(StorePath);
text_serde!(DrvPath);
text_serde!(StoreDir);
text_conversions!(StorePath);
text_conversions!(DrvPath);
text_conversions!(StoreDir);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_path_keeps_hash_and_name() {
        let path = StorePath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a real path");
        assert_eq!((path.hash_part(), path.name()), ("0hm2f1psjpcwg8fijsmr4wwxrx59s092", "bar.drv"));
        assert_eq!(DrvPath::from_path(path).expect("ends in .drv").name(), "bar");
    }

    #[test]
    fn paths_are_ordered_as_their_texts() {
        let texts = ["0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar", "0hm2f1psjpcwg8fijsmr4wwxrx59s092-baz", "0hm2f1psk", "zz", "a0"];
        let full = |text: &str| if text.len() > 32 { text.to_owned() } else { alloc::format!("{text}{}-x", "0".repeat(32 - text.len())) };
        let mut sorted = texts.map(full);
        let mut paths = sorted.clone().map(|text| StorePath::parse(&text).expect("a path"));
        sorted.sort();
        paths.sort();
        assert_eq!(paths.each_ref().map(StorePath::as_str), sorted.each_ref().map(String::as_str));
    }

    #[test]
    fn text_that_is_no_store_path_is_refused_with_its_rule() {
        let table = [
            ("", "32 characters"),
            ("bar", "32 characters"),
            ("0hm2f1psjpcwg8fijsmr4wwxrx59s092-", "32 characters"),
            ("0hm2f1psjpcwg8fijsmr4wwxrx59s09e-bar", "base 32"),
            ("0hm2f1psjpcwg8fijsmr4wwxrx59s092-b/r", "letters"),
            ("0hm2f1psjpcwg8fijsmr4wwxrx59s092-..", "must not be"),
            ("0hm2f1psjpcwg8fijsmr4wwxrx59s092-.-x", "must not be"),
        ];
        for (text, rule) in table {
            let error = StorePath::parse(text).expect_err(text);
            assert!(error.rule.contains(rule), "{text}: {error}");
        }
    }

    #[test]
    fn a_full_path_outside_the_store_is_refused() {
        let dir = StoreDir::default();
        assert!(dir.strip("/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar").is_ok());
        for text in ["/nix/storex/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar", "/nix/store/../0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar", "bar"] {
            assert!(dir.strip(text).is_err(), "{text}");
        }
    }
}
