//! What can be wrong with a blob: the ways in which bytes differ from the facts stated of them.

use std::collections::BTreeSet;

use kiln_nix::content::ContentError;
use kiln_wire::{Blake3Hash, Sha256Hash, StorePath};

use crate::frame::FrameError;
use crate::grammar::GrammarError;

/// A difference between a blob and the facts stated of it, or a rule that the blob breaks.
#[derive(Debug, thiserror::Error)]
pub enum Lie {
    /// The stated sizes are over a limit or cannot belong together.
    #[error("the stated {what} of {stated_bytes} bytes is over the limit of {limit_bytes}")]
    OverLimit {
        /// Which size.
        what: &'static str,
        /// What was stated.
        stated_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// The bytes are not one zstd frame of at most the stated size.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The content is no NAR.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// The NAR's size.
    #[error("the NAR has {found_bytes} bytes, {stated_bytes} were stated")]
    NarSize {
        /// What was stated.
        stated_bytes: u64,
        /// What is there.
        found_bytes: u64,
    },
    /// The NAR's SHA-256.
    #[error("the NAR has SHA-256 {found}, {stated} was stated")]
    NarHash {
        /// What was stated.
        stated: Sha256Hash,
        /// What is there.
        found: Sha256Hash,
    },
    /// The blob's size.
    #[error("the blob has {found_bytes} bytes or more, {stated_bytes} were stated")]
    BlobSize {
        /// What was stated.
        stated_bytes: u64,
        /// What is there.
        found_bytes: u64,
    },
    /// The blob's SHA-256 (`FileHash`).
    #[error("the blob has SHA-256 {found}, {stated} was stated")]
    BlobSha256 {
        /// What was stated.
        stated: Sha256Hash,
        /// What is there.
        found: Sha256Hash,
    },
    /// The blob's BLAKE3.
    #[error("the blob has BLAKE3 {found}, {stated} was stated")]
    BlobBlake3 {
        /// What was stated.
        stated: Blake3Hash,
        /// What is there.
        found: Blake3Hash,
    },
    /// The references differ from those that a scan finds.
    #[error("the stated references differ from those in the content: not found there: [{}], not stated: [{}]", list(extra), list(omitted))]
    References {
        /// Stated, but not in the content or not among the candidates.
        extra: BTreeSet<StorePath>,
        /// In the content, but not stated.
        omitted: BTreeSet<StorePath>,
    },
    /// The path does not follow from the content that it claims to be addressed by.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// An import must be addressed by its content.
    #[error("the path states no content address, and no leased build made it")]
    NotAddressed,
}

/// Paths that a message names at most, so that no peer writes our log full.
const LISTED_MAX: usize = 8;

fn list(paths: &BTreeSet<StorePath>) -> String {
    let mut text = paths.iter().take(LISTED_MAX).map(StorePath::as_str).collect::<Vec<_>>().join(" ");
    if paths.len() > LISTED_MAX {
        text.push_str(&format!(" and {} more", paths.len() - LISTED_MAX));
    }
    text
}
