//! The content of fixed-output derivations: it must hash to what the recipe says, and refer to nothing.

use std::io::Read;

use kiln_nix::content::{ContentAddress, ContentError, Method, check_content, check_nar_hash};
use kiln_nix::hash::Hash;
use kiln_nix::nar::NarError;
use kiln_wire::{DrvPath, PathInfo, StoreDir};

/// Content that is not what the recipe says. Always the builder's fault.
#[derive(Debug, thiserror::Error)]
pub enum FixedError {
    /// The hash differs.
    #[error("hash mismatch in fixed-output derivation `{derivation}`: specified: {specified} got: {got}")]
    Mismatch {
        /// Full path of the derivation.
        derivation: String,
        /// The hash in the recipe.
        specified: String,
        /// The hash of the content.
        got: String,
    },
    /// A flat hash is of one file.
    #[error(
        "output of fixed-output derivation `{derivation}` must be one file that is not executable, because its hash is flat; it is {found}"
    )]
    NotFlat {
        /// Full path of the derivation.
        derivation: String,
        /// What it is.
        found: &'static str,
    },
    /// It refers to store paths.
    #[error("fixed-output derivation `{derivation}` must not refer to store paths, but its output refers to {references}")]
    References {
        /// Full path of the derivation.
        derivation: String,
        /// What it refers to.
        references: String,
    },
    /// It cannot be hashed as the recipe wants.
    #[error("hash the output of fixed-output derivation `{derivation}`")]
    Hash {
        /// Full path of the derivation.
        derivation: String,
        /// Why not.
        #[source]
        err: ContentError,
    },
}

/// Checks an output against its address. `nar` opens the bytes of its NAR, which are read only if their hash alone does not tell.
///
/// # Errors
/// [`FixedError`] names the derivation and what differs.
pub fn check<R: Read>(
    store_dir: &StoreDir,
    derivation: &DrvPath,
    info: &PathInfo,
    address: &ContentAddress,
    nar: impl FnOnce() -> R,
) -> Result<(), FixedError> {
    let derivation = || store_dir.join(derivation.as_path());
    if !info.references.is_empty() && address.method != Method::Text {
        let shown: Vec<_> = info.references.iter().take(5).map(|path| format!("`{path}`")).collect();
        return Err(FixedError::References { derivation: derivation(), references: shown.join(", ") });
    }
    let checked = match check_nar_hash(info, address) {
        Ok(false) => check_content(info, address, nar()),
        Ok(true) => Ok(()),
        Err(err) => Err(err),
    };
    checked.map_err(|err| match err {
        ContentError::WrongContent { computed, .. } => {
            let sri = Hash::parse(&computed).map_or(computed, |hash| hash.to_sri());
            FixedError::Mismatch { derivation: derivation(), specified: address.hash.to_sri(), got: sri }
        }
        ContentError::Nar(NarError::NotOneFile { found }) => FixedError::NotFlat { derivation: derivation(), found },
        err @ (ContentError::Text { .. }
        | ContentError::Path { .. }
        | ContentError::WrongPath { .. }
        | ContentError::Missing { .. }
        | ContentError::Nar(_)) => FixedError::Hash { derivation: derivation(), err },
    })
}
