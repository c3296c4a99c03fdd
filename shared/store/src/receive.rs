//! Uploads: bytes come in, a verified blob comes out, or a refusal that says what was wrong.
//!
//! Goals: nothing is visible before everything about it is checked; memory is bounded whatever is claimed; an upload goes on where a
//! broken connection left it. Non-goals: who may upload what (the coordinator's leases), and BLAKE3 of each piece in flight (kiln-link
//! hands over verified bytes only; the whole blob's BLAKE3 is checked here once more).

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use kiln_nix::content;
use kiln_nix::scan::Candidates;
use kiln_wire::{PathInfo, StoreDir, StorePath};

use crate::debug::BuildIdOf;
use crate::error::StoreError;
use crate::inspect::{Inspector, check_sizes};
use crate::lie::Lie;
use crate::spool::{Spool, SpoolReader};
use crate::unpack::NarReader;

/// Resuming happens at groups of this size: those that a verified stream is made of.
pub const RESUME_BYTES: u64 = 16 << 10;

/// Why we should believe what is stated of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provenance {
    /// A leased build made it. It may refer to these paths (the closure of its inputs, and its own outputs), and must state exactly
    /// those of them that its NAR holds. If it states a content address as well, the content is held against that too.
    Built {
        /// What it may refer to.
        candidates: BTreeSet<StorePath>,
    },
    /// A client brings it. Its path must follow from its content and stated references.
    Imported,
}

/// An upload in progress. Feeding it costs processor time: hashing, decompressing and scanning happen in [`BlobReceiver::write`].
pub struct BlobReceiver {
    stated: PathInfo,
    provenance: Provenance,
    store_dir: StoreDir,
    inspector: Inspector,
    spool: Spool,
    skip_bytes: u64,
    refused: bool,
}

/// A blob that is what it was said to be, not stored yet. Only [`BlobReceiver::finish`] makes one.
#[derive(Clone, Debug)]
pub struct Received {
    pub(crate) info: PathInfo,
    pub(crate) provenance: Provenance,
    pub(crate) spool: Arc<Spool>,
    pub(crate) build_ids: Vec<BuildIdOf>,
}

impl BlobReceiver {
    /// Starts an upload of what `stated` says. Bytes wait in `spool_dir` once they are many.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if the statement alone breaks a rule: sizes over the limits, references outside the candidates, a path
    /// that does not follow from the stated content address.
    pub fn new(store_dir: &StoreDir, spool_dir: &Path, stated: PathInfo, provenance: Provenance) -> Result<Self, StoreError> {
        let refuse = |lie| StoreError::refused(&stated, lie);
        check_statement(store_dir, &stated, &provenance).map_err(refuse)?;
        let candidates = candidates(&provenance);
        let inspector = Inspector::new(stated.nar_size_bytes, candidates.as_ref()).map_err(refuse)?;
        Ok(Self {
            stated,
            provenance,
            store_dir: store_dir.clone(),
            inspector,
            spool: Spool::new(spool_dir),
            skip_bytes: 0,
            refused: false,
        })
    }

    /// Returns what was stated.
    pub fn stated(&self) -> &PathInfo {
        &self.stated
    }

    /// Returns why it is to be believed.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// Returns the bytes of the blob that have arrived.
    pub fn offset(&self) -> u64 {
        self.spool.size_bytes()
    }

    /// Returns the offset, a multiple of [`RESUME_BYTES`], at which the peer is to go on. Bytes from there that have arrived
    /// already are skipped when they come again.
    pub fn resume(&mut self) -> u64 {
        let arrived_bytes = self.offset();
        // The last group may be shorter, so a complete blob has arrived up to its last group only.
        let groups = arrived_bytes.min(self.stated.blob.size_bytes.saturating_sub(1)) / RESUME_BYTES;
        self.skip_bytes = arrived_bytes - groups * RESUME_BYTES;
        groups * RESUME_BYTES
    }

    /// Takes the next bytes of the blob.
    ///
    /// # Errors
    /// [`StoreError::Refused`] with the first rule they break, [`StoreError::Spool`] if they cannot be kept. The upload is then over.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        assert!(!self.refused, "an upload that was refused takes no more bytes");
        self.take(bytes).inspect_err(|_| self.refused = true)
    }

    /// Returns whether a call of [`BlobReceiver::write`] failed. Nothing more can come of such an upload.
    pub fn is_refused(&self) -> bool {
        self.refused
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let skipped = usize::try_from(self.skip_bytes).map_or(bytes.len(), |skip| skip.min(bytes.len()));
        self.skip_bytes -= skipped as u64;
        let bytes = &bytes[skipped..];
        let found_bytes = self.offset().saturating_add(bytes.len() as u64);
        let stated_bytes = self.stated.blob.size_bytes;
        if found_bytes > stated_bytes {
            return Err(StoreError::refused(&self.stated, Lie::BlobSize { stated_bytes, found_bytes }));
        }
        self.inspector.feed(bytes).map_err(|lie| StoreError::refused(&self.stated, lie))?;
        self.spool.write_all(bytes).map_err(|err| self.spool_error("write", err))
    }

    /// Ends the upload: all bytes have come.
    ///
    /// # Errors
    /// [`StoreError::Refused`] with what differs from the statement.
    pub fn finish(self) -> Result<Received, StoreError> {
        let Self { stated, provenance, store_dir, inspector, spool, .. } = self;
        let check = || {
            let facts = inspector.finish()?;
            facts.check_blob(&stated.blob)?;
            facts.check_nar(&stated)?;
            check_content(&store_dir, &stated, || SpoolReader::new(&spool))?;
            Ok::<_, Lie>(facts.build_ids)
        };
        match check() {
            Ok(build_ids) => Ok(Received { info: stated, provenance, spool: Arc::new(spool), build_ids }),
            Err(lie) => Err(StoreError::refused(&stated, lie)),
        }
    }

    fn spool_error(&self, operation: &'static str, err: std::io::Error) -> StoreError {
        StoreError::Spool { operation, path: self.stated.path.clone(), err }
    }
}

impl Received {
    /// Returns the facts, all of them checked.
    pub fn info(&self) -> &PathInfo {
        &self.info
    }
}

/// Says whether a statement may be true at all.
pub(crate) fn check_statement(store_dir: &StoreDir, stated: &PathInfo, provenance: &Provenance) -> Result<(), Lie> {
    check_sizes(stated)?;
    match provenance {
        Provenance::Built { candidates } => {
            let extra: BTreeSet<_> = stated.references.difference(candidates).cloned().collect();
            if !extra.is_empty() {
                return Err(Lie::References { extra, omitted: BTreeSet::new() });
            }
        }
        Provenance::Imported if stated.content_address.is_none() => return Err(Lie::NotAddressed),
        Provenance::Imported => (),
    }
    if stated.content_address.is_some() {
        content::check_path(store_dir, stated)?;
    }
    Ok(())
}

/// Holds the content against a stated content address. `blob` opens the blob's bytes from the start, if they are needed.
pub(crate) fn check_content<R: std::io::Read>(store_dir: &StoreDir, stated: &PathInfo, blob: impl FnOnce() -> R) -> Result<(), Lie> {
    if stated.content_address.is_none() {
        return Ok(());
    }
    let address = content::check_path(store_dir, stated)?;
    if content::check_nar_hash(stated, &address)? {
        return Ok(());
    }
    let nar = NarReader::new(blob(), stated.nar_size_bytes)?;
    Ok(content::check_content(stated, &address, nar)?)
}

/// Returns what the NAR is searched for.
pub(crate) fn candidates(provenance: &Provenance) -> Option<Candidates> {
    match provenance {
        Provenance::Built { candidates } => Some(Candidates::new(candidates.iter().cloned())),
        Provenance::Imported => None,
    }
}
