//! Content addresses (`fixed:r:sha256:…`, `fixed:sha256:…`, `text:sha256:…`) and the store path that follows from each.
//!
//! Source: Nix's `store-path.md` and `content-address.cc`.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;

use kiln_wire::{PathInfo, StoreDir, StorePath};

use crate::hash::{Algorithm, Hash, Hasher};
use crate::nar::{self, NarError};
use crate::path::{ours, their_dir, theirs};
use crate::self_hash::SelfHasher;

/// How content is read before it is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// The bytes of one file that is not executable.
    Flat,
    /// The NAR of a file tree; `r:` in texts.
    Nar,
    /// As flat, with references in the path; derivations and `builtins.toFile`.
    Text,
    /// Git's object of a file tree: of directories with the empty ones, and of one file without its mode.
    Git,
}

impl Method {
    /// Returns the prefix that a derivation's output writes before the algorithm.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Flat => "",
            Self::Nar => "r:",
            Self::Text => "text:",
            Self::Git => "git:",
        }
    }

    pub(crate) fn theirs(self) -> nix_derivation::ContentAddressMethod {
        match self {
            Self::Flat => nix_derivation::ContentAddressMethod::Flat,
            Self::Nar => nix_derivation::ContentAddressMethod::Nar,
            Self::Text => nix_derivation::ContentAddressMethod::Text,
            Self::Git => nix_derivation::ContentAddressMethod::Git,
        }
    }

    pub(crate) fn from_theirs(theirs: nix_derivation::ContentAddressMethod) -> Self {
        match theirs {
            nix_derivation::ContentAddressMethod::Flat => Self::Flat,
            nix_derivation::ContentAddressMethod::Nar => Self::Nar,
            nix_derivation::ContentAddressMethod::Text => Self::Text,
            nix_derivation::ContentAddressMethod::Git => Self::Git,
        }
    }
}

/// A content address: the hash of content, and how the content was read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContentAddress {
    /// How the content is read.
    pub method: Method,
    /// The hash of what was read.
    pub hash: Hash,
}

/// Why a content address, or what it claims, is refused.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The text is no content address.
    #[error("read content address `{text}`: {rule}")]
    Text {
        /// What was read, cut at 200 characters.
        text: String,
        /// The rule it breaks.
        rule: String,
    },
    /// No path can follow from this address, name and references.
    #[error("compute the path of `{name}` with content address `{address}`: {rule}")]
    Path {
        /// The object's name.
        name: String,
        /// Its content address.
        address: String,
        /// The rule that is broken.
        rule: String,
    },
    /// The stated path is not the one that follows from the content address.
    #[error("check the path of `{path}`: its content address says `{computed}`")]
    WrongPath {
        /// The stated path.
        path: StorePath,
        /// The path that follows.
        computed: StorePath,
    },
    /// The object states no content address.
    #[error("check the path of `{path}`: it states no content address, so its path cannot follow from its content")]
    Missing {
        /// The stated path.
        path: StorePath,
    },
    /// The content does not hash to what the address says.
    #[error("check the content of `{path}`: it hashes to `{computed}`, its content address says `{stated}`")]
    WrongContent {
        /// The object.
        path: StorePath,
        /// The hash in its content address.
        stated: String,
        /// The hash of its content.
        computed: String,
    },
    /// The NAR is broken, or not a single file where one is needed.
    #[error("read the content of a NAR")]
    Nar(#[from] NarError),
}

impl ContentAddress {
    /// Reads `fixed:r:sha256:…`, `fixed:sha256:…`, `fixed:git:sha1:…` or `text:sha256:…`.
    ///
    /// # Errors
    /// [`ContentError::Text`] names the rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, ContentError> {
        let address = nix_derivation::CAHash::parse(text)
            .map_err(|rule| ContentError::Text { text: text.chars().take(200).collect(), rule: rule.to_string() })?;
        Ok(Self::from_theirs(&address))
    }

    /// Returns the store path that follows from this address.
    ///
    /// # Errors
    /// [`ContentError::Path`] if the name is none, or the method allows no references.
    pub fn path(
        &self,
        store_dir: &StoreDir,
        name: &str,
        references: &BTreeSet<StorePath>,
        itself: bool,
    ) -> Result<StorePath, ContentError> {
        let refuse = |rule: String| ContentError::Path { name: name.chars().take(250).collect(), address: self.to_string(), rule };
        let address = self.theirs().map_err(|rule| refuse(rule.to_string()))?;
        let references: Vec<_> = references.iter().map(theirs).collect();
        let path = their_dir(store_dir).build_ca_path(name, &address, &references, itself).map_err(|rule| refuse(rule.to_string()))?;
        Ok(ours(&path))
    }

    pub(crate) fn theirs(&self) -> Result<nix_derivation::CAHash, nix_derivation::hash::Error> {
        nix_derivation::CAHash::from_parts(self.method.theirs(), self.hash.algorithm().theirs(), self.hash.digest())
    }

    pub(crate) fn from_theirs(theirs: &nix_derivation::CAHash) -> Self {
        Self { method: Method::from_theirs(theirs.method()), hash: Hash::from_theirs(&theirs.hash()) }
    }
}

impl fmt::Display for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.method {
            Method::Flat => "fixed:",
            Method::Nar => "fixed:r:",
            Method::Text => "text:",
            Method::Git => "fixed:git:",
        };
        write!(f, "{kind}{}", self.hash.to_nix32())
    }
}

/// Returns the path of a text object (`builtins.toFile`, a `.drv`) from its bytes and references.
///
/// # Errors
/// [`ContentError::Path`] if the name breaks a rule for store paths.
pub fn text_path(store_dir: &StoreDir, name: &str, bytes: &[u8], references: &BTreeSet<StorePath>) -> Result<StorePath, ContentError> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(bytes);
    ContentAddress { method: Method::Text, hash: hasher.finish() }.path(store_dir, name, references, false)
}

/// Checks that the path of `info` follows from its content address, name and references. Says nothing about the content itself.
///
/// # Errors
/// [`ContentError::Missing`], [`ContentError::Text`], [`ContentError::Path`] or [`ContentError::WrongPath`].
pub fn check_path(store_dir: &StoreDir, info: &PathInfo) -> Result<ContentAddress, ContentError> {
    let text = info.content_address.as_deref().ok_or_else(|| ContentError::Missing { path: info.path.clone() })?;
    let address = ContentAddress::parse(text)?;
    let mut references = info.references.clone();
    let itself = references.remove(&info.path);
    let computed = address.path(store_dir, info.path.name(), &references, itself)?;
    if computed != info.path {
        return Err(ContentError::WrongPath { path: info.path.clone(), computed });
    }
    Ok(address)
}

/// Checks that the content in `nar` hashes to what the content address of `info` says. Reads the NAR to its end.
///
/// The NAR's own hash is the caller's to check; where the address is that hash (`fixed:r:sha256` without a reference to itself),
/// use [`check_nar_hash`] and spare the reading.
///
/// # Errors
/// [`ContentError::WrongContent`] or [`ContentError::Nar`].
pub fn check_content(info: &PathInfo, address: &ContentAddress, nar: impl Read) -> Result<(), ContentError> {
    let algorithm = address.hash.algorithm();
    let mut hasher = Hasher::new(algorithm);
    match address.method {
        Method::Flat | Method::Text => nar::read_single_file(nar, &mut hasher)?,
        Method::Nar if info.references.contains(&info.path) => {
            let mut hasher = SelfHasher::new(algorithm, &info.path);
            nar::check(nar::Tee::new(nar, &mut hasher))?;
            return wrong_unless(info, address, &hasher.finish());
        }
        Method::Nar => nar::check(nar::Tee::new(nar, &mut hasher)).map(|_| ())?,
        Method::Git => return wrong_unless(info, address, &nar::git_hash(nar, algorithm)?),
    }
    wrong_unless(info, address, &hasher.finish())
}

/// Checks the content address of `info` by its NAR hash alone. Returns whether that was possible; if not, [`check_content`] is.
///
/// # Errors
/// [`ContentError::WrongContent`] if the address is of the NAR and differs from its hash.
pub fn check_nar_hash(info: &PathInfo, address: &ContentAddress) -> Result<bool, ContentError> {
    let by_nar = address.method == Method::Nar && address.hash.algorithm() == Algorithm::Sha256;
    if !by_nar || info.references.contains(&info.path) {
        return Ok(false);
    }
    wrong_unless(info, address, &info.nar_hash.into()).map(|()| true)
}

fn wrong_unless(info: &PathInfo, address: &ContentAddress, computed: &Hash) -> Result<(), ContentError> {
    if *computed == address.hash {
        return Ok(());
    }
    Err(ContentError::WrongContent { path: info.path.clone(), stated: address.hash.to_nix32(), computed: computed.to_nix32() })
}
