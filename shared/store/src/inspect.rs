//! One pass over a blob's bytes that finds every fact about it: what the blob is, what NAR it holds, what that NAR refers to.
//!
//! Memory is bounded by the decoder's window; output is bounded by the stated NAR size. Does not keep the bytes.

use std::collections::BTreeSet;

use kiln_nix::scan::{Candidates, Scanner};
use kiln_wire::limits::NAR_BYTES_MAX;
use kiln_wire::{Blake3Hash, Blob, PathInfo, Sha256Hash, StorePath};
use sha2::{Digest, Sha256};

use crate::debug::BuildIdOf;
use crate::frame::Frame;
use crate::grammar::Grammar;
use crate::lie::Lie;

/// What a pass over a blob found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) blob: Blob,
    pub(crate) nar_hash: Sha256Hash,
    pub(crate) nar_size_bytes: u64,
    /// Candidates found in the NAR; `None` if nothing was looked for.
    pub(crate) references: Option<BTreeSet<StorePath>>,
    /// Files with debugging information.
    pub(crate) build_ids: Vec<BuildIdOf>,
}

/// Takes a blob's bytes and finds its facts.
pub(crate) struct Inspector {
    frame: Frame,
    buffer: Vec<u8>,
    nar: Nar,
    blob_sha256: Sha256,
    blob_blake3: blake3::Hasher,
    blob_bytes: u64,
}

/// The half that sees the decompressed bytes.
struct Nar {
    sha256: Sha256,
    size_bytes: u64,
    grammar: Grammar,
    scanner: Option<Scanner>,
}

impl Inspector {
    /// Starts a pass over a blob that is said to hold `nar_size_bytes`, looking for `candidates` if there are any.
    pub(crate) fn new(nar_size_bytes: u64, candidates: Option<&Candidates>) -> Result<Self, Lie> {
        let frame = Frame::new(nar_size_bytes)?;
        let buffer = frame.step_buffer();
        let scanner = candidates.map(Candidates::scanner);
        let nar = Nar { sha256: Sha256::new(), size_bytes: 0, grammar: Grammar::new(), scanner };
        Ok(Self { frame, buffer, nar, blob_sha256: Sha256::new(), blob_blake3: blake3::Hasher::new(), blob_bytes: 0 })
    }

    /// Takes the next bytes of the blob.
    ///
    /// # Errors
    /// The first rule they break; the pass is then over.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), Lie> {
        self.blob_sha256.update(bytes);
        self.blob_blake3.update(bytes);
        self.blob_bytes += bytes.len() as u64;
        let nar = &mut self.nar;
        self.frame.feed(bytes, &mut self.buffer, |made| nar.feed(made))
    }

    /// Ends the pass: the blob is complete.
    ///
    /// # Errors
    /// [`Lie::Frame`] or [`Lie::Grammar`] if it is not.
    pub(crate) fn finish(mut self) -> Result<Facts, Lie> {
        self.frame.finish()?;
        self.nar.grammar.finish()?;
        Ok(Facts {
            blob: Blob {
                size_bytes: self.blob_bytes,
                blake3: Blake3Hash(*self.blob_blake3.finalize().as_bytes()),
                sha256: Sha256Hash(self.blob_sha256.finalize().into()),
            },
            nar_hash: Sha256Hash(self.nar.sha256.finalize().into()),
            nar_size_bytes: self.nar.size_bytes,
            build_ids: self.nar.grammar.take_build_ids(),
            references: self.nar.scanner.map(Scanner::finish),
        })
    }
}

impl Nar {
    fn feed(&mut self, bytes: &[u8]) -> Result<(), Lie> {
        self.sha256.update(bytes);
        self.size_bytes += bytes.len() as u64;
        if let Some(scanner) = &mut self.scanner {
            scanner.update(bytes);
        }
        self.grammar.feed(bytes, |_| ()).map_err(Lie::Grammar)
    }
}

impl Facts {
    /// Says whether the NAR is the stated one.
    ///
    /// # Errors
    /// The first fact that differs.
    pub(crate) fn check_nar(&self, stated: &PathInfo) -> Result<(), Lie> {
        if self.nar_size_bytes != stated.nar_size_bytes {
            return Err(Lie::NarSize { stated_bytes: stated.nar_size_bytes, found_bytes: self.nar_size_bytes });
        }
        if self.nar_hash != stated.nar_hash {
            return Err(Lie::NarHash { stated: stated.nar_hash, found: self.nar_hash });
        }
        match &self.references {
            Some(found) if *found != stated.references => Err(Lie::References {
                extra: stated.references.difference(found).cloned().collect(),
                omitted: found.difference(&stated.references).cloned().collect(),
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// Says whether the blob is the stated one.
    ///
    /// # Errors
    /// The first fact that differs.
    pub(crate) fn check_blob(&self, stated: &Blob) -> Result<(), Lie> {
        if self.blob.size_bytes != stated.size_bytes {
            return Err(Lie::BlobSize { stated_bytes: stated.size_bytes, found_bytes: self.blob.size_bytes });
        }
        if self.blob.blake3 != stated.blake3 {
            return Err(Lie::BlobBlake3 { stated: stated.blake3, found: self.blob.blake3 });
        }
        if self.blob.sha256 != stated.sha256 {
            return Err(Lie::BlobSha256 { stated: stated.sha256, found: self.blob.sha256 });
        }
        Ok(())
    }
}

/// Says whether the stated sizes are within the limits, before a byte is taken.
///
/// # Errors
/// [`Lie::OverLimit`].
pub(crate) fn check_sizes(stated: &PathInfo) -> Result<(), Lie> {
    let blob_bytes_max = blob_bytes_max(stated.nar_size_bytes);
    let table = [
        ("NAR size", stated.nar_size_bytes, NAR_BYTES_MAX), //
        ("blob size", stated.blob.size_bytes, blob_bytes_max),
    ];
    for (what, stated_bytes, limit_bytes) in table {
        if stated_bytes > limit_bytes {
            return Err(Lie::OverLimit { what, stated_bytes, limit_bytes });
        }
    }
    Ok(())
}

/// What zstd makes of content that it cannot compress, with room for frame and block headers.
fn blob_bytes_max(nar_size_bytes: u64) -> u64 {
    nar_size_bytes.saturating_add(nar_size_bytes / 128).saturating_add(64 << 10)
}
